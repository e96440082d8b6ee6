"""Scores of a segmentation from one confusion matrix over a whole data set."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from patlib.checks import check_integer
from patlib.data import IGNORE_INDEX
from patlib.released import released_miou_from_confusion


class SegmentationMetrics(Metric):
    """Scores over all valid pixels that ``update`` has seen.

    The state is an int64 (L, L) confusion matrix, rows truth and columns prediction, summed over
    processes. No score is an average over images or batches, except ``released_miou``.

    Args:
        num_classes: L.
        class_counts: pixels of each class in the *training* split, (L,); with them ``compute``
            also gives the scores of the head, the middle and the tail.
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
        ignore_index: int = IGNORE_INDEX,
    ):
        super().__init__()
        self.num_classes = check_integer("num_classes", num_classes, minimum=1)
        self.ignore_index = ignore_index
        self.groups = None if class_counts is None else class_groups(class_counts)
        if class_counts is not None and len(class_counts) != num_classes:
            raise ValueError(
                f"class_counts must have num_classes={num_classes} entries, got {len(class_counts)}"
            )
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
            The scores of :func:`compute_scores` (``iou`` as a list), ``released_miou`` (what the
            paper's released code calls mIoU: classes 0 to 2 only, averaged over batches), and
            ``confusion`` (L lists of L pixel counts, rows truth).
        """
        confusion = self.confusion
        counts = torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])
        scores = compute_scores(counts, self.groups)
        iou = scores.pop("iou")
        scores["released_miou"] = self.released_sum / self.released_batches
        return {
            **{name: float(score) for name, score in scores.items()},
            "iou": iou.tolist(),
            "confusion": confusion.tolist(),
        }


def compute_scores(
    counts: Tensor | np.ndarray, groups: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """All scores that follow from the pixels of each class; a new score is added here.

    Args:
        counts: (..., 3, L) of true positives, true and predicted pixels of each class, summed over
            images, such as the sum of :func:`count_per_image` over the images.
        groups: name -> numbers of its classes, as from :func:`class_groups`.

    Returns:
        float64 tensors in [0, 1]. ``iou`` (..., L); NaN for a class in neither truth nor
        prediction, which every mean leaves out. Of shape (...): ``miou``; ``pixel_accuracy``;
        ``mean_accuracy`` (mean recall of the classes in the truth); ``dice_error`` (1 - mean Dice;
        not comparable with the paper's undefined "Dice Err"); and for each group the mean IoU of
        its classes.
    """
    tp, true, predicted = torch.as_tensor(counts).double().unbind(-2)
    iou = tp / (true + predicted - tp)  # 0 / 0 is NaN
    dice = 2 * tp / (true + predicted)
    return {
        "miou": iou.nanmean(-1),
        "pixel_accuracy": tp.sum(-1) / true.sum(-1),
        "mean_accuracy": (tp / true).nanmean(-1),
        "dice_error": 1 - dice.nanmean(-1),
        **{name: iou[..., classes].nanmean(-1) for name, classes in (groups or {}).items()},
        "iou": iou,
    }


def count_per_image(
    labels: Tensor, target: Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX
) -> Tensor:
    """Pixels of each class in each image: what a bootstrap over images resamples.

    Args:
        labels: predicted labels ``(B, *spatial)``, integers.
        target: labels ``(B, *spatial)``, 0 ... L-1 or ``ignore_index``.
        num_classes: L.

    Returns:
        The true positives of each class, its true and its predicted pixels among the valid ones,
        int64 (B, 3, L). Summed over images, IoU is tp / (true + predicted - tp).
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
