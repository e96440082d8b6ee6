"""Colours and markers that mean the same in every figure."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb

# Neighbours differ in lightness as well as in hue, so that they can be told apart in grey and by
# colour-blind readers.
PALETTE = (
    *("#56b4e9", "#7a3b10", "#bdbdbd", "#0b6e4f", "#f0e442", "#332288", "#ee8866", "#882255"),
    *("#a6dba0", "#1b1b1b", "#f7b6d2", "#005f9e", "#d9c27e", "#a6197c", "#8dd3c7", "#5c5c5c"),
    *("#fff7bc", "#7f2704", "#c2a5cf", "#00441b"),
)
# The same thing has the same colour in every data set that knows it.
_NAMED = {
    name: PALETTE[number]
    for number, names in enumerate(
        [
            *(["sky"], ["building"], ["road"], ["tree", "vegetation"], ["sign", "traffic sign"]),
            *(["car"], ["pavement", "sidewalk"], ["pedestrian", "person"], ["terrain", "grass"]),
            *(["pole"], ["bicyclist", "rider", "cyclist"], ["water"], ["fence"]),
        ]
    )
    for name in names
}
IGNORED_COLOR = "#ffffff"
GROUP_COLORS = {"head": "#332288", "mid": "#44aa99", "tail": "#ee8866"}
GROUP_HATCHES = {"head": "", "mid": "//", "tail": "xx"}


def class_colors(class_names: Sequence[str]) -> list[str]:
    """A colour for each class: by its name where that is known, else the next one that is free.

    All are different up to twenty classes; beyond, they repeat.
    """
    colors: list[str | None] = []
    for name in class_names:
        color = _NAMED.get(name)
        colors.append(None if color in colors else color)
    free = [color for color in PALETTE if color not in colors]
    for number, color in enumerate(colors):
        if color is None:
            colors[number] = free.pop(0) if free else PALETTE[number % len(PALETTE)]
    return colors


def label_colors(labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Label map (H, W) to RGB uint8 (H, W, 3): the colours of the classes, ignored pixels white."""
    lookup = np.full((256, 3), 255, np.uint8)
    for label, color in enumerate([*class_colors(class_names)]):
        lookup[label] = np.round(255 * np.array(to_rgb(color)))
    lookup[255] = np.round(255 * np.array(to_rgb(IGNORED_COLOR)))
    return lookup[np.asarray(labels, np.uint8)]
