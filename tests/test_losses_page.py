"""The chapter on the losses as a family: weights against formulas and finite differences."""

import ast
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from chapters import ROOT, Chapter, cells, source, stored_glue, stored_tables
from figures import losses as chapter
from figures.losses import Member, Setting, plot_priors, plot_weights, weight, weights_along

from patlib.losses import LOSSES, build_loss
from patlib.study.grids import load_grid

SMALL = Setting(num_classes=3, side=10, in_image=0.1, in_dataset=0.02, elsewhere=0.9)
FAMILY = {member.label: member for member in chapter.family(temperature=5.0, gamma=1.5)}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def by_confidence(label, setting=SMALL):
    """p and weights, relative to each other only."""
    return chapter.weight_by_confidence(FAMILY[label], setting)


def alike(weights, expected, p):
    """The page divides by the interpolated weight at 1/2; here by that of the middle pixel."""
    middle = len(p) // 2
    np.testing.assert_allclose(weights / weights[middle], expected / expected[middle], rtol=1e-6)


def test_weights_by_confidence_are_those_of_the_formulas():
    p, weights = by_confidence("Focal")
    assert len(p) == 10 and p[0] == 0.05
    # d/dp of (1 - p)^γ (-log p), by that of -log p
    focal = (1 - p) ** 1.5 - 1.5 * (1 - p) ** 0.5 * p * np.log(p)
    alike(weights, focal, p)
    p, weights = by_confidence("PAT")
    alike(weights, np.exp((1 - p) / 5) * (1 - p * np.log(p) / 5), p)
    for label in ("CE", "CB", "CE, ENet"):
        np.testing.assert_allclose(by_confidence(label)[1], 1, rtol=1e-6)


def test_weights_of_shifted_logits_are_those_of_the_formulas():
    p, weights = by_confidence("BMS")
    frequency = np.array([0.02, 0.49, 0.49])
    wrong = frequency[1] * (1 - p) / (frequency[0] * p + frequency[1] * (1 - p))
    alike(weights, wrong / (1 - p), p)  # all other classes alike: the norm goes with 1 - softmax
    p, weights = by_confidence("LDAM, bare")
    shifted = np.exp(-20 * 0.5) * p  # the rarest class has the margin 0.5
    alike(weights, (1 - p) / (shifted + 1 - p) / (1 - p), p)


def dice(x, y):
    """1 - 2 Σ p y / (Σ p + Σ y), the mean over classes; x (L, P), y (P,)."""
    p = np.exp(x) / np.exp(x).sum(0)
    one_hot = np.eye(len(x))[y].T
    return 1 - (2 * (p * one_hot).sum(1) / (p.sum(1) + one_hot.sum(1))).mean()


def test_weights_of_a_loss_on_regions_are_finite_differences():
    y = chapter.labels(SMALL).numpy()
    assert np.bincount(y).tolist() == [10, 45, 45]
    p = np.full(len(y), 0.9)
    p[y == 0] = (np.arange(10) + 0.5) / 10
    x = np.tile(np.log((1 - p) / 2), (3, 1))
    x[y, np.arange(len(y))] = np.log(p)
    expected = []
    for pixel in range(10):
        gradient = np.zeros(3)
        for c in range(3):
            steps = []
            for step in (1e-5, -1e-5):
                moved = x.copy()
                moved[c, pixel] += step
                steps.append(dice(moved, y))
            gradient[c] = (steps[0] - steps[1]) / 2e-5
        ce = (1 - p[pixel]) * np.sqrt(1.5)
        expected.append(np.linalg.norm(gradient) / ce)
    p, weights = by_confidence("Dice")
    middle = len(p) // 2
    np.testing.assert_allclose(
        weights / weights[middle], np.array(expected) / expected[middle], rtol=1e-5
    )


# A tenth in the image: 1, 50 and 49 pixels instead of 10, 45 and 45; in the data set the others go
# from 0.49 to 0.499 of the pixels.
SMALLER, RARER = (50 / 1) / (45 / 10), (0.499 / 0.002) / (0.49 / 0.02)


@pytest.mark.parametrize(
    ("label", "field", "expected"),
    [
        ("CE", "in_image", 1),
        ("PAT", "in_image", SMALLER),
        ("PAT, a = 1/2", "in_image", SMALLER**0.5),
        ("PAT, data set", "in_image", 1),
        ("PAT", "in_dataset", 1),
        ("PAT, data set", "in_dataset", RARER),
        ("CE, inverse", "in_dataset", RARER),
        ("CE, median frequency", "in_images", 0.1),
        ("PAT, b = 1", "in_images", 10),
        ("PAT", "in_images", 1),
        ("LDAM, complete", "in_images", 1),
    ],
)
def test_weights_by_size(label, field, expected):
    tenth = [getattr(SMALL, field) / 10]
    (found,) = weights_along(FAMILY[label], SMALL, field, tenth)
    assert found == pytest.approx(expected, rel=1e-4)


def test_margin_and_noise():
    """LDAM pulls as long as the margin is not made up for; BLV without noise is cross-entropy."""
    far, near = (weight(Member("", "ldam", {"scale": s}), SMALL) for s in (20.0, 1e-6))
    assert near == pytest.approx(1, rel=1e-4) and far > 1
    # Complete, at the end of the training: the weights of CB on top.
    complete, plain = weight(FAMILY["LDAM, complete"], SMALL), Member("", "ldam", {"scale": 30.0})
    assert complete / weight(plain, SMALL) == pytest.approx(weight(FAMILY["CB"], SMALL), rel=1e-4)
    assert weight(FAMILY["CB"], SMALL) > 15
    assert weight(Member("", "blv", {"sigma": 1e-6}), SMALL) == pytest.approx(1, rel=1e-4)
    before = torch.get_rng_state()
    weight(FAMILY["BLV"], SMALL)
    assert torch.equal(torch.get_rng_state(), before)


def test_curves_that_coincide_are_one():
    a, b = np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.1, 3.9])
    assert chapter.together({"a": a, "b": b, "c": 1.3 * a}, 1.1) == [["a", "b"], ["c"]]
    assert chapter._listed(["LDAM, bare", "CE"]) == "LDAM\u00a0(bare), CE"


def test_figures_show_every_member_that_they_name():
    members = list(FAMILY.values())
    for axis, panel in zip(
        plot_weights(members, SMALL).axes, ("confidence", "in_image", "in_dataset"), strict=True
    ):
        names = chapter.DRAWN[panel].split("|")
        assert set(names) <= FAMILY.keys()
        words = " ".join(text.get_text() for text in axis.texts).replace("\n", " ")
        for name in names:
            first, _, rest = name.partition(", ")
            assert (f"{first}\u00a0({rest})" if rest else first) in words
    priors = {name: np.array([0.9, 0.1]) for name in chapter.DRAWN["prior"].split("|")}
    (axis,) = plot_priors(priors, members, ["road", "sign"]).axes
    assert [line.get_ydata().tolist() for line in axis.lines] == [[90, 10]]


# ------------------------------------------------------------------ the page


def test_calls_of_the_page_build_the_members():
    text = "".join(map(source, cells("losses", "markdown")))
    given = dict(
        num_classes=3,
        class_counts=[90, 9, 1],
        class_images=[5, 5, 1],
        num_images=5,
        build_loss=build_loss,
    )
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    calls = [ast.unparse(call) for block in blocks for call in ast.parse(block).body]
    built = {repr(eval(call, given)) for call in calls}
    sizes = [given[name] for name in ("class_counts", "class_images", "num_images")]
    members = {repr(m.build_from(*sizes)) for m in chapter.family()}
    assert members <= built and len(built - members) == 1  # one more τ
    assert {member.name for member in chapter.family()} == set(LOSSES)


def test_stored_page_has_the_times_of_the_record_and_says_what_is_not_measured():
    record = json.loads((ROOT / "benchmarks/records/losses-cpu.json").read_text())
    first = record["results"][0]["shape"]
    rows = {
        r["loss"]: r
        for r in record["results"]
        if (r["shape"], r["dtype"]) == (first, record["results"][0]["dtype"])
    }
    stored, whole = (stored_tables("losses")[f"losses-{name}"] for name in ("weights", "all"))
    assert list(stored) == list(whole) == [member.label for member in chapter.family()]
    for label, name in {"PAT": "pat", "CB": "cb", "BLV": "blv", "LDAM, bare": "ldam"}.items():
        time = f"{rows[name]['ratio_to_ce']['median']:.2f}"
        assert stored[label]["time, CE = 1"] == whole[label]["time, CE = 1"] == time
        peak = rows[name]["peak_bytes"] / rows["ce"]["peak_bytes"]
        assert whole[label]["memory, CE = 1"] == f"{peak:.2f}"
    unmeasured = [r for r in stored.values() if r["time, CE = 1"] == "not measured"]
    assert stored_glue("losses")["losses-unmeasured"] == len(unmeasured)
    assert stored["PAT, a = 1/2"]["time, CE = 1"] == "not measured"  # does the same work
    assert all(len(row) == 4 for row in stored.values())


def test_variants_have_the_row_of_the_benchmark_with_their_parameters():
    found = {label: member.benchmark for label, member in FAMILY.items()}
    assert found["CE, inverse"] == "ce, class weights" and found["Tversky"] == "tversky"
    assert found["CE + Jaccard"] == "mix"
    assert found["PAT"] is None  # T = 5 is not timed
    assert {m.label: m.benchmark for m in chapter.family()}["PAT"] == "pat"


def test_page_with_other_parameters(monkeypatch):
    monkeypatch.setattr(chapter, "DRAWS", 2)
    page = Chapter(
        "losses",
        temperature=2.0,
        gamma=1.0,
        num_classes=4,
        side=20,
        in_image=0.1,
        in_dataset=0.05,
        image_size=[32, 40],
        data_params={"num_classes": 5, "imbalance": 3},
    )
    assert page.glued["losses-T"] == "2" and page.glued["losses-in-image"] == "10 %"
    pat = page.tables["losses-weights"]["PAT"]
    column = next(iter(pat))
    sure, unsure = (np.exp((1 - p) / 2) * (1 - p * np.log(p) / 2) for p in (0.9, 0.1))
    assert float(pat[column]) == pytest.approx(sure / unsure, abs=0.006)
    images = page.space["images"]
    shares = page.space["sizes"].sum(0) / page.space["sizes"].sum()
    assert len(images.class_names) == 5
    assert page.glued["losses-ce-rarest"] == f"{100 * shares.min():.1f} %"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"gama": 1.0}, "has no parameter 'gama' .did you mean 'gamma'"),
        ({"num_classes": 2}, "num_classes must be an integer >= 3, got 2"),
        ({"in_image": 0.0001}, "in_image .of side=100. must be a finite number >= 0.001"),
        ({"elsewhere": 1.0}, "elsewhere must be a finite number > 0 and < 1, got 1"),
        ({"records": "nowhere"}, "nowhere has no losses-cpu.json"),
    ],
)
def test_page_refuses_wrong_parameters(parameters, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Chapter("losses", only=[], **parameters)


def test_the_calls_of_the_glossary_build_the_losses_of_the_study():
    glossary = (ROOT / "book" / "glossary.md").read_text()
    calls = dict(re.findall(r"^\| ([^|`]+) \| `(build_loss\(.*\))` \|$", glossary, re.MULTILINE))
    counts = torch.tensor([900, 90, 9, 1])
    told = dict(class_counts=counts, class_images=torch.tensor([10, 9, 5, 1]), num_images=10)
    names = dict(
        build_loss=build_loss, L=4, counts=counts, images=told["class_images"], n=told["num_images"]
    )
    planned = {
        run.method: run.settings
        for grid in ("segnet", "unet")
        for run in load_grid(ROOT / "study" / "grids" / "small" / f"{grid}.yaml")
    }
    assert calls.keys() == planned.keys()
    logits, target = torch.randn(2, 4, 8, 8), torch.randint(4, (2, 8, 8))
    for label, call in calls.items():
        ours = eval(call, names)
        theirs = build_loss(planned[label]["loss"], 4, **told, **planned[label]["loss_params"])
        assert repr(ours) == repr(theirs), label
        values = []
        for loss in (ours, theirs):
            torch.manual_seed(0)  # BLV draws noise
            values.append(loss(logits, target))
        torch.testing.assert_close(*values)
