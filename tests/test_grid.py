"""Grids: names that stay, files that can be run, errors before anything is."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from patlib import RunConfig, RunRecord
from patlib.config import PLACEMENT
from patlib.study import grids
from patlib.study.grids import (
    PlannedRun,
    complete,
    data_root,
    load_grid,
    load_records,
    read_grid,
    run_name,
)

GRIDS = Path(__file__).parents[1] / "study" / "grids"
FILES = {path.relative_to(GRIDS).as_posix(): path for path in sorted(GRIDS.rglob("*.yaml"))}
every_grid = pytest.mark.parametrize("file", FILES)

TINY = {"dataset": "synthetic", "image_size": [32, 40], "model_params": {"width": 2}, "epochs": 1}


@pytest.fixture(scope="module")
def cells():
    return {file: load_grid(path) for file, path in FILES.items()}


def one_block(**block):
    return {"blocks": [{"settings": TINY, "methods": {"CE": {"loss": "ce"}}, "seeds": [0]} | block]}


# --- names ----------------------------------------------------------------------------------------


def test_names_stay(cells):
    # Records are filed under these.
    assert cells["small/table1.yaml"][0].name == "camvid-96x128-segnet-ce-seed0-e7c3edd1"
    assert cells["demo.yaml"][-1].name == "synthetic-96x128-attention_unet-pat-seed0-289acb78"


OTHER = {
    "optimizer": "sgd",
    "augment": "flip_scale_crop",
    "sampler": "rare_class",
    "dataset": "camvid",
    "data_params": {"imbalance": 10.0},
    "split_scheme": "paper",
    "void": "class",
    "image_size": [40, 32],
    "loss": "focal",
    "loss_params": {"temperature": 5.0},
    "model": "attention_unet",
    "model_params": {"width": 3},
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "precision": "bf16-mixed",
    "seed": 1,
}


def test_every_setting_but_the_places_is_in_the_name():
    base = {**TINY, "loss": "pat", "model": "segnet"}
    names = [run_name(complete(base))]
    for setting, value in OTHER.items():
        names.append(run_name(complete({**base, setting: value})))
    assert len(set(names)) == len(names)
    assert {f.name for f in dataclasses.fields(RunConfig)} == OTHER.keys() | set(PLACEMENT)


def test_places_and_spelled_out_defaults_are_not_in_the_name(tmp_path):
    cell = PlannedRun("PAT", complete({**TINY, "loss": "pat"}))
    config = cell.config(None, tmp_path, device="cpu")
    assert config.output_dir == str(tmp_path)
    assert run_name(config.settings()) == cell.name
    spelled = {**TINY, "loss": "pat", "loss_params": {"temperature": 20.0}, "learning_rate": 0.001}
    assert run_name(complete(spelled)) == cell.name


def test_the_version_of_the_results_is_in_the_name(monkeypatch):
    cell = PlannedRun("CE", complete({**TINY, "loss": "ce"}))
    before = cell.name
    monkeypatch.setattr(grids, "RESULTS_VERSION", grids.RESULTS_VERSION + 1)
    assert cell.name != before


# --- the grid files -------------------------------------------------------------------------------


@every_grid
def test_grid_file_can_be_run(file, cells):
    names = [cell.name for cell in cells[file]]
    assert names and len(set(names)) == len(names)
    # All were checked when they were read: again, with places, one of each kind.
    kinds = {
        (c.settings["dataset"], c.settings["model"], c.settings["loss"]): c for c in cells[file]
    }
    for cell in kinds.values():
        config = cell.config(data_root(cell.settings["dataset"], "data"), "runs")
        assert config.settings() == cell.settings
    datasets = {cell.settings["dataset"] for cell in cells[file]}
    # Cityscapes needs a registration: a grid without it can be finished by anybody.
    assert datasets == {"cityscapes"} if "cityscapes" in file else "cityscapes" not in datasets


@every_grid
def test_header_names_the_command_the_data_the_hardware_and_the_time(file, cells):
    text = FILES[file].read_text()
    header = re.sub(r"\s*\\?\n#\s*", " ", text[: text.index("blocks:")])
    command = f"snakemake -s study/Snakefile --configfile study/grids/{file} "
    assert command in header
    assert re.search(
        r"((One|Two) CPU cores?|One H200-class GPU).*: about [\w. ]*(hour|minute)s?", header
    )
    datasets = {cell.settings["dataset"] for cell in cells[file]} - {"synthetic"}
    folders = {d: "oxford-iiit-pet" if d == "oxford_pet" else d for d in datasets}
    assert all(f"{folder}/" in header for folder in folders.values())
    assert ("--config data=FOLDER" in header) == bool(datasets)


def test_paper_scale(cells):
    for file in (f for f in FILES if f.startswith("paper/")):
        for cell in cells[file]:
            settings = cell.settings
            assert (settings["epochs"], settings["batch_size"]) == (100, 16)
            segnet = {"width": 32, "stages": 4, "rectified": False}
            model = {"segnet": segnet, "attention_unet": {"width": 32}}
            unets = {"encoder": "resnet18", "encoder_weights": None, "decoder_channels": None}
            expected = {**model.get(settings["model"], unets), "normalized_classifier": False}
            assert settings["model_params"] == expected
            size = {"cityscapes": [256, 512], "oxford_pet": [256, 256]}
            assert settings["image_size"] == size.get(settings["dataset"], [256, 340])
    first = cells["paper/table1.yaml"][:8]
    assert {(c.settings["dataset"], c.settings["split_scheme"]) for c in first} == {
        ("nyuv2", "paper")
    }
    assert {(c.settings["void"], c.settings["seed"]) for c in first} == {("class", 0)}


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_tuned_gives_every_method_four_settings_and_the_papers_own_among_them(scale, cells):
    tuned, table1 = cells[f"{scale}/tuned.yaml"], cells[f"{scale}/table1.yaml"]
    choices = {}
    for cell in tuned:
        s = cell.settings
        block = (cell.method, s["dataset"], s["split_scheme"], s["seed"])
        choices.setdefault(block, []).append(cell)
    assert len({method for method, *_ in choices}) == 8
    names = {cell.name for cell in table1}
    for candidates in choices.values():
        assert [cell.candidate for cell in candidates] == [0, 1, 2, 3]
        assert len({cell.name for cell in candidates} & names) == 1
        tried = [
            {**c.settings["loss_params"], "lr": c.settings["learning_rate"]} for c in candidates
        ]
        varied = {key for key in tried[0] if len({t[key] for t in tried}) > 1}
        own = {"focal": "gamma", "cb_focal": "gamma", "ldam": "scale", "blv": "sigma"}
        assert varied == {{**own, "pat": "temperature"}.get(candidates[0].settings["loss"], "lr")}


@pytest.mark.parametrize("scale", ["small", "paper"])
def test_tuning_is_the_papers(scale, cells):
    tried = {}
    for cell in cells[f"{scale}/tuning.yaml"]:
        tried.setdefault(cell.method, []).append(cell.settings["loss_params"])
    gammas = [0.5, 1, 2, 3, 4, 5]
    assert [p["gamma"] for p in tried["Focal"]] == [p["gamma"] for p in tried["CBFocal"]] == gammas
    assert [p["scale"] for p in tried["LDAM"]] == [10, 20, 30, 50]
    assert {p["max_margin"] for p in tried["LDAM"]} == {0.5}
    noises = {(p["noise"], p["sigma"]) for p in tried["BLV"] if p["noise"] != "xavier"}
    assert noises == {(n, s) for n in ("gaussian", "uniform") for s in (0.5, 1, 2)}
    assert [p["noise"] for p in tried["BLV"]].count("xavier") == 1  # sigma has no effect on it
    assert [p["temperature"] for p in tried["PAT"]] == [5, 10, 20, 50]


# --- reading --------------------------------------------------------------------------------------


def test_runs_go_seed_by_seed_and_a_list_is_a_method_to_be_tuned():
    methods = {"CE": {"loss": "ce"}, "PAT": [{"loss": "pat", "epochs": e} for e in (1, 2)]}
    found = read_grid(one_block(methods=methods, seeds=[3, 1]))
    assert [(c.settings["seed"], c.method, c.candidate) for c in found] == [
        (3, "CE", 0),
        (3, "PAT", 0),
        (3, "PAT", 1),
        (1, "CE", 0),
        (1, "PAT", 0),
        (1, "PAT", 1),
    ]
    assert [c.settings["epochs"] for c in found[:3]] == [1, 1, 2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "a list of blocks.*got None"),
        ({"blocks": []}, "a list of blocks"),
        ({**one_block(), "epochs": 3}, "a list of blocks and nothing else"),
        (
            {"blocks": [{"settings": TINY, "methods": {}}]},
            r"blocks\[0\] must have settings, methods",
        ),
        (one_block(seeds=0), r"blocks\[0\]: seeds must be a list.*got 0"),
        (one_block(methods={}), r"blocks\[0\]: methods must .*got \{\}"),
        (one_block(settings=[]), r"blocks\[0\]: settings must .*got \[\]"),
        (
            one_block(methods={"PAT": "pat"}),
            r"blocks\[0\], method 'PAT' must be settings or a list",
        ),
        (one_block(methods={"PAT": []}), r"blocks\[0\], method 'PAT' must be settings or a list"),
        (one_block(seeds=[-1]), r"blocks\[0\], method 'CE': seed must .*got -1"),
        (
            one_block(settings={**TINY, "epoch": 3}),
            r"method 'CE': a run has no parameter 'epoch'.*'epochs'",
        ),
        (
            one_block(methods={"A": {"loss": "cee"}}),
            r"blocks\[0\], method 'A': loss must .*got 'cee'",
        ),
        (
            one_block(methods={"A": [{"loss": "ce"}, {"loss": "pat", "loss_params": {"t": 1}}]}),
            r"blocks\[0\], method 'A': .*'t'",
        ),
        (one_block(settings={**TINY, "image_size": None}), "image_size must be"),
        (one_block(settings={**TINY, "device": "cpu"}), "a grid must not set device"),
        (one_block(settings={**TINY, "precision": "auto"}), "precision must be named in a grid"),
        (one_block(settings={**TINY, "precision": "8"}), r"method 'CE': precision must .*got '8'"),
    ],
)
def test_wrong_grids_are_refused_by_block_and_method(wrong, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_grid(wrong)
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(wrong))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: .*{message}"):
        load_grid(path)


def test_a_missing_or_broken_file_is_named(tmp_path):
    for content in (None, "blocks: [", "just text"):
        path = tmp_path / "grid.yaml"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_grid(path)


def test_only_records_that_exist_are_loaded(tmp_path):
    found = read_grid(one_block(seeds=[0, 1]))
    scores = {"miou": 0.5, "iou": [0.5]}
    record = RunRecord(found[1].settings, {"test": scores, "validation": scores}, {})
    record.save(tmp_path / f"{found[1].name}.json")
    assert load_records(found, tmp_path) == {found[1].name: record}
    assert load_records(found, tmp_path / "nowhere") == {}


def test_where_the_data_sets_lie():
    assert data_root("synthetic", None) is None
    assert data_root("camvid", "data") == Path("data/camvid")
    assert data_root("oxford_pet", "data") == Path("data")  # torchvision adds the folder itself
    with pytest.raises(ValueError, match="'camvid'"):
        data_root("camvid", None)
