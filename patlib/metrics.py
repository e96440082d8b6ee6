"""Scores of a segmentation, over a whole data set and by image.

All but the confusion matrix and ``released_miou`` follow from the pixels of each class in each
image (:func:`count_per_image`), which every run keeps: :func:`scores_of_counts`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from patlib.checks import check_integer, check_number
from patlib.data import IGNORE_INDEX
from patlib.released import released_miou_from_confusion

#: share of the training pixels under which a class is in the group ``"rare"``
RARE_SHARE = 0.01
#: share of the images, or of the images that hold a class, that the worst ones are
WORST_SHARE = 0.1
#: width of the boundary bands, as a share of the diagonal of the image
BOUNDARY_RATIO = 0.02


class SegmentationMetrics(Metric):
    """Scores over all valid pixels that ``update`` has seen.

    The state is an int64 (L, L) confusion matrix, rows truth and columns prediction, summed over
    processes. No score is an average over images or batches, except ``released_miou``.

    Args:
        num_classes: L.
        class_counts: pixels of each class in the *training* split, (L,); with them ``compute``
            also gives the scores of :func:`score_groups`.
        class_images: training images that hold each class, (L,), for the groups by images.
        ignore_index: target value of pixels that do not count.

    Raises:
        ValueError: shapes or values do not fit; the message names them.
    """

    higher_is_better = True
    full_state_update = False

    def __init__(
        self,
        num_classes: int,
        class_counts: Sequence[int] | Tensor | None = None,
        class_images: Sequence[int] | Tensor | None = None,
        ignore_index: int = IGNORE_INDEX,
    ):
        super().__init__()
        self.num_classes = check_integer("num_classes", num_classes, minimum=1)
        self.ignore_index = ignore_index
        for name, given in (("class_counts", class_counts), ("class_images", class_images)):
            if given is not None and len(given) != num_classes:
                raise ValueError(
                    f"{name} must have num_classes={num_classes} entries, got {len(given)}"
                )
        self.groups = None if class_counts is None else score_groups(class_counts, class_images)
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("released_sum", zero, dist_reduce_fx="sum")
        self.add_state("released_batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: logits ``(B, L, *spatial)`` of a floating type, or labels
                ``(B, *spatial)`` of an integer type.
            target: labels ``(B, *spatial)``, integers 0 ... L-1 or ``ignore_index``.
        """
        if prediction.is_floating_point():
            if prediction.ndim < 2 or prediction.shape[1] != self.num_classes:
                raise ValueError(
                    f"logits must be (B, {self.num_classes}, *spatial) for num_classes="
                    f"{self.num_classes}, got {tuple(prediction.shape)}"
                )
            prediction = prediction.argmax(1)
        if prediction.shape != target.shape:
            raise ValueError(
                "prediction and target must have the same shape, got "
                f"{tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        valid = target != self.ignore_index
        truth, predicted = target[valid].long(), prediction[valid].long()
        for name, labels in (("target", truth), ("prediction", predicted)):
            if labels.numel() and (labels.min() < 0 or labels.max() >= self.num_classes):
                raise ValueError(
                    f"labels of {name} must be 0 ... {self.num_classes - 1}, got "
                    f"{int(labels.min())} ... {int(labels.max())}"
                )
        pairs = torch.bincount(truth * self.num_classes + predicted, minlength=self.num_classes**2)
        confusion = pairs.view(self.num_classes, self.num_classes)
        self.confusion += confusion
        released = float(released_miou_from_confusion(confusion, min(3, self.num_classes)))
        if not math.isnan(released):  # NaN: none of its three classes is in this batch
            self.released_sum += released
            self.released_batches += 1

    def compute(self) -> dict[str, Any]:
        """The scores, as floats in [0, 1].

        Returns:
            The scores of :func:`compute_scores` (those of each class as lists),
            ``released_miou`` (what the paper's released code calls mIoU: classes 0 to 2 only,
            averaged over batches), and
            ``confusion`` (L lists of L pixel counts, rows truth).
        """
        confusion = self.confusion
        counts = torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])
        return {
            **plain_scores(compute_scores(counts, self.groups)),
            "released_miou": float(self.released_sum / self.released_batches),
            "confusion": confusion.tolist(),
        }


def compute_scores(
    counts: Tensor | np.ndarray, groups: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """The scores that follow from the pixels of each class over the whole data set.

    Args:
        counts: (..., 3, L) of true positives, true and predicted pixels of each class, summed over
            images, such as the sum of :func:`count_per_image` over the images.
        groups: name -> numbers of its classes, as from :func:`score_groups`.

    Returns:
        float64 tensors, in [0, 1] but for ``predicted_ratio``. Of shape (..., L), NaN for 0 / 0:
        ``iou`` (NaN for a class in neither truth nor prediction, which every mean leaves out);
        ``precision`` (true positives / predicted pixels); ``recall`` (true positives / true
        pixels); ``predicted_ratio`` (predicted / true pixels, NaN without true ones). Of shape
        (...): ``miou``; ``pixel_accuracy``; ``mean_accuracy`` (mean recall of the classes in the
        truth); ``dice_error`` (1 - mean Dice; not comparable with the paper's undefined
        "Dice Err"); and for each group the mean IoU of its classes.
    """
    counts = counts.cpu() if isinstance(counts, Tensor) else counts
    tp, true, predicted = torch.as_tensor(np.asarray(counts)).double().unbind(-2)
    iou = tp / (true + predicted - tp)  # 0 / 0 is NaN
    dice = 2 * tp / (true + predicted)
    recall = tp / true
    return {
        "miou": iou.nanmean(-1),
        "pixel_accuracy": tp.sum(-1) / true.sum(-1),
        "mean_accuracy": recall.nanmean(-1),
        "dice_error": 1 - dice.nanmean(-1),
        **{name: iou[..., classes].nanmean(-1) for name, classes in (groups or {}).items()},
        "iou": iou,
        "precision": tp / predicted,
        "recall": recall,
        "predicted_ratio": (predicted / true).masked_fill(true == 0, torch.nan),
    }


def compute_image_scores(counts: Tensor | np.ndarray) -> dict[str, Tensor]:
    """Mean IoU by image, and of the worst images: what a sum over all images hides.

    IoU_ic is the IoU of class c in image i alone; it counts only where the class is in the truth of
    the image. (A class that is predicted where it is not lowers the IoU of the classes that are
    there.) Images without a valid pixel do not count.

    Args:
        counts: (N, 3, L), see :func:`count_per_image`.

    Returns:
        Four scores, float64 in [0, 1]; NaN without a valid pixel.

        - ``miou_i``: mean over the classes of an image, then over the images.
        - ``miou_c``: mean over the images that hold a class, then over the classes.
        - ``miou_i_worst10``: ``miou_i`` over the worst images alone, max(1, ⌊0.1 N⌋) of N.
        - ``miou_c_worst10``: ``miou_c`` with the mean of each class over the worst of its images
          alone, max(1, ⌊0.1 m⌋) of the m that hold it.

    Source: Wang et al., "Revisiting Evaluation Metrics for Semantic Segmentation: Optimization and
    Evaluation of Fine-grained Intersection over Union", NeurIPS 2023: mIoU^I, mIoU^C, and their
    mean over the lowest 10 %, with the rounding of its code, JDTLosses. (With two classes that code
    scores the second class alone; here both count.)
    """
    tp, true, predicted = torch.as_tensor(np.asarray(counts)).double().unbind(-2)
    iou = (tp / (true + predicted - tp)).masked_fill(true == 0, torch.nan)
    # Sorting puts NaN last.
    by_image = iou.nanmean(1).sort().values
    by_class = iou.sort(0).values
    return {
        "miou_i": by_image.nanmean(),
        "miou_c": by_class.nanmean(0).nanmean(),
        "miou_i_worst10": _worst(by_image[:, None]).nanmean(),
        "miou_c_worst10": _worst(by_class).nanmean(),
    }


def _worst(ordered: Tensor) -> Tensor:
    """Mean of the lowest tenth, at least one, of the numbers of each column; NaN without any.

    Args:
        ordered: (N, K), each column increasing, with NaN last.
    """
    number = (~ordered.isnan()).sum(0)
    # In integers, because 0.1 · 30 is not 3.
    worst = (number // round(1 / WORST_SHARE)).clamp_min(1)
    rank = torch.arange(len(ordered))[:, None]
    return ordered.masked_fill(rank >= worst, torch.nan).nanmean(0)


def scores_of_counts(
    counts: Tensor | np.ndarray, groups: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """All scores that follow from the pixels of each class in each image.

    Args:
        counts: (N, 3, L), see :func:`count_per_image`; of a record, see ``Run.images``.
        groups: name -> numbers of its classes, as from :func:`score_groups`.

    Returns:
        The scores of :func:`compute_scores` and :func:`compute_image_scores`, as floats and lists.
    """
    counts = np.asarray(counts)
    total = counts.sum(0, dtype=np.int64)
    return plain_scores({**compute_scores(total, groups), **compute_image_scores(counts)})


def plain_scores(scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """Scores as floats, and those of each class as lists."""
    return {name: score.tolist() for name, score in scores.items()}


def count_per_image(
    labels: Tensor, target: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Pixels of each class in each image: what a bootstrap over images resamples.

    Args:
        labels: predicted labels ``(B, *spatial)``, integers.
        target: labels ``(B, *spatial)``, 0 ... L-1 or ``ignore_index``.
        num_classes: L.

    Returns:
        int64 (B, 3, L), the true positives of each class, its true and its predicted pixels, among
        the valid pixels. Summed over images, IoU is tp / (true + predicted - tp).
    """
    valid = target != ignore_index
    image = torch.arange(len(target), device=target.device).view(-1, *[1] * (target.ndim - 1))
    true, predicted = (
        (image * num_classes + classes)[valid] for classes in (target.long(), labels.long())
    )
    counts = [
        torch.bincount(pixels, minlength=len(target) * num_classes).view(-1, num_classes)
        for pixels in (true[true == predicted], true, predicted)
    ]
    return torch.stack(counts, 1)


def boundary_counts(
    labels: Tensor,
    target: Tensor,
    num_classes: int,
    ratio: float = BOUNDARY_RATIO,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """The counts of :func:`count_per_image` on the boundaries of the segments, for boundary IoU.

    The band of a class is what an erosion of its pixels takes away: those within d of a pixel that
    is not of the class, diagonal steps counting as one; d is ``ratio`` times the diagonal of the
    image, rounded, and at least 1. Pixels outside the image are of no class; nor are ignored ones,
    in the truth and in the prediction. Summed over images, the boundary IoU of a class is
    tp / (true + predicted - tp), with tp the pixels in both of its bands: ``"miou"`` of
    :func:`compute_scores` is the mean over the classes.

    The cost does not depend on the number of classes: on one CPU core about 1 ms an image at
    96x128, and 0.1 s at 512x1024.

    Args:
        labels: predicted labels (B, H, W), integers.
        target: labels (B, H, W), 0 ... L-1 or ``ignore_index``.
        num_classes: L.
        ratio: > 0.

    Returns:
        int64 (B, 3, L).

    Raises:
        ValueError: ratio is not > 0.

    Source: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation",
    CVPR 2021, Section 4; d, and the border of the image as a boundary, as in its code.
    """
    ratio = check_number("ratio", ratio, above=0)
    d = max(1, round(ratio * math.hypot(*target.shape[-2:])))
    truth, predicted = (x.long().masked_fill(target == ignore_index, -1) for x in (target, labels))
    true_band, predicted_band = _band(truth, d), _band(predicted, d)
    image = torch.arange(len(target), device=target.device).view(-1, 1, 1)
    both = true_band & predicted_band & (truth == predicted)
    counts = [
        torch.bincount(
            (image * num_classes + classes)[chosen], minlength=len(target) * num_classes
        ).view(-1, num_classes)
        for classes, chosen in ((truth, both), (truth, true_band), (predicted, predicted_band))
    ]
    return torch.stack(counts, 1)


def _band(labels: Tensor, d: int) -> Tensor:
    """Pixels of a class (not -1) that have a pixel of another, or of none, within d: (B, H, W)."""
    smallest = largest = F.pad(labels.short(), (d, d, d, d), value=-1)
    for dim in (-1, -2):
        smallest = _running(torch.minimum, smallest, 2 * d + 1, dim)
        largest = _running(torch.maximum, largest, 2 * d + 1, dim)
    # A window that holds one label only has it as its smallest and as its largest.
    return (smallest != largest) & (labels >= 0)


def _running(function: Callable, x: Tensor, width: int, dim: int) -> Tensor:
    """Smallest or largest of ``width`` neighbours, for each place where there are so many."""
    reached = 1  # each number is that of so many neighbours
    while reached < width:
        step = min(reached, width - reached)
        length = x.shape[dim] - step
        x = function(x.narrow(dim, 0, length), x.narrow(dim, step, length))
        reached += step
    return x


def class_groups(class_counts: Sequence[int] | Tensor | np.ndarray) -> dict[str, list[int]]:
    """Head, middle and tail: thirds of the classes by their share of the training pixels.

    Head and tail have ``L // 3`` classes each, the middle takes the remainder. Equal shares are
    ordered by class number.

    Args:
        class_counts: pixels per class in the training split, (L,).

    Returns:
        ``{"head": [...], "mid": [...], "tail": [...]}``, class numbers, common ones first.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    order = counts.argsort(descending=True, stable=True).tolist()
    third = len(order) // 3
    return {
        "head": order[:third],
        "mid": order[third : len(order) - third],
        "tail": order[len(order) - third :],
    }


def score_groups(
    class_counts: Sequence[int] | Tensor | np.ndarray,
    class_images: Sequence[int] | Tensor | np.ndarray | None = None,
) -> dict[str, list[int]]:
    """The groups of classes that have scores of their own.

    Args:
        class_counts: pixels per class in the training split, (L,).
        class_images: training images that hold each class, (L,); None leaves out their groups.

    Returns:
        ``head``, ``mid`` and ``tail`` by pixels, see :func:`class_groups`; ``common`` and ``rare``:
        the classes of at least, and of less than, 1 % of the training pixels, where thirds would
        cut through a gap; and ``head_images``, ``mid_images`` and ``tail_images``: thirds by the
        number of training images that hold the class.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    rare = counts < RARE_SHARE * counts.sum()
    groups = {
        **class_groups(counts),
        "common": (~rare).nonzero().flatten().tolist(),
        "rare": rare.nonzero().flatten().tolist(),
    }
    if class_images is not None:
        by_images = class_groups(class_images)
        groups.update({f"{name}_images": classes for name, classes in by_images.items()})
    return groups
