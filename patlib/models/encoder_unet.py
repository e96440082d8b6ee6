"""Base of UNet and UNet++: encoder networks of segmentation-models-pytorch."""

from typing import ClassVar

import torch
from torch import nn

from patlib.checks import check_choice, check_integer
from patlib.models.layers import check_images, pad_images

try:
    import segmentation_models_pytorch as smp
except ModuleNotFoundError:  # our own networks do without it
    smp = None

# The "mit" encoders do not fit UNet++ and cannot be built on the meta device.
ENCODERS: tuple[str, ...] = tuple(
    n for n in (smp.encoders.get_encoder_names() if smp else ()) if not n.startswith("mit_")
)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderUNet(nn.Module):
    """A network of segmentation-models-pytorch that takes any size and images in [0, 1].

    The images are normalised inside, with the mean and deviation of the encoder's weights (those of
    ImageNet without weights). Both are part of the state: a checkpoint loads into a network made
    without ``encoder_weights``. The coarsest features have 1/32 of the size, so that a single image
    of 32x32 gives batch norm nothing to train on: take two, or a larger one.

    Args:
        num_classes: channels of the logits.
        encoder: one of ``ENCODERS``.
        encoder_weights: pretrained weights of the encoder to download, such as ``"imagenet"``; None
            draws all weights.

    Shape:
        images: floating point (B, 3, H, W) in [0, 1], H and W at least 32.
        output: logits (B, num_classes, H, W).

    Raises:
        ValueError: an argument is not allowed, or images have another shape or type.
        ModuleNotFoundError: segmentation-models-pytorch is not installed.
    """

    #: name in tables and figures
    label: ClassVar[str]
    #: name of the class in segmentation-models-pytorch
    architecture: ClassVar[str]

    def __init__(
        self, num_classes: int, encoder: str = "resnet18", encoder_weights: str | None = None
    ):
        super().__init__()
        if smp is None:
            raise ModuleNotFoundError(
                "unet and unetplusplus need segmentation-models-pytorch, which is not installed"
            )
        check_integer("num_classes", num_classes, minimum=1)
        check_choice("encoder", encoder, ENCODERS)
        published = smp.encoders.encoders[encoder]["pretrained_settings"]
        check_choice(f"encoder_weights of {encoder!r}", encoder_weights, (None, *published))
        if torch.get_default_device().type == "meta":  # no values: nothing to download
            encoder_weights = None
        self.network = getattr(smp, self.architecture)(
            encoder, encoder_weights=encoder_weights, classes=num_classes
        )
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if encoder_weights is not None:
            settings = smp.encoders.get_preprocessing_params(encoder, encoder_weights)
            mean, std = settings["mean"], settings["std"]
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
        return self.network(x)[..., :height, :width]
