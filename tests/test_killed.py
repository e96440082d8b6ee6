"""Killed at any moment and started again, a run ends with the result of an undisturbed one."""

import dataclasses
import importlib
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from patlib import RunConfig, RunRecord, train

PHASES = {
    "while reading the images": ("patlib.data.camvid", "CamVid.arrays", 4, True),
    "before the cache gets its name": ("pathlib", "Path.rename", 1, True),
    "in the first epoch": ("patlib.losses.pat", "pat_loss", 2, True),
    "in the middle of the second epoch": ("patlib.losses.pat", "pat_loss", 5, True),
    "between training and validation": ("patlib.training", "evaluate", 2, True),
    "before the checkpoint gets its name": ("os", "replace", 4, True),
    "between checkpoint and log": ("patlib.training", "save_checkpoint", 2, False),
    "before the test": ("patlib.training", "evaluate", 4, True),
    "before the label maps get their name": ("os", "replace", 9, True),
    "before the record gets its name": ("patlib.records", "RunRecord.save", 1, True),
    "after the record": ("patlib.records", "RunRecord.save", 1, False),
}


# Imports patlib once; each process that is killed is a fork of it.
KILLED = multiprocessing.get_context("forkserver")
KILLED.set_forkserver_preload(["patlib.training", "patlib.data"])


def train_and_die(settings, cache, module, name, call, before):
    """Run a configuration; kill this process (SIGKILL: nothing is cleaned up) when a function is
    called for the n-th time, before or after it does its work."""
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
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(home, attribute, deadly)
    train(RunConfig(**settings), progress=False)


@pytest.fixture(scope="module")
def undisturbed():
    """The result that every killed run must end with."""
    return {}


@pytest.mark.parametrize("phase", PHASES)
def test_killed_and_started_again(phase, camvid_tree, tmp_path, undisturbed, monkeypatch):
    # The data are drawn from a fixed seed: they are the same in every test's own folder.
    config = RunConfig(
        dataset="camvid",
        data_root=camvid_tree,
        image_size=(32, 40),
        model_params={"width": 2},
        epochs=3,
        batch_size=2,
        device="cpu",
        output_dir=str(tmp_path / "run"),
    )
    if not undisturbed:
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("PATLIB_CACHE", str(tmp_path / "other-cache"))
            calm = dataclasses.replace(config, output_dir=str(tmp_path / "undisturbed"))
            undisturbed.update(train(calm, progress=False).result)

    arguments = (config.to_dict(), os.environ["PATLIB_CACHE"], *PHASES[phase])
    killed = KILLED.Process(target=train_and_die, args=arguments)
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert (tmp_path / "run" / "record.json").exists() == (phase == "after the record")
    train(config, progress=False)
    record = RunRecord.load(tmp_path / "run" / "record.json")
    np.testing.assert_equal(record.result, undisturbed)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {
        ".lock",
        "last.ckpt",
        "previous.ckpt",
        "log.csv",
        "record.json",
        "test_images.npz",
    }
