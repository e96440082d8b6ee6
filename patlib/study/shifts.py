"""Scores of finished runs under shifts of their logits: from the counts, without the networks.

What a shift is: :mod:`patlib.priors`. Each run holds its counts over a grid of them, on its test
and validation images, see :func:`patlib.train`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from patlib.checks import check_choice
from patlib.metrics import score_groups, scores_of_counts
from patlib.priors import KINDS
from patlib.study.runs import Run

SCORES = ("miou", "pixel_accuracy", "head", "mid", "tail", "miou_i", "miou_c")


def shifted_counts(run: Run, kind: str, strength: float, split: str = "test") -> np.ndarray:
    """The counts of a run under a shift, int64 (N, 3, L): true positives, true, predicted pixels.

    Raises:
        ValueError: the run was not counted under this shift.
    """
    return _under(_read(run, split), kind, strength)


def _read(run: Run, split: str) -> tuple[list, np.ndarray, np.ndarray, np.ndarray]:
    """The shifts of a run, (kind, strength) each; its counts, and two of the three under each."""
    prefix = "" if check_choice("split", split, ("test", "validation")) == "test" else f"{split}_"
    names = (f"{prefix}counts", f"{prefix}shifted_tp", f"{prefix}shifted_predicted")
    try:
        kept = run.images(("shift_kinds", "shift_strengths", *names))
    except KeyError as error:
        raise ValueError(f"{run.planned.name} was made before 0.2.0 and has no shifts") from error
    shifts = list(zip(kept["shift_kinds"].tolist(), kept["shift_strengths"].tolist(), strict=True))
    return shifts, *(kept[name] for name in names)


def _under(read: tuple, kind: str, strength: float) -> np.ndarray:
    """The counts under a shift, from what :func:`_read` gives: see :func:`shifted_counts`."""
    shifts, counts, tp, predicted = read
    if not strength:  # unshifted, of either kind
        return counts.astype(np.int64)
    number = shifts.index(check_choice("shift", (kind, strength), shifts))
    return np.stack([tp[number], counts[:, 1], predicted[number]], 1).astype(np.int64)


def shift_curve(runs: Sequence[Run], kind: str, split: str = "test") -> pd.DataFrame:
    """The mean scores of runs of one method under all shifts of a kind.

    Args:
        runs: of one method, with their records.
        kind: ``"tau"`` or ``"kappa"``.
        split: ``"test"`` or ``"validation"``.

    Returns:
        Columns ``strength``, in increasing order, and ``SCORES``: means over the runs, in [0, 1].
        Empty if the loss has no prior to be moved from.
    """
    check_choice("kind", kind, KINDS)
    rows = []
    for run in runs:
        read = _read(run, split)  # once for all shifts: reading takes longer than scoring
        strengths = [strength for of, strength in read[0] if of == kind]
        groups = score_groups(run.record.result["class_counts"], run.class_images)
        for strength in sorted({0.0, *strengths}) if strengths else ():
            found = scores_of_counts(_under(read, kind, strength), groups)
            rows.append({"strength": strength, **{name: found[name] for name in SCORES}})
    if not rows:
        return pd.DataFrame(columns=["strength", *SCORES])
    return pd.DataFrame(rows).groupby("strength", as_index=False).mean()


def best_shift(runs: Sequence[Run]) -> tuple[str, float]:
    """The shift that validation chooses for a method: kind and strength.

    The highest validation mIoU, the mean over the runs; of equals the smallest shift.
    """
    candidates = []
    for kind in KINDS:
        curve = shift_curve(runs, kind, "validation")
        candidates += [
            (miou, -abs(strength), kind, strength)
            for miou, strength in zip(curve.miou, curve.strength, strict=True)
        ]
    *_, kind, strength = max(candidates, key=lambda c: c[:2])
    return kind, strength


def excess(curve: pd.DataFrame, miou: float, tail: float) -> float:
    """By how much a pair of scores is outside what a curve of shifts reaches.

    The smallest δ such that a point of the curve has a mIoU of at least ``miou`` - δ and a tail of
    at least ``tail`` - δ. Positive: no shift reaches the pair; negative: one is above it in both.

    Args:
        curve: of :func:`shift_curve`; between its shifts the scores are interpolated linearly.
        miou, tail: the pair.
    """
    at = np.linspace(0, len(curve) - 1, 100 * (len(curve) - 1) + 1)
    reached = (np.interp(at, np.arange(len(curve)), curve[name]) for name in ("miou", "tail"))
    short = [target - scores for target, scores in zip((miou, tail), reached, strict=True)]
    return float(np.maximum(*short).min())
