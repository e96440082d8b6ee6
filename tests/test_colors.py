"""Colours of methods stay apart for colour-blind readers: simulated, and measured in CIE L*a*b*."""

import numpy as np
import pytest
from chapters import figures  # noqa: F401 (the folder of the book's figures is on the path)
from figures import first_page
from matplotlib.colors import to_rgb

from patlib.losses import LOSSES
from patlib.plots import method_styles

# Machado, Oliveira and Fernandes 2009, severity 1, for linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
PAPER = ("ce", "focal", "cb", "cb_focal", "bms", "ldam", "blv", "pat")
VARIANTS = ("1/√S", "PAT with presence", "CE, median frequency", "CE + Jaccard")


def lab(color, sight):
    """CIE L*a*b* (D65) of a colour as somebody sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(SIGHT[sight] @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colors, sight):
    """The smallest distance between two of the colours, and which they are."""
    seen = {name: lab(color, sight) for name, color in colors.items()}
    pairs = [(a, b) for a in seen for b in seen if a < b]
    return min((np.linalg.norm(seen[a] - seen[b]), a, b) for a, b in pairs)


def test_the_conversion_knows_white_and_grey():
    for sight in SIGHT:
        np.testing.assert_allclose(lab("#ffffff", sight), [100, 0, 0], atol=0.5)
        assert abs(lab("#777777", sight)[1:]).max() < 0.5
    # Red and green of one lightness come closer for those who see no red.
    red_green = {"red": "#cc3311", "green": "#777711"}
    assert nearest(red_green, "protanopia")[0] < 0.5 * nearest(red_green, "normal")[0]


@pytest.mark.parametrize("sight", SIGHT)
def test_methods_that_are_shown_together_can_be_told_apart(sight):
    methods = [LOSSES[name].label for name in PAPER]
    for shown in (methods, [*methods, *VARIANTS]):
        colors, markers = method_styles(shown)
        assert len(set(markers.values())) == len(shown)
        distance, *pair = nearest(colors, sight)
        assert distance > 20, (distance, pair)
        assert max(lab(color, sight)[0] for color in colors.values()) < 85  # on white
    data = dict(zip("abcd", first_page.COLORS, strict=True))
    assert nearest(data, sight)[0] > 20


def test_a_variant_looks_the_same_whatever_stands_beside_it():
    name = "CE, median frequency"
    alone, among = (method_styles(of) for of in (["CE", name], ["CE", "CE + Jaccard", "x", name]))
    assert alone[0][name] == among[0][name] and alone[1][name] == among[1][name]
    assert len(set(among[0].values())) == 4


def test_methods_of_a_series_go_from_dark_to_light():
    colors, _ = method_styles(["T = 5", "T = 10", "T = 20", "T = 50"])
    lightness = [lab(color, "normal")[0] for color in colors.values()]
    assert lightness == sorted(lightness)
