"""The chapter on the method: formulas, quotes of the library, and the interactive figure."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from chapters import ROOT, Chapter, outputs
from figures.method import (
    beta,
    gradient_factor,
    interactive_curves,
    plot_gradient_factor,
    plot_procedure,
    plot_released,
    plot_scaling,
    plot_size_weights,
    quote,
)

from patlib.data import build_dataset
from patlib.losses import LOSSES, ce_loss, focal_loss, pat, pat_loss
from patlib.released import pat_ina, pat_inap


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def pixels(p, num_classes=3):
    """Logits (P, L) of pixels whose class 0 has the probabilities p, and their targets."""
    p = torch.tensor(p, dtype=torch.float64)
    rest = ((1 - p) / (num_classes - 1)).log().unsqueeze(1).expand(-1, num_classes - 1)
    return torch.cat([p.log().unsqueeze(1), rest], 1), torch.zeros(len(p), dtype=torch.int64)


def curves(axis):
    return {line.get_label(): line.get_data() for line in axis.get_lines()}


def test_curves_are_what_the_library_computes():
    figure = plot_scaling([0.5, 20], [2], epsilon=0.25)
    coefficients, zoomed = map(curves, figure.axes[:2])
    x = coefficients["PAT, T = 20"][0]
    inner = slice(1, -1)
    logits, target = pixels(x[inner])
    ce = ce_loss(logits, target, reduction="none").numpy()
    pat = dict(epsilon=0.25, size_exponent=0, reduction="none")
    expected = {
        "PAT, T = 0.5": pat_loss(logits, target, temperature=0.5, **pat).numpy(),
        "PAT, T = 20": pat_loss(logits, target, temperature=20, **pat).numpy(),
        "Focal, γ = 2": focal_loss(logits, target, gamma=2, reduction="none").numpy(),
    }
    assert set(coefficients) == set(zoomed) == {*expected, "CE"}
    drawn = dict(zip(expected, figure.axes[2].get_lines(), strict=False))
    for name, loss in expected.items():
        for panel in (coefficients, zoomed):
            np.testing.assert_allclose(panel[name][1][inner], loss / ce, rtol=1e-9)
        of_p, value = drawn[name].get_data()
        np.testing.assert_allclose(of_p[:-1], x[inner])
        np.testing.assert_allclose(value, [*loss, 0], rtol=1e-9, atol=1e-12)  # 0 at p = 1
    assert x[0] == 0 and x[-1] == 1
    with pytest.raises(ValueError, match="PAT, T: at most 5 curves, got 6"):
        plot_scaling([1, 2, 3, 4, 5, 6], [])


def test_range_of_beta():
    for temperature, epsilon in ((20, 0), (0.5, 0.3), (5, -1)):
        values = beta(np.linspace(0, 1, 1001), temperature, epsilon)
        assert values.max() == values[0] == pytest.approx(np.exp((1 - epsilon) / temperature))
        assert values.min() == values[-1] == pytest.approx(np.exp(-epsilon / temperature))
    assert round(float(beta(0, 20)), 4) == 1.0513 and beta(1, 20) == 1


@pytest.mark.parametrize("temperature", [0.3, 20])
def test_gradient_factor_is_that_of_autograd(temperature):
    p = np.linspace(0.001, 0.999, 101)
    logits, target = pixels(p)
    grads = {}
    for detach in (False, True):
        x = logits.clone().requires_grad_()
        options = dict(detach=detach, size_exponent=0, reduction="sum")
        pat_loss(x, target, temperature=temperature, **options).backward()
        grads[detach] = x.grad.numpy()
    ratio = np.linalg.norm(grads[False], axis=1) / np.linalg.norm(grads[True], axis=1)
    np.testing.assert_allclose(gradient_factor(p, temperature), ratio, rtol=1e-9)
    cosine = (grads[False] * grads[True]).sum(1) / (
        np.linalg.norm(grads[False], axis=1) * np.linalg.norm(grads[True], axis=1)
    )
    np.testing.assert_allclose(cosine, 1)
    assert gradient_factor([0, 1], temperature).tolist() == [1, 1]
    most = gradient_factor(np.exp(-1), temperature)
    assert most == pytest.approx(1 + 1 / (np.e * temperature)) and most >= ratio.max()
    (axis,) = plot_gradient_factor([temperature]).axes
    x, y = curves(axis)[f"T = {temperature:g}"]
    np.testing.assert_allclose(y[1:-1], 1 - x[1:-1] * np.log(x[1:-1]) / temperature)


def test_procedure_shows_the_steps():
    logits, size = [0.5, -1.0, 3.0], 7
    axes = plot_procedure(logits, true_class=1, temperature=2, epsilon=0.1, size=size).axes
    widths = [[bar.get_width() for bar in axis.patches] for axis in axes]
    p = np.exp(logits) / np.exp(logits).sum()
    b = np.exp((1 - p - 0.1) / 2)
    np.testing.assert_allclose(widths[0], logits)
    np.testing.assert_allclose(widths[1], p)
    np.testing.assert_allclose(widths[2], b)
    np.testing.assert_allclose(widths[3], [0, -np.log(p[1]) * b[1] / size, 0])
    assert "T = 2, ε = 0.1" in axes[2].get_title(loc="left")
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"true_class must be one of 0, 1, 2, got {wrong}"):
            plot_procedure(logits, true_class=wrong)
    with pytest.raises(ValueError, match=r"logits must be two numbers or more, got \[1.0\]"):
        plot_procedure([1.0], true_class=0)


def test_released_curves_are_what_the_released_losses_compute():
    (axis,) = plot_released(20, [3, 13]).axes
    lines = curves(axis)
    assert len(lines) == 4
    inner = np.linspace(0.01, 0.99, 7)
    for name, released, num_classes in (
        ("released inap", pat_inap, 5),
        ("released ina, L = 3", pat_ina, 3),
        ("released ina, L = 13", pat_ina, 13),
    ):
        for p in inner:
            logits, target = pixels([p], num_classes)
            coefficient = released(logits, target).item() * num_classes / -np.log(p)
            drawn = np.exp(np.interp(p, lines[name][0], np.log(lines[name][1])))
            assert drawn == pytest.approx(coefficient, rel=1e-9)
    np.testing.assert_allclose(lines["Eq. (5), T = 20"][1], np.exp((1 - lines[name][0]) / 20))
    with pytest.raises(ValueError, match="at most 3 curves, got 4"):
        plot_released(20, [1, 2, 3, 4])


def test_size_weights_of_a_class_sum_to_one():
    mask = np.array([[0, 0, 0, 1], [255, 0, 2, 2]], np.uint8)
    figure = plot_size_weights(mask, ["sky", "road", "car"])
    weight = np.asarray(figure.axes[1].images[0].get_array().filled(np.nan))
    for c in range(3):
        assert weight[mask == c].sum() == pytest.approx(1)
    assert np.isnan(weight[1, 0]) and weight[0, 3] == 1
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["sky: 4", "road: 1", "car: 2"]


def test_quoted_lines_stand_in_the_library():
    quoted = 0
    for output in outputs("method"):
        if text := "".join(output.get("data", {}).get("text/markdown", "")):
            fence, where, *lines, end = text.splitlines()
            assert (fence, end) == ("```python", "```") and lines
            file, function = where.removeprefix("# ").split(", ")
            source = [line.strip() for line in (ROOT / file).read_text().splitlines()]
            assert f"def {function}(" in "".join(source)
            assert all(line.strip() in source for line in lines)
            quoted += len(lines)
    assert quoted >= 8  # Equations 1 to 5


def test_quotes_are_code_without_docstring():
    lines = quote(pat.size_weights).data.splitlines()
    assert lines[1] == "# patlib/losses/pat.py, size_weights" and len(lines) == 4
    assert lines[2].startswith("return class_sizes")
    (line,) = quote(pat.beta, "Eq. (5)").data.splitlines()[2:-1]
    assert line.startswith("return torch.exp(")
    with pytest.raises(AssertionError, match="no comment on Eq. .6."):
        quote(pat.pat_loss, "Eq. (6)")


def test_page_with_other_parameters():
    page = Chapter(
        "method",
        temperature=0.5,
        epsilon=0.1,
        gamma=5.0,
        temperatures=[0.3, 2],
        gammas=[3],
        logits=[0, 3, 1],
        true_class=0,
        size=4,
        seed=3,
    )
    values = page.glued
    p = 1 / (1 + np.exp(3) + np.exp(1))
    assert values["method-p"] == f"{p:.3f}"
    assert values["method-loss"] == f"{np.exp((0.9 - p) / 0.5) * -np.log(p) / 4:.4f}"
    assert values["method-beta-min"] == f"{np.exp(-0.2):.4f}"
    assert values["method-beta-max"] == f"{np.exp(1.8):.4f}"
    assert values["method-factor"] == f"{200 / np.e:.1f}"
    assert values["method-focal-high"] == "1e-10"
    # Those of the paper's tables, T = 20, stay; and the scene is the one whose pixels are counted.
    assert (values["method-tables-T"], values["method-tables-spread"]) == ("20", "5.1")
    scene = page.space["mask"].shape
    assert values["method-scene"] == f"{scene[0]} x {scene[1]}"
    assert scene == tuple(build_dataset("synthetic")[3][1].shape)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temprature": 5.0}, "has no parameter 'temprature' .did you mean 'temperature'"),
        ({"size": 0}, "size must be an integer >= 1, got 0"),
    ],
)
def test_page_refuses_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Chapter("method", only=[], **parameters)


# -- the interactive figure ------------------------------------------------------------------------


def test_interactive_figure_stands_in_the_page_and_loads_nothing():
    html = interactive_curves()
    assert html in ["".join(o.get("data", {}).get("text/html", "")) for o in outputs("method")]
    assert set(re.findall(r"https?://[^\"' ]+", html)) == {"http://www.w3.org/2000/svg"}  # a name
    for loads in ("src=", "href=", "@import", "url(", "fetch(", "import(", "XMLHttpRequest"):
        assert loads not in html
    for method, curve in {"pat": "curve-pat", "focal": "curve-focal"}.items():
        assert f"#{curve} {{ stroke: {LOSSES[method].color}" in html
