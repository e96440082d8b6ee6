"""What the networks have in common: blocks, initial weights, image sizes, argument checks."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

MIN_SIZE = 32


def check_positive_int(name: str, value: int) -> None:
    """Refuse (ValueError) anything but an int of at least 1; a bool is no number here."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} is not allowed: it takes an int of at least 1")


def check_images(images: torch.Tensor) -> tuple[int, int]:
    """Height and width of images (B, 3, H, W), floating point, H and W at least 32.

    Looks at shape and type only, never at values, so that a GPU need not be waited for.

    Raises:
        ValueError: shape or type are not these.
    """
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images of shape {tuple(images.shape)} and {images.dtype} are not allowed: "
            "they are floating point (B, 3, H, W) in [0, 1]"
        )
    height, width = images.shape[-2:]
    if height < MIN_SIZE or width < MIN_SIZE:
        raise ValueError(
            f"images of size (H, W) = ({height}, {width}) are not allowed: "
            f"H and W are at least {MIN_SIZE}"
        )
    return height, width


def pad_images(images: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zeros at the bottom and right, up to the next multiple; the network crops its logits back."""
    height, width = images.shape[-2:]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(images, (0, right, 0, bottom)) if bottom or right else images


def conv_bn_relu(*channels: int) -> nn.Sequential:
    """3x3 convolution, batch norm and ReLU, once for each step from one number to the next."""
    layers = []
    for inputs, outputs in pairwise(channels):
        layers += [
            # Batch norm subtracts the mean, so a bias before it could do nothing.
            nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def initialise(model: nn.Module) -> None:
    """Initial weights of He et al. (ICCV 2015, Eq. 10) for all convolutions; biases are zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
