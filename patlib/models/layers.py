"""Parts common to the networks: blocks, initial weights, image sizes."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from patlib.checks import check_choice

MIN_SIZE = 32
# Far more than any network has; beyond, the sizes of the weights are no numbers of PyTorch's.
MOST_CHANNELS = 2**16


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
    """Zeros at the bottom and right, up to the next multiple; see :func:`crop_logits`."""
    # Written so that torch.export, which has letters for the sizes, sees multiples: no remainder,
    # and no branch on it.
    height, width = images.shape[-2:]
    padded_height = multiple * ((height + multiple - 1) // multiple)
    padded_width = multiple * ((width + multiple - 1) // multiple)
    return F.pad(images, (0, padded_width - width, 0, padded_height - height))


def crop_logits(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The logits of the image, without those of its padding."""
    if torch.compiler.is_exporting():
        # A slice would fix whether it is the whole, hence which sizes fit; an index does not.
        rows, columns = (torch.arange(n, device=logits.device) for n in (height, width))
        return logits.index_select(-2, rows).index_select(-1, columns)
    return logits[..., :height, :width]


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


class NormalizedConv2d(nn.Conv2d):
    """Convolution of features and weights of length 1: cosines, in [-1, 1], and no bias::

        output_c = w_c · x / (|w_c| |x|)

    with x the patch of features under the kernel (zeros beyond the border), of all channels, and
    w_c the weights of class c. Where all features of a patch are 0 the output is 0. The lengths are
    computed in float32 at least.

    Source: the classifier of Cao et al. (NeurIPS 2019) for LDAM, in their code ``NormedLinear``.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int):
        padding = kernel_size // 2
        super().__init__(inputs, outputs, kernel_size, padding=padding, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        dots = super().forward(features)
        exact = torch.promote_types(features.dtype, torch.float32)
        squares = features.to(exact).square().sum(1, keepdim=True)
        # The sum over the kernel, at each position.
        k, padding = self.kernel_size, self.padding
        squares = F.avg_pool2d(squares, k, stride=1, padding=padding, divisor_override=1)
        weights = self.weight.to(exact).square().sum((1, 2, 3)).view(-1, 1, 1)
        # The bound keeps the root's derivative finite.
        lengths = squares.clamp_min(1e-24).sqrt() * weights.clamp_min(1e-24).sqrt()
        return (dots.to(exact) / lengths).clamp(-1, 1).to(dots.dtype)


def classifier(inputs: int, outputs: int, kernel_size: int, normalized: bool) -> nn.Conv2d:
    """The last convolution of a network, from feature maps to logits of the same size."""
    check_choice("normalized_classifier", normalized, (False, True))
    if normalized:
        return NormalizedConv2d(inputs, outputs, kernel_size)
    return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2)


def initialise(model: nn.Module) -> None:
    """Initial weights of He et al. (ICCV 2015, Eq. 10) for all convolutions; biases are zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
