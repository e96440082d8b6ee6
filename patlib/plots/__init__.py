"""The figures of the notebooks. Every function returns a matplotlib figure."""

from patlib.plots.colors import (
    GROUP_COLORS,
    GROUP_HATCHES,
    METHODS,
    class_colors,
    label_colors,
)
from patlib.plots.panels import plot_panels
from patlib.plots.run import plot_curves, plot_iou
from patlib.plots.shares import plot_class_shares

__all__ = [
    "GROUP_COLORS",
    "GROUP_HATCHES",
    "METHODS",
    "class_colors",
    "label_colors",
    "plot_class_shares",
    "plot_curves",
    "plot_iou",
    "plot_panels",
]
