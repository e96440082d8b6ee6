"""Segmentation networks: floating-point images in [0, 1] to linear logits, at any size from 32.

On every network, ``model.classifier`` is the last convolution: what goes into it (a forward hook
sees it) is the last feature map that all classes share, what comes out are the logits.
"""

import inspect

from torch import nn

from patlib.models.attention_unet import AttentionGate, AttentionUNet
from patlib.models.encoder_unet import ENCODERS, EncoderUNet, unet, unetplusplus
from patlib.models.segnet import SegNet

__all__ = [
    "ENCODERS",
    "MODELS",
    "AttentionGate",
    "AttentionUNet",
    "EncoderUNet",
    "SegNet",
    "build_model",
    "unet",
    "unetplusplus",
]

MODELS = {
    "segnet": SegNet,
    "unet": unet,
    "attention_unet": AttentionUNet,
    "unetplusplus": unetplusplus,
}


def build_model(name: str, num_classes: int, **params) -> nn.Module:
    """A network by its name: ``build_model("segnet", num_classes=11, width=32)``.

    Weights are drawn from torch's global generator: ``torch.manual_seed`` makes them repeatable.
    Under ``torch.device("meta")`` the arguments are checked and nothing is allocated or
    downloaded.

    Args:
        name: one of ``MODELS``.
        num_classes: channels of the logits.
        **params: ``width`` (segnet, attention_unet), ``stages`` (segnet); ``encoder``,
            ``pretrained`` (unet, unetplusplus).

    Returns:
        A module from images (B, 3, H, W) to logits (B, num_classes, H, W).

    Raises:
        ValueError: a name or value is not allowed; the message says which and what is.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"model={name!r} is not allowed: it takes one of {', '.join(MODELS)}")
    builder = MODELS[name]
    allowed = [p for p in inspect.signature(builder).parameters if p != "num_classes"]
    for param in params:
        if param not in allowed:
            raise ValueError(
                f"{param!r} is not a parameter of model {name!r}: it takes {', '.join(allowed)}"
            )
    return builder(num_classes, **params)
