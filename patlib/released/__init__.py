"""What the authors' released code computes where it differs from the paper, in our own words.

The code that was released for "PAT: Pixel-wise Adaptive Training for Long-tailed Segmentation"
(version 4, arXiv 2404.05393) trains with other losses than those that the paper cites and writes
down, and measures another mIoU than the usual one. They are here so that its numbers can be
understood and the effect of each difference be measured; none is meant for new work. The losses of
the papers are in `patlib.losses`.
"""

from .losses import (
    RELEASED_LOSSES,
    ReleasedBLV,
    ReleasedBMS,
    ReleasedCB,
    ReleasedINA,
    ReleasedINAP,
    ReleasedLDAM,
    ReleasedLoss,
    build_run_loss,
    pat_ina,
    pat_inap,
    released_blv,
    released_bms,
    released_cb,
    released_ldam,
)
from .miou import released_miou, released_miou_from_confusion

__all__ = [
    "RELEASED_LOSSES",
    "ReleasedBLV",
    "ReleasedBMS",
    "ReleasedCB",
    "ReleasedINA",
    "ReleasedINAP",
    "ReleasedLDAM",
    "ReleasedLoss",
    "build_run_loss",
    "pat_ina",
    "pat_inap",
    "released_blv",
    "released_bms",
    "released_cb",
    "released_ldam",
    "released_miou",
    "released_miou_from_confusion",
]
