"""UNet and UNet++ with a classification network as encoder, from segmentation-models-pytorch."""

import torch
from torch import nn

from patlib.models.layers import check_images, check_positive_int, pad_images

try:
    import segmentation_models_pytorch as smp
except ModuleNotFoundError:  # our own networks do without it
    smp = None

# The "mit" encoders do not fit UNet++ and cannot be built on the meta device.
ENCODERS = tuple(
    n for n in (smp.encoders.get_encoder_names() if smp else ()) if not n.startswith("mit_")
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class EncoderUNet(nn.Module):
    """A network of segmentation-models-pytorch that takes any size and images in [0, 1].

    Made by :func:`unet` and :func:`unetplusplus`. The images are normalised inside, drawn weights
    or not, and mean and deviation are part of the state: a checkpoint of a pretrained network
    loads into one made without ``pretrained``. The coarsest features have 1/32 of the size, so
    that a single image of 32x32 gives batch norm nothing to train on: take two, or a larger one.

    Shape:
        images: floating point (B, 3, H, W) in [0, 1], H and W at least 32.
        output: logits (B, num_classes, H, W).

    Raises:
        ValueError: an argument is not allowed, or images have another shape or type.
        ModuleNotFoundError: segmentation-models-pytorch is not installed.
    """

    def __init__(self, network: str, num_classes: int, encoder: str, pretrained: bool):
        super().__init__()
        if smp is None:
            raise ModuleNotFoundError(
                "unet and unetplusplus need segmentation-models-pytorch, which is not installed"
            )
        check_positive_int("num_classes", num_classes)
        if encoder not in ENCODERS:
            raise ValueError(
                f"encoder={encoder!r} is not allowed: it takes one of {', '.join(ENCODERS)}"
            )
        if not isinstance(pretrained, bool):
            raise ValueError(f"pretrained={pretrained!r} is not allowed: it takes True or False")
        if pretrained and "imagenet" not in smp.encoders.encoders[encoder]["pretrained_settings"]:
            raise ValueError(
                f"pretrained=True is not allowed with encoder={encoder!r}: "
                "there are no ImageNet weights for it"
            )
        # The meta device has no values: arguments are checked there, nothing is downloaded.
        download = pretrained and torch.get_default_device().type != "meta"
        weights = "imagenet" if download else None
        self.network = getattr(smp, network)(encoder, encoder_weights=weights, classes=num_classes)
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if download:
            published = smp.encoders.get_preprocessing_params(encoder, weights)
            mean, std = published["mean"], published["std"]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    @property
    def classifier(self) -> nn.Conv2d:
        """The last convolution: its input is the last feature map, its output the logits."""
        return self.network.segmentation_head[0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = check_images(images)
        # Zero, the padding, is the mean colour: normalise first.
        x = pad_images((images - self.mean) / self.std, self.network.encoder.output_stride)
        return self.network(x)[..., :height, :width]


def unet(num_classes: int, encoder: str = "resnet18", pretrained: bool = False) -> EncoderUNet:
    """U-Net (Ronneberger et al., MICCAI 2015) with a classification network as encoder.

    Args:
        num_classes: channels of the logits.
        encoder: one of ``ENCODERS``.
        pretrained: download ImageNet weights for the encoder; otherwise all weights are drawn.
    """
    return EncoderUNet("Unet", num_classes, encoder, pretrained)


def unetplusplus(
    num_classes: int, encoder: str = "resnet18", pretrained: bool = False
) -> EncoderUNet:
    """UNet++ (Zhou et al., DLMIA 2018) with a classification network as encoder; see :func:`unet`.

    Deep supervision is off.
    """
    return EncoderUNet("UnetPlusPlus", num_classes, encoder, pretrained)
