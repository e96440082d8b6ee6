"""Batches: a decoded split on the device, in the sampler's order, augmented."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from patlib.config import RunConfig
from patlib.data import IGNORE_INDEX, SAMPLERS, DecodedSplit
from patlib.seeds import mix_seed

SCALES = (0.5, 2.0)  # of images under augment="flip_scale_crop"


class SplitTensors:
    """A split as uint8 tensors, on the device if they fit in half of its free memory."""

    def __init__(self, arrays: DecodedSplit, device: torch.device):
        self.device = device
        images, masks = (torch.from_numpy(a) for a in (arrays.images, arrays.masks))
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if images.nbytes + masks.nbytes < free / 2:
                images, masks = images.to(device), masks.to(device)
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Image float (B, 3, H, W) in channels_last, and target int64 (B, H, W), on the device."""
        index = index.to(self.images.device)
        image = self.images[index].to(self.device, non_blocking=True)
        target = self.masks[index].to(self.device, non_blocking=True)
        # (B, H, W, 3) seen as (B, 3, H, W) *is* channels_last.
        return image.permute(0, 3, 1, 2).float().div_(255), target.long()

    def shuffled_batches(
        self, config: RunConfig, epoch: int, rank: int, sizes: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch: images in the sampler's order, augmented.

        Both depend on (seed, epoch, index) only: the index of the image, or, under a sampler that
        may show an image twice, its place in the order. Images that do not fill a batch are left
        out of this epoch.

        Args:
            sizes: valid pixels of each class in each image, (N, L).
        """
        generator = torch.Generator().manual_seed(mix_seed(config.seed, epoch))
        order = SAMPLERS[config.sampler](sizes, generator)
        drawn_by = order if config.sampler == "uniform" else torch.arange(len(order))
        flipped = (torch.rand(len(self), generator=generator) < 0.5)[drawn_by]
        crops = None
        if config.augment == "flip_scale_crop":
            draws = torch.rand(len(self), 3, generator=generator, dtype=torch.float64)
            crops = draw_crops(draws[drawn_by], self.masks.shape[1:])
        # Once an epoch, so that no step waits for a copy.
        order, flipped = order.to(self.images.device), flipped.to(self.device)
        share = config.batch_size // config.devices
        for start in range(0, len(self) - config.batch_size + 1, config.batch_size):
            part = slice(start + rank * share, start + (rank + 1) * share)
            image, target = self.batch(order[part])
            flip = flipped[part]
            image = torch.where(flip[:, None, None, None], image.flip(-1), image)
            target = torch.where(flip[:, None, None], target.flip(-1), target)
            if crops is not None:
                image, target = scale_and_crop(image, target, crops[part])
            yield image.contiguous(memory_format=torch.channels_last), target


def draw_crops(draws: Tensor, size: Sequence[int]) -> Tensor:
    """Parts of images that, resized to the size of the image, show it scaled by 0.5 to 2.

    Args:
        draws: uniform in [0, 1), (N, 3): of the scale, the row and the column.
        size: (H, W) of the images.

    Returns:
        int64 (N, 4): top, left, height and width of each part. It lies in the image if the scale is
        1 or more, and else contains the image.
    """
    scale = SCALES[0] + (SCALES[1] - SCALES[0]) * draws[:, :1]
    whole = torch.tensor(size)
    part = (whole / scale).round().long().clamp_min(1)
    room = whole - part  # negative: the part is larger
    corner = room.clamp_max(0) + (draws[:, 1:] * (room.abs() + 1)).long()
    return torch.cat([corner, part], 1)


def scale_and_crop(image: Tensor, target: Tensor, crops: Tensor) -> tuple[Tensor, Tensor]:
    """Each image's part (see :func:`draw_crops`), resized to (H, W): bilinear, labels by nearest.

    Where a part is outside of its image, the result is black and ignored.

    Args:
        image: float (B, 3, H, W).
        target: int64 (B, H, W).
        crops: (B, 4).
    """
    size = list(target.shape[1:])
    images, targets = [], []
    for x, labels, crop in zip(image, target[:, None], crops.tolist(), strict=True):
        images.append(transforms.resized_crop(x, *crop, size, antialias=True))
        # Outside, the crop is 0: labels are counted from 1 meanwhile, and 0 is none.
        labels = (labels + 1).masked_fill(labels == IGNORE_INDEX, 0)
        cropped = transforms.resized_crop(
            labels, *crop, size, interpolation=InterpolationMode.NEAREST_EXACT
        )
        targets.append((cropped - 1).masked_fill(cropped == 0, IGNORE_INDEX)[0])
    return torch.stack(images), torch.stack(targets)
