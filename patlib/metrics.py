"""Scores of a segmentation from one confusion matrix over a whole data set."""

import math

import torch
from torchmetrics import Metric

from patlib.data import IGNORE_INDEX
from patlib.released import released_miou_from_confusion


class SegmentationMetrics(Metric):
    """Per-class IoU and its means over all valid pixels that ``update`` has seen.

    The one state is an int64 (L, L) confusion matrix, rows truth and columns prediction, summed
    over processes. No score is an average over images or batches, except ``released_miou``.

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

    def __init__(self, num_classes: int, class_counts=None, ignore_index: int = IGNORE_INDEX):
        super().__init__()
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes={num_classes!r} is not allowed: it takes at least 1")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.groups = None if class_counts is None else class_groups(class_counts)
        if self.groups and sum(map(len, self.groups.values())) != num_classes:
            raise ValueError(
                f"class_counts has {len(class_counts)} entries, num_classes is {num_classes}"
            )
        zeros = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.add_state("confusion", zeros, dist_reduce_fx="sum")
        zero = torch.zeros((), dtype=torch.float64)
        self.add_state("released_sum", zero, dist_reduce_fx="sum")
        self.add_state("released_batches", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Count a batch.

        Args:
            prediction: logits ``(B, L, *spatial)`` of a floating type, or labels
                ``(B, *spatial)`` of an integer type.
            target: labels ``(B, *spatial)``, integers 0 ... L-1 or ``ignore_index``.
        """
        if prediction.is_floating_point():
            if prediction.ndim < 2 or prediction.shape[1] != self.num_classes:
                raise ValueError(
                    f"logits of shape {tuple(prediction.shape)} do not fit num_classes="
                    f"{self.num_classes}: expected (B, {self.num_classes}, *spatial)"
                )
            prediction = prediction.argmax(1)
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} "
                "do not have the same shape"
            )
        valid = target != self.ignore_index
        truth, predicted = target[valid].long(), prediction[valid].long()
        for name, labels in (("target", truth), ("prediction", predicted)):
            if labels.numel() and (labels.min() < 0 or labels.max() >= self.num_classes):
                raise ValueError(
                    f"{name} has label {int(labels.min())} ... {int(labels.max())}, allowed are "
                    f"0 ... {self.num_classes - 1}"
                )
        cells = torch.bincount(truth * self.num_classes + predicted, minlength=self.num_classes**2)
        confusion = cells.view(self.num_classes, self.num_classes)
        self.confusion += confusion
        released = float(released_miou_from_confusion(confusion, min(3, self.num_classes)))
        if not math.isnan(released):  # NaN: none of its three classes is in this batch
            self.released_sum += released
            self.released_batches += 1

    def compute(self) -> dict:
        """The scores, as floats in [0, 1].

        Returns:
            ``iou`` (list of L; NaN for a class in neither truth nor prediction, which every mean
            leaves out), ``miou``, ``pixel_accuracy``, ``mean_accuracy`` (mean recall of the
            classes in the truth), ``dice_error`` (1 - mean Dice; not comparable with the paper's
            undefined "Dice Err"), ``released_miou`` (what the paper's released code calls mIoU:
            classes 0 to 2 only, averaged over batches), and with ``class_counts`` also ``head``,
            ``mid`` and ``tail``: mean IoU of these classes (:func:`class_groups`).
        """
        confusion = self.confusion.double()
        hit, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
        iou = hit / (truth + predicted - hit)  # 0 / 0 is NaN: the class is nowhere
        dice = 2 * hit / (truth + predicted)
        scores = {
            "miou": iou.nanmean(),
            "pixel_accuracy": hit.sum() / truth.sum(),
            "mean_accuracy": (hit / truth).nanmean(),
            "dice_error": 1 - dice.nanmean(),
            "released_miou": self.released_sum / self.released_batches,
            **{name: iou[classes].nanmean() for name, classes in (self.groups or {}).items()},
        }
        return {**{name: float(score) for name, score in scores.items()}, "iou": iou.tolist()}


def count_per_image(
    labels: torch.Tensor, target: torch.Tensor, num_classes: int, ignore_index: int = IGNORE_INDEX
) -> torch.Tensor:
    """Pixels of each class in each image: what a bootstrap over images resamples.

    Args:
        labels: predicted labels ``(B, *spatial)``, integers.
        target: labels ``(B, *spatial)``, 0 ... L-1 or ``ignore_index``.
        num_classes: L.

    Returns:
        int64 (B, 3, L), the pixels of the class that are found (true and predicted), true, and
        predicted, among the valid ones. Summed over images, IoU is found / (true + predicted -
        found).
    """
    valid = target != ignore_index
    image = torch.arange(len(target), device=target.device).view(-1, *[1] * (target.ndim - 1))
    true, predicted = (
        (image * num_classes + classes)[valid] for classes in (target.long(), labels.long())
    )
    counts = [
        torch.bincount(cells, minlength=len(target) * num_classes).view(-1, num_classes)
        for cells in (true[true == predicted], true, predicted)
    ]
    return torch.stack(counts, 1)


def class_groups(class_counts) -> dict[str, list[int]]:
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
