"""Killed at any moment and started again, a run ends with the result of an undisturbed one."""

import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import CHAOS, temporary_files, tiny_config

from patlib import RunConfig, RunRecord, train

PHASES = {
    "while reading the images": ("patlib.data.camvid", "CamVid.arrays", 4, True),
    "before the cache gets its name": ("pathlib", "Path.rename", 1, True),
    "in the first epoch": ("patlib.losses.pat", "pat_loss", 2, True),
    "in the middle of the second epoch": ("patlib.losses.pat", "pat_loss", 5, True),
    "between training and validation": ("patlib.training", "evaluate", 2, True),
    "between the names of the two checkpoints": ("os", "replace", 4, True),
    "before the checkpoint is on the disk": ("os", "fsync", 18, True),
    "between checkpoint and log": ("patlib.training", "save_checkpoint", 2, False),
    "before the test": ("patlib.training", "evaluate", 4, True),
    "before the label maps get their name": ("os", "replace", 9, True),
    "before the record gets its name": ("patlib.records", "RunRecord.save", 1, True),
    "after the record": ("patlib.records", "RunRecord.save", 1, False),
}


# Imports patlib once; each process that is killed is a fork of it.
KILLED = multiprocessing.get_context("forkserver")
KILLED.set_forkserver_preload(["patlib.training", "patlib.data"])


def train_and_die(settings, cache, how, module, name, call, before):
    """Run a configuration; kill this process by a signal, before which nothing is cleaned up, when
    a function is called for the n-th time, before or after it does its work."""
    torch.set_num_threads(1)
    os.environ["PATLIB_CACHE"] = cache  # the fork server has the environment of the first test
    home = importlib.import_module(module)
    *classes, attribute = name.split(".")
    for part in classes:
        home = getattr(home, part)
    original, calls = getattr(home, attribute), []

    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == call and before:
            os.kill(os.getpid(), how)
        result = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), how)
        return result

    setattr(home, attribute, deadly)
    train(RunConfig(**settings), progress=False)


@pytest.fixture(scope="module")
def undisturbed():
    """By precision: the result that every killed run must end with, and its seconds."""
    return {}


@pytest.fixture
def calm(camvid_tree, tmp_path, undisturbed, monkeypatch):
    # The data are drawn from a fixed seed: they are the same in every test's own folder.
    def run(config):
        if config.precision not in undisturbed:
            config = dataclasses.replace(config, output_dir=str(tmp_path / "calm"))
            with monkeypatch.context() as elsewhere:
                elsewhere.setenv("PATLIB_CACHE", str(tmp_path / "other-cache"))
                start = time.perf_counter()
                result = train(config, progress=False).result
            undisturbed[config.precision] = result, time.perf_counter() - start
        return undisturbed[config.precision]

    return run


def three_epochs(camvid_tree, output_dir, **fields):
    return tiny_config(
        camvid_tree, output_dir, **{"epochs": 3, "model_params": {"width": 2}, **fields}
    )


def check_restarted(config, expected):
    """Started again, the run ends with the same result and leaves nothing temporary."""
    train(config, progress=False)
    folder = Path(config.output_dir)
    np.testing.assert_equal(RunRecord.load(folder / "record.json").result, expected)
    left = {path.name for path in folder.iterdir()}
    kept = {"last.ckpt", "previous.ckpt", "log.csv", "record.json", "test_images.npz"}
    assert left == {".lock", *kept}
    assert not temporary_files(Path(os.environ["PATLIB_CACHE"]))


SIGNALS = (signal.SIGKILL, signal.SIGTERM)
# The short form takes turns with the signals.
KILLS = [
    (phase, how)
    for i, phase in enumerate(PHASES)
    for j, how in enumerate(SIGNALS)
    if CHAOS or i % 2 == j
]


@pytest.mark.parametrize(("phase", "how"), KILLS)
def test_killed_and_started_again(phase, how, camvid_tree, tmp_path, calm):
    config = three_epochs(camvid_tree, tmp_path / "run")
    expected, _ = calm(config)
    arguments = (config.to_dict(), os.environ["PATLIB_CACHE"], how, *PHASES[phase])
    killed = KILLED.Process(target=train_and_die, args=arguments)
    killed.start()
    killed.join()
    assert killed.exitcode == -how
    assert (tmp_path / "run" / "record.json").exists() == (phase == "after the record")
    check_restarted(config, expected)


def train_quietly(settings, cache):
    torch.set_num_threads(1)
    os.environ["PATLIB_CACHE"] = cache
    train(RunConfig(**settings), progress=False)


@pytest.mark.parametrize("number", range(23 if CHAOS else 2))
def test_killed_at_a_random_moment(number, camvid_tree, tmp_path, calm, monkeypatch):
    """Of float32 and of bfloat16; on one machine both end with exactly the same result."""
    config = three_epochs(
        camvid_tree, tmp_path / "run", precision=("32-true", "bf16-mixed")[number % 2]
    )
    expected, seconds = calm(config)
    how = SIGNALS[number // 2 % 2]
    delay = np.random.default_rng(number).uniform(0, seconds)
    for attempt in range(8):
        folder, cache = tmp_path / f"run-{attempt}", str(tmp_path / f"cache-{attempt}")
        config = dataclasses.replace(config, output_dir=str(folder))
        killed = KILLED.Process(target=train_quietly, args=(config.to_dict(), cache))
        killed.start()
        killed.join(delay)
        if killed.exitcode is None:
            os.kill(killed.pid, how)
        killed.join()
        if killed.exitcode == -how:
            break
        delay /= 2  # it was done before
    assert killed.exitcode == -how
    print(f"killed after {delay:.2f} s, left {sorted(p.name for p in folder.glob('*'))}")
    monkeypatch.setenv("PATLIB_CACHE", cache)
    check_restarted(config, expected)


RUN_PY = Path(__file__).parents[1] / "study" / "run.py"


def write_grid(path, **settings):
    """A grid of four runs."""
    base = dict(dataset="synthetic", image_size=[32, 40], epochs=3, batch_size=60)
    base |= dict(model_params={"width": 1, "stages": 1})
    methods = {"CE": {"loss": "ce"}, "PAT": {}}
    block = dict(settings={**base, **settings}, methods=methods, seeds=[0, 1])
    path.write_text(json.dumps({"blocks": [block]}))


def processes_of(folder):
    """Processes that have a file in a folder open, by what Linux tells of them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            opened = [os.readlink(file) for file in (process / "fd").iterdir()]
        except OSError:
            continue
        if any(path.startswith(str(folder)) for path in opened):
            found.append(int(process.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at /proc")
@pytest.mark.parametrize("how", ["SIGTERM", *(("SIGHUP", "SIGINT") if CHAOS else ())])
def test_a_grid_that_is_told_to_end_leaves_no_run_going(how, tmp_path):
    """The process of the grid alone gets the signal, as a scheduler or `kill` sends it."""
    how = getattr(signal, how)
    write_grid(tmp_path / "grid.yaml", epochs=100_000)
    folders = ["--records", tmp_path / "records", "--runs", tmp_path / "runs"]
    grid = subprocess.Popen(
        [sys.executable, RUN_PY, tmp_path / "grid.yaml", *folders],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while len(list((tmp_path / "runs").glob("*/last.ckpt"))) < 1:
            assert grid.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        assert len(processes_of(tmp_path / "runs")) == 1
        grid.send_signal(how)
        said = grid.communicate(timeout=30)[1]
        assert grid.returncode == 128 + how
        assert "interrupted; the same command goes on" in said
        assert not processes_of(tmp_path / "runs")
        assert len(list((tmp_path / "runs").iterdir())) == 1  # no other was started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(grid.pid, signal.SIGKILL)


@pytest.mark.skipif(not CHAOS, reason="the short form is in test_study.py")
@pytest.mark.parametrize("number", range(3))
def test_a_grid_killed_at_a_random_moment(number, tmp_path):
    write_grid(tmp_path / "grid.yaml")

    def start(name):
        folders = ["--records", tmp_path / name, "--runs", tmp_path / f"runs-{name}"]
        command = [sys.executable, RUN_PY, tmp_path / "grid.yaml", *folders, "--jobs", "2"]
        return subprocess.Popen(command, start_new_session=True)

    began = time.perf_counter()
    assert start("calm").wait() == 0
    seconds = time.perf_counter() - began
    killed = start("killed")
    try:
        killed.wait(np.random.default_rng(number).uniform(0.3, 0.9) * seconds)
    except subprocess.TimeoutExpired:
        os.killpg(killed.pid, SIGNALS[number % 2])
    assert killed.wait() == (143 if SIGNALS[number % 2] == signal.SIGTERM else -signal.SIGKILL)
    assert start("killed").wait() == 0
    files = {path.name for path in (tmp_path / "calm").iterdir()}
    assert files == {path.name for path in (tmp_path / "killed").iterdir()} and len(files) == 8
    for path in (tmp_path / "calm").glob("*.json"):
        found = RunRecord.load(tmp_path / "killed" / path.name)
        np.testing.assert_equal(found.result, RunRecord.load(path).result)
        npz = path.with_suffix(".npz").name
        assert (tmp_path / "killed" / npz).read_bytes() == (tmp_path / "calm" / npz).read_bytes()
    assert not [p for p in temporary_files(tmp_path) if p.suffix != ".lock"]
