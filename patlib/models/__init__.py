"""Segmentation networks: floating-point images in [0, 1] to linear logits, at any size from 32.

``model.classifier`` is the last convolution of every network. Its input is the last feature map,
which all classes share, its output the logits; a forward hook sees both. With
``normalized_classifier=True`` it is a :class:`NormalizedConv2d`: its logits are cosines.
"""

import inspect
from typing import Any

from torch import nn

from patlib.checks import check_choice, check_parameters
from patlib.models.attention_unet import AttentionGate, AttentionUNet
from patlib.models.encoder_unet import ENCODERS, EncoderUNet, pretrained_source
from patlib.models.layers import NormalizedConv2d
from patlib.models.segnet import SegNet
from patlib.models.unet import UNet
from patlib.models.unetplusplus import UNetPlusPlus

MODELS: dict[str, type[nn.Module]] = {
    "segnet": SegNet,
    "unet": UNet,
    "attention_unet": AttentionUNet,
    "unetplusplus": UNetPlusPlus,
}

__all__ = [
    "ENCODERS",
    "MODELS",
    "AttentionGate",
    "EncoderUNet",
    "NormalizedConv2d",
    "build_model",
    "pretrained_source",
    *(model.__name__ for model in MODELS.values()),
]


def build_model(name: str, num_classes: int, **params: Any) -> nn.Module:
    """A network by its name: ``build_model("segnet", num_classes=11, width=32)``.

    Weights are drawn from torch's global generator: ``torch.manual_seed`` makes them repeatable.
    Under ``torch.device("meta")`` the arguments are checked and nothing is allocated or
    downloaded.

    Args:
        name: one of ``MODELS``.
        num_classes: channels of the logits.
        **params: of the network, see its class: ``width`` (segnet, attention_unet), ``stages``
            (segnet); ``encoder``, ``encoder_weights``, ``decoder_channels`` (unet, unetplusplus);
            ``normalized_classifier`` (all).

    Returns:
        A module from images (B, 3, H, W) to logits (B, num_classes, H, W).

    Raises:
        ValueError: a name or value is not allowed; the message says which and what is.
    """
    model = MODELS[check_choice("model", name, tuple(MODELS))]
    own = inspect.signature(model).parameters.keys() - {"num_classes"}
    check_parameters(f"model {name!r}", params, own)
    return model(num_classes, **params)
