"""Parts common to the networks: blocks, initial weights, image sizes."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

MIN_SIZE = 32


def check_images(images: torch.Tensor) -> tuple[int, int]:
    """Height and width of images (B, 3, H, W), floating point, H and W at least 32.

    Looks at shape and type only, never at values, so that a GPU need not be waited for.

    Raises:
        ValueError: shape or type are not these.
    """
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            "images must be floating point of shape (B, 3, H, W), got "
            f"{images.dtype} of shape {tuple(images.shape)}"
        )
    height, width = images.shape[-2:]
    if height < MIN_SIZE or width < MIN_SIZE:
        raise ValueError(f"images must have H and W >= {MIN_SIZE}, got ({height}, {width})")
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
            # Batch norm subtracts the mean, so a bias before it has no effect.
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
