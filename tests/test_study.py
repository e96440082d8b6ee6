"""A grid from end to end: by Snakemake and papermill, killed and called again, and in one call."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from patlib.study.grids import load_grid

ROOT = Path(__file__).parents[1]
RUN = ROOT / "study" / "run.py"

GRID = {
    "blocks": [
        {
            "settings": {
                "dataset": "synthetic",
                "image_size": [32, 40],
                "model": "segnet",
                "model_params": {"width": 2, "stages": 2},
                "epochs": 4,
                "batch_size": 16,
            },
            "methods": {
                "broken": {"loss": "ce", "learning_rate": 1e30},
                "PAT": {"loss": "pat"},
            },
            "seeds": [0],
        }
    ]
}


def write(path, grid, **settings):
    """A grid file; with settings, those of its only block changed."""
    block = grid["blocks"][0]
    grid = {"blocks": [{**block, "settings": {**block["settings"], **settings}}]}
    path.write_text(yaml.safe_dump(grid, sort_keys=False))
    return path


def without_the_broken(grid):
    block = grid["blocks"][0]
    methods = {k: v for k, v in block["methods"].items() if k != "broken"}
    return {"blocks": [{**block, "methods": methods}]}


def names(path):
    return {run.method: run.name for run in load_grid(path)}


def snakemake(grid, place, root=ROOT, **config):
    """The command of the documentation, from a folder of its own; wait for it with ``finish``."""
    settings = [f"{key}={value}" for key, value in config.items()]
    command = ["-m", "snakemake", "-s", root / "study" / "Snakefile", "--configfile", grid]
    return subprocess.Popen(
        [sys.executable, *command, "--config", *settings, "--cores", "2"],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def run_py(*arguments, **options):
    command = [sys.executable, RUN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write(folder / "grid.yaml", GRID)
    write(folder / "good.yaml", without_the_broken(GRID))
    return folder


@pytest.fixture(scope="module")
def undisturbed(place):
    """The grid in one call, without Snakemake, papermill or a kill."""
    folder = place / "undisturbed"
    options = ("--records", folder, "--runs", place / "runs-1", "--jobs", 2)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = run_py(place / "grid.yaml", *options, env=environment)
    return folder, done


@pytest.fixture(scope="module")
def killed_and_called_again(place):
    """The grid by Snakemake: killed in the middle of a run, then called twice at the same time."""
    folders = {"records": place / "records", "runs": place / "runs"}
    first = snakemake(place / "good.yaml", place, **folders)
    pat = folders["runs"] / names(place / "grid.yaml")["PAT"]
    deadline = time.monotonic() + 200
    while not (pat / "last.ckpt").exists():
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0]
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    left = sorted(path.name for path in folders["records"].glob("*.json"))
    again = [snakemake(place / grid, place, **folders) for grid in ("grid.yaml", "good.yaml")]
    return folders["records"], folders["runs"], left, [finish(process) for process in again]


def test_one_call_runs_a_grid_and_names_what_failed(place, undisturbed):
    folder, done = undisturbed
    name = names(place / "grid.yaml")
    assert done.returncode == 1
    assert "FloatingPointError" in done.stderr
    assert done.stderr.splitlines()[-2:] == ["1 of 2 runs failed:", name["broken"]]
    filed = {path.name for path in folder.iterdir()}
    assert filed == {name["PAT"] + ".json", name["PAT"] + ".npz"}


def test_killed_and_called_again_it_ends_with_the_results_of_an_undisturbed_one(
    place, undisturbed, killed_and_called_again
):
    expected, _ = undisturbed
    records, runs, left, _ = killed_and_called_again
    name = names(place / "grid.yaml")["PAT"]
    assert left == []  # it was in the middle of its epochs
    assert {path.name for path in records.iterdir()} == {path.name for path in expected.iterdir()}
    ours, theirs = (json.loads((f / f"{name}.json").read_text()) for f in (records, expected))
    assert ours["result"] == theirs["result"] and ours["config"] == theirs["config"]
    assert ours["provenance"]["threads"] == theirs["provenance"]["threads"] == 1
    ours, theirs = (np.load(folder / f"{name}.npz") for folder in (records, expected))
    assert set(ours) == set(theirs) and all(np.array_equal(ours[key], theirs[key]) for key in ours)
    notebook = json.loads((runs / name / "train.ipynb").read_text())
    assert notebook["metadata"]["papermill"]["exception"] is None


def test_a_broken_run_stops_nothing_and_is_named_at_the_end(place, killed_and_called_again):
    records, runs, _, calls = killed_and_called_again
    broken = names(place / "grid.yaml")["broken"]
    (code, output), (code_of_the_good, output_of_the_good) = calls
    assert code == 1 and code_of_the_good == 0, output_of_the_good
    end = output[output.index("1 of 2 runs have no record:") :]
    assert f"{broken}  ({runs / broken / 'run.log'})" in end
    assert "FloatingPointError: the training loss became nan" in output  # its log is shown
    assert not (records / f"{broken}.json").exists()


def test_a_second_call_runs_nothing_also_in_a_fresh_clone(place, killed_and_called_again):
    records, _, _, _ = killed_and_called_again
    before = {path: path.read_bytes() for path in records.iterdir()}
    clone = place / "clone"
    for part in ("patlib", "notebooks", "study"):
        ignored = shutil.ignore_patterns("__pycache__", "runs")
        shutil.copytree(ROOT / part, clone / part, ignore=ignored, copy_function=shutil.copyfile)
    shutil.copytree(records, clone / "study" / "records" / "runs", copy_function=shutil.copyfile)
    for code in (clone / "patlib" / "training.py", clone / "study" / "run.py"):
        code.write_text(code.read_text() + "# newer, and another\n")
    code, output = finish(snakemake(place / "good.yaml", clone, root=clone, threads=2))
    assert code == 0 and "Nothing to be done" in output, output
    assert before == {path: path.read_bytes() for path in records.iterdir()}
    assert not (clone / "runs").exists()


def test_a_single_run_asks_for_its_own_data_only(place, undisturbed, study_run, capsys):
    records, _ = undisturbed
    more = yaml.safe_load((place / "good.yaml").read_text())
    camvid = {**more["blocks"][0]["settings"], "dataset": "camvid"}
    more["blocks"].append({**more["blocks"][0], "settings": camvid})
    (place / "more.yaml").write_text(yaml.safe_dump(more))
    (name,) = names(place / "good.yaml").values()
    folders = ["--records", str(records), "--runs", str(place / "no-runs")]
    assert study_run.main([str(place / "more.yaml"), *folders, "--notebook", name]) == 0
    assert study_run.main([str(place / "more.yaml"), *folders, "--notebook", "no-name"]) == 2
    assert f"--notebook must be one of '{name}'" in capsys.readouterr().err


def test_another_setting_is_another_run(place, undisturbed, study_run, capsys):
    records, _ = undisturbed
    for epochs, to_do in ((4, 0), (5, 1)):
        longer = write(place / f"longer-{epochs}.yaml", without_the_broken(GRID), epochs=epochs)
        assert study_run.main([str(longer), "--records", str(records), "--dry-run"]) == 0
        listed = capsys.readouterr().out.splitlines()[1:]
        assert listed == list(names(longer).values())[:to_do]


def test_snakemake_refuses_a_wrong_grid_before_anything_is_run(place):
    wrong = place / "wrong.yaml"
    wrong.write_text(yaml.safe_dump(GRID).replace("loss: pat", "loss: bat"))
    calls = {
        "blocks[0], method 'PAT': loss must be": snakemake(wrong, place, runs=place / "no"),
        "got thread": snakemake(place / "grid.yaml", place, thread=2, runs=place / "no"),
    }
    for message, call in calls.items():
        code, output = finish(call)
        assert code == 1 and message in output, output
    assert not (place / "no").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run"], "data must be the folder that holds the data set 'camvid', got None"),
        (["--data", "nowhere"], "nowhere/camvid'"),
    ],
)
def test_one_call_refuses_missing_data_before_anything_is_run(
    tmp_path, study_run, capsys, arguments, message
):
    camvid = write(tmp_path / "camvid.yaml", GRID, dataset="camvid")
    folders = ["--runs", str(tmp_path / "no"), "--records", str(tmp_path / "no")]
    assert study_run.main([str(camvid), *folders, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_network_whose_library_is_missing_is_refused(tmp_path, study_run, capsys, monkeypatch):
    monkeypatch.setattr("patlib.models.encoder_unet.smp", None)
    unet = {"model": "unet", "model_params": {"encoder": "resnet34"}}
    grid = write(tmp_path / "unet.yaml", GRID, **unet)
    assert study_run.main([str(grid), "--records", str(tmp_path / "no")]) == 2
    assert "segmentation-models-pytorch" in capsys.readouterr().err


def test_numbers_of_jobs_and_threads_are_checked(place, study_run, capsys):
    with pytest.raises(SystemExit):
        study_run.main([str(place / "good.yaml"), "--jobs", "0"])
    assert "--jobs must be an integer >= 1, got 0" in capsys.readouterr().err


# What a machine with PyTorch and little else does not have; patlib is a clone there, not installed.
WITHOUT = """
import importlib.metadata, sys
packages = "segmentation_models_pytorch timm papermill snakemake matplotlib seaborn".split()

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def from_name(name, find=importlib.metadata.Distribution.from_name):
    if name.replace("-", "_") in [*packages, "patlib"]:
        raise importlib.metadata.PackageNotFoundError(name)
    return find(name)

sys.meta_path.insert(0, Absent)
importlib.metadata.Distribution.from_name = from_name
"""


def test_a_bare_clone_runs_without_the_packages_that_training_a_segnet_does_not_need(tmp_path):
    clone, absent = tmp_path / "clone", tmp_path / "absent"
    for part in ("patlib", "study"):
        ignored = shutil.ignore_patterns("__pycache__", "runs")
        shutil.copytree(ROOT / part, clone / part, ignore=ignored)
    absent.mkdir()
    (absent / "sitecustomize.py").write_text(WITHOUT)
    grid = write(tmp_path / "grid.yaml", without_the_broken(GRID), epochs=1)
    done = subprocess.run(
        [sys.executable, clone / "study" / "run.py", grid],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(absent)},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    records = list((clone / "study" / "records" / "runs").glob("*.json"))
    assert {path.stem for path in records} == set(names(grid).values())
    versions = json.loads(records[0].read_text())["provenance"]["versions"]
    assert versions["segmentation-models-pytorch"] is None and versions["torch"]


@pytest.fixture(scope="module")
def study_run():
    spec = importlib.util.spec_from_file_location("study_run", RUN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_death_of_a_run_is_seen(study_run):
    assert study_run.in_process(print, "alive")
    assert not study_run.in_process(os.abort)


def test_each_run_gets_the_gpu_with_the_fewest_runs(study_run, monkeypatch, tmp_path):
    monkeypatch.setattr(study_run.tempfile, "gettempdir", lambda: str(tmp_path))

    def take(stack, visible="3,MIG-1/0/0"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        stack.enter_context(study_run.own_gpu())
        return os.environ["CUDA_VISIBLE_DEVICES"]

    with ExitStack() as first, ExitStack() as others:
        assert take(first) == "3"
        assert [take(others) for _ in range(4)] == ["MIG-1/0/0", "3", "MIG-1/0/0", "3"]
        first.close()
        assert take(others) == "3"  # both had two, one of GPU 3 has ended
    with ExitStack() as stack:
        assert take(stack) == "3"  # nothing is left of those that ended
        assert take(stack, "7") == "7"  # one: nothing to choose
        assert take(stack, "") == ""  # none, by choice
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        for expected in ("0", "1", "0"):
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
            stack.enter_context(study_run.own_gpu())
            assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
