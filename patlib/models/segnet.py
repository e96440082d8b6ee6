"""SegNet: an encoder like VGG16, and a decoder that unpools with the encoder's indices."""

import torch
from torch import nn
from torch.nn import functional as F

from patlib.checks import check_choice, check_integer
from patlib.models.layers import (
    MOST_CHANNELS,
    check_images,
    classifier,
    conv_bn_relu,
    crop_logits,
    initialise,
    pad_images,
)

# Of each stage, as in VGG16: convolutions, and channels as multiples of the width.
CONVOLUTIONS = (2, 2, 3, 3, 3)
CHANNELS = (1, 2, 4, 8, 8)


class SegNet(nn.Module):
    """SegNet of Badrinarayanan et al. (TPAMI 2017), Section 3, with linear logits.

    Five stages of 2, 2, 3, 3 and 3 convolutions with ``width`` times 1, 2, 4, 8 and 8 channels,
    each followed by 2x2 max pooling. The decoder mirrors them: each stage puts its input back
    where the maxima were, and its last convolution goes to the channels of the stage before. The
    last of the 13 decoder convolutions is ``classifier``.

    The original has width 64 and starts from VGG16's weights; here all weights are drawn. The
    code released with PAT uses another network under this name: the first four stages, of width
    32, and batch norm and ReLU after the last convolution, so that its logits are never negative.

    Everything but the indices passes through the last stage, at 1/32 of the image's height and
    width. On images of about 100 pixels that is 3 or 4 pixels, and ``stages=4`` does better.

    Args:
        num_classes: channels of the logits.
        width: channels of the first stage.
        stages: how many of the five stages, 1 to 5.
        normalized_classifier: whether the classifier is a :class:`NormalizedConv2d`, so that the
            logits are cosines in [-1, 1]: for losses that scale them, such as LDAM.
        rectified: whether batch norm and ReLU follow the classifier, as in the code released with
            PAT: only to measure what they do.

    Shape:
        images: floating point (B, 3, H, W) in [0, 1], H and W at least 32.
        output: logits (B, num_classes, H, W).

    Raises:
        ValueError: an argument is out of its range, or images have another shape or type.
    """

    label = "SegNet"

    def __init__(
        self,
        num_classes: int,
        width: int = 32,
        stages: int = 5,
        normalized_classifier: bool = False,
        rectified: bool = False,
    ):
        super().__init__()
        check_integer("num_classes", num_classes, minimum=1, maximum=MOST_CHANNELS)
        check_integer("width", width, minimum=1, maximum=MOST_CHANNELS)
        check_integer("stages", stages, minimum=1, maximum=len(CHANNELS))
        channels = [multiple * width for multiple in CHANNELS[:stages]]
        before = [3, *channels[:-1]]
        plan = list(zip(before, channels, CONVOLUTIONS[:stages], strict=True))
        self.encoder = nn.ModuleList(conv_bn_relu(b, *[c] * n) for b, c, n in plan)
        self.decoder = nn.ModuleList(conv_bn_relu(*[c] * n, b) for b, c, n in reversed(plan[1:]))
        self.decoder.append(conv_bn_relu(width, width))
        self.classifier = classifier(width, num_classes, 3, normalized_classifier)
        check_choice("rectified", rectified, (True, False))
        self.rectifier = (
            nn.Sequential(nn.BatchNorm2d(num_classes), nn.ReLU()) if rectified else nn.Identity()
        )
        initialise(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = check_images(images)
        x = pad_images(images, 2 ** len(self.encoder))
        indices = []
        for stage in self.encoder:
            x, where = F.max_pool2d(stage(x), 2, return_indices=True)
            indices.append(where)
        for stage in self.decoder:
            x = stage(F.max_unpool2d(x, indices.pop(), 2))
        return crop_logits(self.rectifier(self.classifier(x)), height, width)
