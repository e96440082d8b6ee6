"""The chapter on the method: formulas, quotes of the library, and the interactive figure."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import papermill
import pytest
import torch
from matplotlib.colors import to_hex
from papermill.exceptions import PapermillExecutionError
from patlib.plots.method import (
    beta,
    gradient_factor,
    interactive_curves,
    plot_gradient_factor,
    plot_procedure,
    plot_released,
    plot_scaling,
    plot_size_weights,
)

from patlib.losses import ce_loss, focal_loss, pat_loss
from patlib.plots.colors import METHODS
from patlib.released import pat_ina, pat_inap

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "method.ipynb"


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def stored():
    return json.loads(NOTEBOOK.read_text())["cells"]


def glued(cells):
    """Glued key -> text of the executed cells."""
    outputs = [o for c in cells for o in c.get("outputs", [])]
    return {
        o["metadata"]["scrapbook"]["name"]: "".join(o["data"][kind]).strip("'")
        for o in outputs
        if "scrapbook" in o.get("metadata", {})
        for kind in o["data"]
    }


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
        with pytest.raises(ValueError, match=f"true_class={wrong} is not one .* 0 ... 2"):
            plot_procedure(logits, true_class=wrong)
    with pytest.raises(ValueError, match=r"logits=\[1.0\] .* two"):
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
    for cell in stored():
        for output in cell.get("outputs", []):
            if text := "".join(output.get("data", {}).get("text/markdown", "")):
                fence, where, *lines, end = text.splitlines()
                assert (fence, end) == ("```python", "```") and lines
                file, function = where.removeprefix("# ").split(", ")
                source = [line.strip() for line in (ROOT / file).read_text().splitlines()]
                assert f"def {function}(" in "".join(source)
                assert all(line in source for line in lines)
                quoted += len(lines)
    assert quoted >= 8  # Equations 1 to 5


def test_every_glued_number_of_the_text_is_stored():
    cells = stored()
    text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    used = set(re.findall(r"\{glue:text\}`([^`]+)`", text))
    assert used == set(glued(cells)) and all(key.startswith("method-") for key in used)


def test_notebook_with_other_parameters(tmp_path):
    output = tmp_path / "out.ipynb"
    parameters = dict(
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
    papermill.execute_notebook(
        NOTEBOOK, output, parameters=parameters, cwd=tmp_path, progress_bar=False
    )
    values = glued(json.loads(output.read_text())["cells"])
    p = 1 / (1 + np.exp(3) + np.exp(1))
    assert values["method-p"] == f"{p:.3f}"
    assert values["method-loss"] == f"{np.exp((0.9 - p) / 0.5) * -np.log(p) / 4:.4f}"
    assert values["method-beta-min"] == f"{np.exp(-0.2):.4f}"
    assert values["method-beta-max"] == f"{np.exp(1.8):.4f}"
    assert values["method-factor"] == f"{200 / np.e:.1f}"
    assert values["method-focal-high"] == "1e-10"


def test_notebook_stops_at_a_wrong_parameter(tmp_path):
    for parameters, message in (
        ({"temprature": 5.0}, "'temprature'. Did you mean 'temperature'"),
        ({"size": 0}, "size=0 is not allowed"),
    ):
        with pytest.raises(PapermillExecutionError, match=message):
            papermill.execute_notebook(
                NOTEBOOK, tmp_path / "out.ipynb", parameters=parameters, progress_bar=False
            )


def test_notebook_documents_its_parameters():
    command = [sys.executable, "-m", "papermill", "--help-notebook", str(NOTEBOOK)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name in ("temperature: float", "gammas: list", "true_class: int", "seed: int"):
        assert f"  {name} " in text
    assert "Unknown type" not in text


# -- the interactive figure ------------------------------------------------------------------------


def test_interactive_figure_stands_in_the_page_and_loads_nothing():
    html = interactive_curves()
    pages = [
        o["data"].get("text/html") for c in stored() for o in c.get("outputs", []) if "data" in o
    ]
    assert html in ["".join(page) for page in pages if page]
    assert set(re.findall(r"https?://[^\"' ]+", html)) == {"http://www.w3.org/2000/svg"}  # a name
    for loads in ("src=", "href=", "@import", "url(", "fetch(", "import(", "XMLHttpRequest"):
        assert loads not in html
    for method, curve in {"pat": "curve-pat", "focal": "curve-focal"}.items():
        assert f"#{curve} {{ stroke: {to_hex(METHODS[method][1])}" in html


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("no chromium and chromedriver here: the interactive figure is not tried")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "no-first-run", "disable-sync"),
        *("disable-background-networking", "disable-component-update"),
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tmp_path):
    """The figure alone in a dark page, 800 pixels wide."""
    file = tmp_path / "page.html"
    file.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>figure</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<body style="background: #111; color: #eee">{interactive_curves()}'
    )
    resize(browser, 800)
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log("browser") == []  # no error, nothing that could not be loaded


def resize(browser, width):
    metrics = dict(width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def move(browser, slider, value):
    browser.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('input', {bubbles: true}))",
        slider,
        value,
    )


def path(browser, name):
    return browser.find_element("id", f"curve-{name}").get_attribute("d")


def drawn(browser, name):
    """The curve in the units of its axes: p and value."""
    points = np.array(re.findall(r"[-\d.]+", path(browser, name)), float).reshape(-1, 2)
    frame = browser.find_element("id", "fig3c-frame")
    left, top, width, height = (
        float(frame.get_attribute(a)) for a in ("x", "y", "width", "height")
    )
    largest = float(browser.find_element("id", "fig3c-plot").get_attribute("data-y-max"))
    return (points[:, 0] - left) / width, (1 - (points[:, 1] - top) / height) * largest, largest


def test_interactive_curves_agree_with_numpy(page):
    for log_t, temperature, epsilon, gamma in (
        (1.3, 20, 0, 2),
        (-0.3, 0.5, 0, 0.5),
        (0.7, 5, -1, 5),
        (-0.7, 0.2, 1, 0),
    ):
        before = path(page, "pat"), path(page, "focal")
        move(page, "pat-T", log_t)
        move(page, "pat-epsilon", epsilon)
        move(page, "focal-gamma", gamma)
        if temperature != 20:  # what it starts with
            assert path(page, "pat") != before[0] and path(page, "focal") != before[1]
        assert page.find_element("id", "pat-T-value").text == f"{temperature:g}"
        for what, scale in (("loss", lambda p: -np.log(p)), ("coefficient", lambda p: p**0)):
            page.find_element("id", f"fig3c-{what}").click()
            p, values, largest = drawn(page, "pat")
            p = p.round(2)
            assert len(p) == (101 if what == "coefficient" else 100) and p[-1] == 1
            exact = np.exp((1 - epsilon - p) / temperature) * scale(p)
            np.testing.assert_allclose(values, exact, atol=1e-4 * largest)
            p, values, _ = drawn(page, "focal")
            p = p.round(2)
            np.testing.assert_allclose(values, (1 - p) ** gamma * scale(p), atol=1e-4 * largest)
            assert 0 <= values.min() + 1e-6 and exact.max() <= largest * (1 + 1e-9)


def test_interactive_sliders_move_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    for slider, curve, still in (
        ("pat-T", "pat", "focal"),
        ("pat-epsilon", "pat", "focal"),
        ("focal-gamma", "focal", "pat"),
    ):
        before, other = path(page, curve), path(page, still)
        page.find_element("id", slider).send_keys(Keys.ARROW_LEFT)
        assert path(page, curve) != before and path(page, still) == other
    assert page.find_element("id", "pat-T").get_attribute("aria-valuetext") == "18"
    cells = page.find_elements("css selector", "#fig3c-row-focal td")
    assert float(cells[1].text) == pytest.approx(0.5**1.9, rel=1e-3)
    assert "T = 18" in page.find_element("id", "fig3c-plot").get_attribute("aria-label")


def test_interactive_figure_is_named_and_fits_a_phone(page):
    for control in page.find_elements("css selector", "#fig3c input"):
        assert control.accessible_name
    resize(page, 390)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = page.execute_script(
        "return [...document.querySelectorAll('#fig3c *')]"
        ".filter((e) => e.getBoundingClientRect().right > 390.5).map((e) => e.tagName)"
    )
    assert wide == []
    sizes = page.execute_script(
        "return [...document.querySelectorAll('#fig3c text')].map((t) => {"
        "const m = t.getScreenCTM(); return parseFloat(getComputedStyle(t).fontSize) *"
        "Math.hypot(m.a, m.b)})"
    )
    assert len(sizes) == 12 and min(sizes) >= 12
    # It brings its own colours into a dark page.
    style = page.execute_script(
        "const s = getComputedStyle(document.getElementById('fig3c'));"
        "return [s.backgroundColor, s.color]"
    )
    assert style == ["rgb(255, 255, 255)", "rgb(27, 27, 27)"]
