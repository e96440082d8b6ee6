"""Figures of a run and of runs compared. Every function returns a matplotlib figure."""

from patlib.plots.colors import (
    GROUP_COLORS,
    GROUP_HATCHES,
    class_colors,
    label_colors,
)
from patlib.plots.comparison import (
    method_styles,
    plot_class_iou,
    plot_differences,
    plot_predictions,
    plot_runs,
    plot_scores,
    plot_validation,
)
from patlib.plots.panels import plot_panels
from patlib.plots.run import plot_curves, plot_iou
from patlib.plots.shares import plot_class_shares

__all__ = [
    "GROUP_COLORS",
    "GROUP_HATCHES",
    "class_colors",
    "label_colors",
    "method_styles",
    "plot_class_iou",
    "plot_class_shares",
    "plot_curves",
    "plot_differences",
    "plot_iou",
    "plot_panels",
    "plot_predictions",
    "plot_runs",
    "plot_scores",
    "plot_validation",
]
