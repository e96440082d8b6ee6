"""The chapter on the long tail in masks: what it counts, against loops and against the losses."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from chapters import ROOT, Chapter, stored_glue, stored_text
from figures.long_tail import (
    concentration,
    describe_images,
    effective_pixels,
    half_of_the_weight,
    mask_sizes,
    plot_concentration,
    plot_mask_sizes,
    plot_presence_and_size,
    plot_size_ratios,
    plot_weight_shares,
    presence_and_size,
    recorded_sizes,
    size_ratios,
    weight_shares,
)

from patlib.losses import pat_loss
from patlib.records import RunRecord

NAMES = ["road", "sky", "car", "sign", "ghost"]  # the last one is never there


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def masks():
    """Twelve masks (10, 14) of four unequal classes, with ignored pixels, one of only these."""
    rng = np.random.default_rng(0)
    p = [0.7, 0.2, 0.06, 0.01, 0.03]
    masks = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (12, 10, 14), p=p)
    masks[3:6][masks[3:6] == 3] = 0
    masks[7][masks[7] == 1] = 255
    masks[11] = 255
    return masks


@pytest.fixture(scope="module")
def sizes(masks):
    return mask_sizes(masks, 5)


@pytest.fixture(scope="module")
def split(masks):
    """The counts of study/datasets.py, by loops."""

    def entry(name, label):
        images = sum(bool((mask == label).any()) for mask in masks)
        return {"name": name, "pixels": int((masks == label).sum()), "images": images}

    classes = [entry(name, c) for c, name in enumerate(NAMES)]
    return {"images": len(masks), "classes": classes, "ignored": entry("ignored", 255)}


def pixel_weights(sizes, exponent):
    """1/S^a of each single pixel."""
    return np.array([float(s) ** -exponent for row in sizes for s in row for _ in range(s)])


def test_sizes_and_ratios_by_loops(masks, sizes):
    assert sizes.shape == (12, 5) and sizes.dtype == np.int64
    ratios = size_ratios(sizes)
    for mask, row, ratio in zip(masks, sizes, ratios, strict=True):
        counts = [sum(v == c for v in mask.ravel().tolist()) for c in range(5)]
        assert row.tolist() == counts
        there = [n for n in counts if n]
        assert np.isnan(ratio) if not there else ratio == max(there) / min(there)
    assert np.isnan(ratios[11]) and (ratios[:11] > 1).all()
    images = describe_images(sizes)
    assert len(images) == 11  # one has no valid pixel
    for mask, row in zip(masks, images.itertuples(), strict=False):
        there = sorted(n for n in np.bincount(mask[mask != 255]).tolist() if n)
        assert (row.classes, row.pixels) == (len(there), there[0])
        assert row.two == pytest.approx(sum(there[-2:]) / sum(there))
        assert row.smallest == pytest.approx(there[0] / sum(there))


@pytest.mark.parametrize("exponent", [0, 0.5, 1])
def test_weight_shares_are_those_of_the_loss(masks, sizes, exponent):
    # Logits 0: every pixel has the same cross-entropy, log 5, and what is left are the weights.
    target = torch.tensor(masks.astype(np.int64))
    flat = torch.zeros(12, 5, 10, 14, dtype=torch.float64)
    loss = pat_loss(flat, target, weight="none", size_exponent=exponent, reduction="none")
    by_class = np.array([loss[target == c].sum() for c in range(5)])
    np.testing.assert_allclose(weight_shares(sizes, exponent), by_class / by_class.sum())
    assert weight_shares(sizes, exponent)[4] == 0


@pytest.mark.parametrize("exponent", [0, 0.5, 1])
def test_concentration_pixel_by_pixel(sizes, exponent):
    weights = np.sort(pixel_weights(sizes, exponent))[::-1]
    expected = weights.sum() ** 2 / (weights**2).sum()
    assert effective_pixels(sizes, exponent) == pytest.approx(expected)
    pixels, carried = concentration(sizes, exponent)
    np.testing.assert_allclose(
        np.interp(np.arange(len(weights) + 1) / len(weights), pixels, carried),
        np.append(0, np.cumsum(weights)) / weights.sum(),
        atol=1e-12,
    )
    half = half_of_the_weight(sizes, exponent) * len(weights)
    assert weights[: int(half)].sum() <= weights.sum() / 2 <= weights[: int(half) + 1].sum()
    if exponent == 0:
        assert effective_pixels(sizes, 0) == pytest.approx(sizes.sum()) and half == len(weights) / 2


def test_effective_pixels_as_the_text_has_it(sizes):
    there = sizes[sizes > 0].astype(float)
    K = (sizes > 0).sum(1)
    assert effective_pixels(sizes, 1) == pytest.approx(K.sum() ** 2 / (1 / there).sum())


def test_share_is_presence_times_size(split, masks, sizes):
    names, presence, cover = presence_and_size(split)
    assert names == NAMES
    np.testing.assert_allclose(presence * cover, sizes.sum(0) / masks.size)
    for c in range(4):
        there = [(mask == c).mean() for mask in masks if (mask == c).any()]
        assert presence[c] == len(there) / 12 and cover[c] == pytest.approx(np.mean(there))
    assert presence[4] == cover[4] == 0
    # With 1/S the share of a class is that of its images: what the text says.
    np.testing.assert_allclose(weight_shares(sizes, 1), presence / presence.sum())


def test_figures_draw_these_numbers(split, masks, sizes):
    figure = plot_mask_sizes({"first": masks[0], "empty": masks[11]}, NAMES)
    assert [bar.get_width() for bar in figure.axes[1].patches] == sizes[0].tolist()
    assert [text.get_text() for text in figure.axes[3].texts] == ["absent"] * 5
    assert figure.axes[1].get_title(loc="left") == "first"

    _, presence, cover = presence_and_size(split)
    (axis, *_) = plot_presence_and_size({"toy": split}).axes
    dots = [line for line in axis.get_lines() if line.get_marker() == "o"]
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in dots]
    np.testing.assert_allclose(points, 100 * np.stack([presence, cover], 1)[:4])
    assert [text.get_text() for text in axis.texts][:4] == NAMES[:4]

    (axis,) = plot_weight_shares({"toy": split}).axes
    lines = {line.get_label(): line.get_xdata() for line in axis.get_lines()}
    rows = [NAMES.index(label.get_text()) for label in axis.get_yticklabels()]
    np.testing.assert_allclose(lines["weight 1 (CE)"], 100 * weight_shares(sizes, 0)[rows])
    np.testing.assert_allclose(lines["1/S"], 100 * weight_shares(sizes, 1)[rows])
    assert rows == [0, 1, 2, 3, 4]

    (axis,) = plot_size_ratios({"toy": sizes}, marked=(5, 6)).axes
    x, y = axis.get_lines()[0].get_data()
    ratios = size_ratios(sizes)[:11]
    for limit in (5, 20, 60):
        assert y[np.searchsorted(x, limit, "right") - 1] == pytest.approx((ratios <= limit).mean())
    assert y[-1] == 1
    with pytest.raises(ValueError, match="at most 5 curves, got 6"):
        plot_size_ratios({str(i): sizes for i in range(6)})

    axis = plot_concentration({"toy": sizes}).axes[0]
    lines = {line.get_label(): line.get_data() for line in axis.get_lines()}
    for label, exponent in {"1 (CE)": 0, "1/√S": 0.5, "1/S (PAT)": 1}.items():
        x, y = lines[label]
        np.testing.assert_allclose(y, np.interp(x / 100, *concentration(sizes, exponent)))


def write_run(folder, name, sizes, **config):
    config = {"void": "ignore", "split_scheme": "official", "image_size": [32, 40], **config}
    result = {"class_names": NAMES, "test": {}, "validation": {}}
    RunRecord(config, result, {}).save(folder / f"{name}.json")
    counts = np.stack([sizes + 1, sizes, sizes + 2], 1)  # found, true, predicted
    np.savez(folder / f"{name}.npz", counts=counts)


def test_recorded_sizes_are_the_true_ones_of_one_run_a_data_set(tmp_path, sizes):
    assert recorded_sizes(tmp_path / "none") == recorded_sizes(tmp_path) == {}
    write_run(tmp_path, "camvid-a", sizes[:3], void="class")
    write_run(tmp_path, "camvid-b", sizes)
    write_run(tmp_path, "camvid-c", sizes[:5], image_size=[64, 64])
    write_run(tmp_path, "synthetic-a", sizes)
    write_run(tmp_path, "nyuv2-a", sizes[:2], split_scheme="paper")
    (entry,) = recorded_sizes(tmp_path).values()
    assert entry.class_names == NAMES and entry.image_size == (32, 40)
    assert np.array_equal(entry.sizes, sizes)
    assert list(recorded_sizes(tmp_path)) == ["camvid"]


def test_stored_numbers_are_those_of_the_recorded_counts():
    record = json.loads((ROOT / "study" / "records" / "datasets.json").read_text())
    camvid = record["datasets"]["camvid"]
    values = stored_glue("long_tail")
    for when, what in (("before", "pixels"), ("after", "images")):
        counts = [entry[what] for entry in camvid["splits"]["train"]["classes"]]
        assert values[f"long-tail-cam-factor-{when}"] == f"{max(counts) / min(counts):.1f}"
    assert values["long-tail-camvid-size"] == "{} x {}".format(*camvid["image_size"])


def test_printed_tables_fit_into_the_text_column():
    lines = stored_text("long_tail").split("\n")
    assert len(lines) > 10 and max(map(len, lines)) <= 81


def test_page_with_other_parameters(tmp_path, camvid_tree):
    records = tmp_path / "records"
    records.mkdir()
    write_run(records, "nyuv2-a", np.array([[4, 2, 1, 0, 0], [8, 0, 2, 2, 0]]))
    page = Chapter(
        "long_tail",
        dataset="camvid",
        data_root=str(camvid_tree),
        split="test",
        void="class",
        image_size=[32, 40],
        num_images=1,
        batch_size=2,
        seed=1,
        records=str(records),
    )
    assert re.search(r"camvid, test \(yours\) +12 of 12", page.text)
    assert re.search(r"nyuv2, test +3 of 5 +85 % +15 % +2 +4 ", page.text)
    assert re.search(r"camvid, test +no recorded run", page.text)
    assert "3 batches of 2 images" in page.text and page.glued["long-tail-batch"] == "2"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"batchsize": 4}, "has no parameter 'batchsize' .did you mean 'batch_size'"),
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
    ],
)
def test_page_refuses_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Chapter("long_tail", only=[], **parameters)
