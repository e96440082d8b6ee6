"""Attention U-Net: a U-Net whose skip connections pass through attention gates."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from patlib.checks import check_integer
from patlib.models.layers import (
    MOST_CHANNELS,
    check_images,
    classifier,
    conv_bn_relu,
    crop_logits,
    initialise,
    pad_images,
)


class AttentionGate(nn.Module):
    """Additive attention gate of Oktay et al. (MIDL 2018), Eq. 1-2 and Figure 2.

    One coefficient for each pixel, α = σ(ψ(ReLU(W_x x + W_g g))), computed on the coarser grid of
    the gating signal g and upsampled bilinearly; the gated skip is α x. (Their released code puts
    a 1x1 convolution and batch norm behind it, which the paper does not have.)

    Args:
        skip_channels: channels of the skip x.
        gating_channels: channels of g.
        inner_channels: channels of the space in which both are added.
    """

    def __init__(self, skip_channels: int, gating_channels: int, inner_channels: int):
        super().__init__()
        # The stride takes x to the grid of g. One bias serves both addends.
        self.w_x = nn.Conv2d(skip_channels, inner_channels, kernel_size=2, stride=2, bias=False)
        self.w_g = nn.Conv2d(gating_channels, inner_channels, kernel_size=1)
        self.psi = nn.Conv2d(inner_channels, 1, kernel_size=1)

    def coefficients(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        """α (B, 1, 2h, 2w) in (0, 1), of a skip (B, C, 2h, 2w) and a gating signal (B, G, h, w)."""
        coarse = torch.sigmoid(self.psi(F.relu(self.w_x(skip) + self.w_g(gating))))
        return F.interpolate(coarse, size=skip.shape[-2:], mode="bilinear")

    def forward(self, skip: torch.Tensor, gating: torch.Tensor) -> torch.Tensor:
        return skip * self.coefficients(skip, gating)


class AttentionUNet(nn.Module):
    """Attention U-Net of Oktay et al. (MIDL 2018) in two dimensions, with linear logits.

    The U-Net is that of Ronneberger et al. (MICCAI 2015): five levels of two convolutions with
    ``width`` times 1, 2, 4, 8 and 16 channels, 2x2 max pooling down, 2x2 transposed convolutions
    up; with batch norm, and with padding, so that no border is lost. Width 64 is the original.
    The gating signal of a skip is the decoder's feature map one level below it. The finest skip
    has no gate: its features are too low-level ("Attention Gates in U-Net Model"). Their deep
    supervision is left out. ``classifier`` is the last, 1x1, convolution.

    Args:
        num_classes: channels of the logits.
        width: channels of the finest level.
        normalized_classifier: whether the classifier is a :class:`NormalizedConv2d`, so that the
            logits are cosines in [-1, 1]: for losses that scale them, such as LDAM.

    Shape:
        images: floating point (B, 3, H, W) in [0, 1], H and W at least 32.
        output: logits (B, num_classes, H, W).

    Raises:
        ValueError: an argument is not an integer >= 1, or images have another shape or type.
    """

    label = "Attention U-Net"

    def __init__(self, num_classes: int, width: int = 32, normalized_classifier: bool = False):
        super().__init__()
        check_integer("num_classes", num_classes, minimum=1, maximum=MOST_CHANNELS)
        check_integer("width", width, minimum=1, maximum=MOST_CHANNELS)
        channels = [width, 2 * width, 4 * width, 8 * width, 16 * width]
        self.encoder = nn.ModuleList(
            conv_bn_relu(b, c, c) for b, c in zip([3, *channels[:-1]], channels, strict=True)
        )
        # From the coarsest level upwards, like the walk through the decoder.
        steps = list(pairwise(channels))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, c, 2, stride=2) for c, below in steps)
        self.gates = nn.ModuleList(AttentionGate(c, below, c) for c, below in steps[:-1])
        self.decoder = nn.ModuleList(conv_bn_relu(2 * c, c, c) for c, _ in steps)
        self.classifier = classifier(width, num_classes, 1, normalized_classifier)
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = check_images(images)
        x = pad_images(images, 2 ** len(self.up))
        x = self.encoder[0](x)
        skips = []
        for level in self.encoder[1:]:
            skips.append(x)
            x = level(F.max_pool2d(x, 2))
        for i, (up, level) in enumerate(zip(self.up, self.decoder, strict=True)):
            skip = skips.pop()
            if skips:  # all but the finest
                skip = self.gates[i](skip, x)
            x = level(torch.cat([skip, up(x)], dim=1))
        return crop_logits(self.classifier(x), height, width)
