"""Evaluation: one pass over a split gives the counts of each image, and from them every score."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from patlib.batches import SplitTensors
from patlib.data import IGNORE_INDEX
from patlib.metrics import (
    SegmentationMetrics,
    boundary_counts,
    compute_image_scores,
    compute_scores,
    count_per_image,
    plain_scores,
    scores_of_counts,
)
from patlib.priors import KINDS


class Evaluation(NamedTuple):
    """What one pass over a split of N images gives.

    Attributes:
        scores: see :meth:`patlib.metrics.SegmentationMetrics.compute` and
            :func:`patlib.metrics.compute_image_scores`; with ``boundaries`` also ``boundary_iou``.
        counts: int32 (N, 3, L), see :func:`patlib.metrics.count_per_image`.
        labels: predicted labels of the images asked for, uint8 (K, H, W).
        shifted: true positives and predicted pixels of each class under each shift, int32
            (S, N, 2, L); None without shifts.
        boundaries: int32 (N, 3, L), see :func:`patlib.metrics.boundary_counts`; None if not asked
            for.
    """

    scores: dict[str, Any]
    counts: np.ndarray
    labels: np.ndarray
    shifted: np.ndarray | None = None
    boundaries: np.ndarray | None = None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: SplitTensors,
    batch_size: int,
    metrics: SegmentationMetrics,
    shown: Sequence[int] = (),
    shifts: Tensor | None = None,
    boundaries: bool = False,
) -> Evaluation:
    """Score a network on a split, in one pass.

    Where several processes take part, each labels its share of the batches, and all return the
    same.

    Args:
        model: the network itself, not wrapped for several devices. Its mode is kept.
        images: the split.
        batch_size: images at a time.
        metrics: what counts; on the device of the model.
        shown: numbers of the images whose predicted labels are returned, in increasing order.
        shifts: (S, L); the pixels are also counted under the labels argmax(logits - shift) of each,
            such as :meth:`patlib.priors.ClassPriors.shift` gives. ``scores``, ``counts`` and
            ``labels`` are those without shift.
        boundaries: also count the boundaries of the segments.
    """
    distributed = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    ranks = torch.distributed.get_world_size() if distributed else 1
    found = {}  # number of the image -> what is counted in it
    labels = {}
    was_training = model.training
    model.eval()
    for index in torch.arange(len(images)).split(batch_size)[rank::ranks]:
        image, target = images.batch(index)
        logits = model(image)
        predicted = logits.argmax(1)
        metrics.update(predicted, target)
        numbers = index.tolist()
        of_classes = metrics.num_classes, metrics.ignore_index
        parts = {"counts": count_per_image(predicted, target, *of_classes)}
        if shifts is not None:
            parts["shifted"] = count_shifted(logits, target, shifts, *of_classes)
        if boundaries:
            parts["boundaries"] = boundary_counts(
                predicted, target, metrics.num_classes, ignore_index=metrics.ignore_index
            )
        counted = {name: part.int().cpu().numpy() for name, part in parts.items()}
        for i, number in enumerate(numbers):
            found[number] = {name: part[i] for name, part in counted.items()}
        for i in set(shown).intersection(numbers):
            labels[i] = predicted[i - numbers[0]].to("cpu", torch.uint8).numpy()
    model.train(was_training)
    if distributed:
        gathered = [None] * ranks
        torch.distributed.all_gather_object(gathered, (found, labels))
        found, labels = ({k: v for part in gathered for k, v in part[i].items()} for i in (0, 1))
    arrays = {name: np.stack([found[i][name] for i in range(len(images))]) for name in found[0]}
    scores = {**metrics.compute(), **plain_scores(compute_image_scores(arrays["counts"]))}
    if shifts is not None:
        arrays["shifted"] = arrays["shifted"].swapaxes(0, 1)
    if boundaries:
        total = arrays["boundaries"].sum(0, dtype=np.int64)
        scores["boundary_iou"] = float(compute_scores(total)["miou"])
    height, width = images.masks.shape[1:]
    kept = np.stack([labels[i] for i in shown]) if len(shown) else np.empty((0, height, width))
    return Evaluation(scores, labels=kept.astype(np.uint8), **arrays)


def count_shifted(
    logits: Tensor,
    target: Tensor,
    shifts: Tensor,
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor:
    """Pixels of each class in each image under the labels argmax(logits - shift) of each shift.

    Args:
        logits: (B, L, H, W).
        target: (B, H, W), 0 ... L-1 or ``ignore_index``.
        shifts: (S, L).
        num_classes: L.

    Returns:
        int64 (B, S, 2, L), among the valid pixels: true positives, and predicted pixels.
    """
    valid = target != ignore_index
    x = logits.permute(0, 2, 3, 1)[valid].float()
    image = torch.arange(len(target), device=target.device)[:, None, None]
    # The place of a pixel's label in the counts of all images.
    first = (image * num_classes).expand_as(target)[valid]
    true = first + target[valid]
    counts = []
    for shift in shifts.to(x):
        predicted = first + (x - shift).argmax(1)
        counts += [
            torch.bincount(pixels, minlength=len(target) * num_classes).view(-1, num_classes)
            for pixels in (true[true == predicted], predicted)
        ]
    return torch.stack(counts, 1).view(len(target), len(shifts), 2, num_classes)


def choose_shifts(
    grid: Sequence[Mapping[str, float]],
    validation: Evaluation,
    test: Evaluation,
    groups: Mapping[str, Sequence[int]],
) -> dict[str, dict[str, Any]]:
    """Of the shifts of each kind, and of all, the one with the best validation mIoU.

    To be unshifted is a choice of every kind; among equals the smallest shift is taken.

    Args:
        grid: the shifts, ``{kind: strength}``.
        validation, test: scored with these shifts.
        groups: see :func:`patlib.metrics.score_groups`.

    Returns:
        By ``"tau"``, ``"kappa"`` (if the grid has it) and ``"any"``: the ``prior_shift``, and its
        scores on ``validation`` and ``test``, as :func:`patlib.metrics.scores_of_counts` has them.
    """

    def scores(evaluation: Evaluation, number: int) -> dict[str, Any]:
        counts = evaluation.counts.copy()
        counts[:, [0, 2]] = evaluation.shifted[number]
        return scores_of_counts(counts, groups)

    miou = {i: scores(validation, i)["miou"] for i in range(len(grid))}
    unshifted = next(i for i, shift in enumerate(grid) if not any(shift.values()))
    of_kinds = {kind: [i for i, shift in enumerate(grid) if kind in shift] for kind in KINDS}
    candidates = {
        **{kind: of_kind for kind, of_kind in of_kinds.items() if of_kind},
        "any": [*miou],
    }
    chosen = {}
    for name, numbers in candidates.items():
        by_size = sorted(numbers, key=lambda i: abs(*grid[i].values()))
        best = max([unshifted, *by_size], key=lambda i: np.nan_to_num(miou[i], nan=-1))
        strength = next(iter(grid[best].values()))
        chosen[name] = {
            "prior_shift": dict(grid[best]) if name == "any" else {name: strength},
            "validation": scores(validation, best),
            "test": scores(test, best),
        }
    return chosen


def smallest_unsigned(counts: np.ndarray) -> np.ndarray:
    """The same numbers in the smallest unsigned type that holds them."""
    return counts.astype(np.min_scalar_type(int(counts.max())))
