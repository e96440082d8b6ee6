"""Which loss for one's own images: survey, plan, comparison, report.

The notebook ``own_images`` and the command ``patlib compare`` go through these steps.
"""

from patlib.own_images.comparison import (
    Comparison,
    compare,
    finished_runs,
    keep_best,
    load_trained,
    score_table,
    train_all,
    verdict,
)
from patlib.own_images.demo import write_folder
from patlib.own_images.folder import Survey, notes, survey
from patlib.own_images.plan import CANDIDATES, Plan, check_losses, make_plan, shared_settings
from patlib.own_images.report import as_markdown, make_figures, summary_table, write_report

__all__ = [
    "CANDIDATES",
    "Comparison",
    "Plan",
    "Survey",
    "as_markdown",
    "check_losses",
    "compare",
    "finished_runs",
    "keep_best",
    "load_trained",
    "make_figures",
    "make_plan",
    "notes",
    "score_table",
    "shared_settings",
    "summary_table",
    "survey",
    "train_all",
    "verdict",
    "write_folder",
    "write_report",
]
