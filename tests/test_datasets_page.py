"""The page on data sets: its record, the script that writes it, and the notebook."""

import json
from pathlib import Path

import numpy as np
import pytest
from chapters import Chapter, cells, figures, outputs, source, tagged

from patlib.data import DATASETS, build_dataset, count_classes
from patlib.data.dataset import SPLITS
from patlib.metrics import class_groups

ROOT = Path(__file__).parents[1]
RECORDED = json.loads((ROOT / "study" / "records" / "datasets.json").read_text())

study = figures.load_script("study/datasets.py")


def train_classes(name):
    split = RECORDED["datasets"][name]["splits"]["train"]
    return split["images"], {entry["name"]: entry for entry in split["classes"]}


@pytest.mark.parametrize("name", RECORDED["datasets"])
def test_record_agrees_with_the_data_set(name):
    entry, cls = RECORDED["datasets"][name], DATASETS[name]
    assert entry["class_names"] == list(cls.class_names)
    assert entry["image_size"] == list(cls.default_size)
    assert tuple(entry["splits"]) == SPLITS == tuple(entry["provenance"]["data"])
    assert entry["provenance"]["date"] and entry["provenance"]["versions"]["patlib"]
    height, width = entry["image_size"]
    for split in entry["splits"].values():
        assert [c["name"] for c in split["classes"]] == entry["class_names"]
        parts = [*split["classes"], split["ignored"]]
        assert sum(c["pixels"] for c in parts) == split["images"] * height * width
        for part in parts:
            assert 0 <= part["images"] <= split["images"]
            assert (part["size_quantiles"] is None) == (part["images"] == 0)
            if quantiles := part["size_quantiles"]:
                assert len(quantiles) == len(RECORDED["quantiles"])
                assert quantiles == sorted(quantiles)
                assert 1 <= quantiles[0] and quantiles[-1] <= height * width


def test_what_the_page_says_about_the_tails_is_so():
    images, camvid = train_classes("camvid")
    assert min(camvid[name]["images"] for name in ("pole", "sign")) > 0.9 * images
    assert max(camvid[name]["size_quantiles"][-1] for name in ("pole", "sign")) < 0.05 * 256 * 340

    _, nyuv2 = train_classes("nyuv2")
    tv, books = nyuv2["tv"], nyuv2["books"]
    assert tv["images"] == min(entry["images"] for entry in nyuv2.values()) < books["images"]
    assert 0.9 < tv["pixels"] / books["pixels"] < 1.1
    assert tv["size_quantiles"][2] > 2 * books["size_quantiles"][2]

    for classes in (camvid, nyuv2):
        spread = [e["size_quantiles"][-1] / e["size_quantiles"][0] for e in classes.values()]
        assert np.median(spread) > 10

    images, pets = train_classes("oxford_pet")
    assert all(entry["images"] == images for entry in pets.values())


def test_counted_by_hand():
    dataset = build_dataset("synthetic", split="validation", image_size=(32, 40))
    counted, _ = study.count(dataset)
    masks = np.stack([dataset.arrays(i)[1] for i in range(len(dataset))])
    assert counted["images"] == len(dataset)
    assert [c["pixels"] for c in counted["classes"]] == count_classes(dataset).tolist()
    rare = counted["classes"][-1]
    sizes = [(mask == dataset.num_classes - 1).sum() for mask in masks]
    present = [size for size in sizes if size]
    assert rare["images"] == len(present) < len(dataset)
    assert rare["size_quantiles"][2] == np.median(present)
    assert counted["ignored"]["pixels"] == (masks == 255).sum() > 0


def test_script_keeps_other_entries_and_refuses_by_name(tmp_path, camvid_tree, pet_tree, capsys):
    out = tmp_path / "record.json"
    study.main(["--root", f"camvid={camvid_tree}", "--out", str(out)])
    study.main(["--root", f"oxford_pet={pet_tree}", "--out", str(out)])
    datasets = json.loads(out.read_text())["datasets"]
    assert list(datasets) == ["oxford_pet", "camvid"]
    assert datasets["camvid"]["splits"]["train"]["images"] == 6
    assert datasets["camvid"]["note"] == "The mask files are 36x48 pixels (H x W)."
    assert "2 of 37 breeds (Breed_test, Breed_trainval)" in datasets["oxford_pet"]["note"]
    assert "sides of the mask files are 33 to 42 pixels" in datasets["oxford_pet"]["note"]
    before = out.read_text()

    missing = ["--root", f"nyuv2={tmp_path / 'no'}", "--root", f"cityscapes={tmp_path / 'nor'}"]
    for arguments, messages in {
        (*missing, "--root", f"camvid={camvid_tree}"): (
            "nyuv2: data_root",
            "cityscapes: data_root",
        ),
        ("--root", "citycapes=x"): ("citycapes=x", "NAME=PATH"),
        (): ("--root",),
    }.items():
        with pytest.raises(SystemExit):
            study.main([*arguments, "--out", str(out)])
        stopped = capsys.readouterr().err
        assert all(message in stopped for message in messages)
    assert out.read_text() == before


def test_recorded_counts_are_those_of_the_files(real_data):
    dataset = build_dataset("camvid", real_data / "camvid", "validation")
    counted, fingerprint = study.count(dataset)
    entry = RECORDED["datasets"]["camvid"]
    assert counted == entry["splits"]["validation"]
    assert fingerprint == entry["provenance"]["data"]["validation"]


def test_page_with_other_parameters(camvid_tree):
    page = Chapter(
        "datasets",
        dataset="camvid",
        data_root=str(camvid_tree),
        split="test",
        void="class",
        image_size=[32, 40],
        num_images=2,
        seed=1,
    )
    assert "camvid, test: 5 images of (32, 40) pixels" in page.text
    assert "12 classes: sky, building" in page.text and ", bicyclist, void" in page.text


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"splt": "test"}, "has no parameter 'splt' .did you mean 'split'"),
        ({"num_images": 0}, "num_images must be an integer >= 1, got 0"),
    ],
)
def test_page_refuses_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Chapter("datasets", only=[], **parameters)


@pytest.mark.parametrize("name", ["datasets", "long_tail"])
def test_stored_pictures_are_of_the_embedded_data_only(name):
    parameters = next(cell for cell in cells(name) if tagged(cell, "parameters"))
    assert 'dataset: str = "synthetic"' in source(parameters)
    text = json.dumps(outputs(name))
    assert "synthetic, train" in text and "(yours)" not in text


def test_plot_orders_classes_and_survives_an_absent_one():
    import matplotlib.pyplot as plt

    from patlib.plots import plot_class_shares

    pixels = {"a": 30, "b": 0, "c": 70}
    quantiles = {"a": [1, 2, 3, 4, 5], "b": None, "c": [5, 6, 7, 8, 9]}
    classes = [
        dict(name=name, pixels=n, images=bool(n) * 3, size_quantiles=quantiles[name])
        for name, n in pixels.items()
    ]
    figure = plot_class_shares({"toy": {"images": 4, "classes": classes}})
    left, right = figure.axes
    assert [t.get_text() for t in left.get_yticklabels()] == ["c", "a", "b"]
    assert [t.get_text() for t in right.get_yticklabels()] == ["75 %", "75 %", "0 %"]
    assert class_groups(list(pixels.values()))["head"] == [2]
    with pytest.raises(ValueError, match="toy: there is no valid pixel"):
        plot_class_shares({"toy": {"images": 4, "classes": [{**c, "pixels": 0} for c in classes]}})
    plt.close("all")
