"""Killed at any moment and started again, a run ends with the result of an undisturbed one."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from patlib import RunConfig, RunRecord

# Runs a configuration, and kills its own process (SIGKILL: nothing is cleaned up) when a function
# is called for the n-th time, before or after it does its work.
CHILD = """
import importlib, json, os, signal, sys
import torch
torch.set_num_threads(1)
from patlib import RunConfig, train

settings, where = json.loads(sys.argv[1]), json.loads(sys.argv[2])
if where:
    module, name, call, before = where
    home = importlib.import_module(module)
    for part in name.split(".")[:-1]:
        home = getattr(home, part)
    attribute = name.split(".")[-1]
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
"""

PHASES = {
    "while reading the images": ("patlib.data.camvid", "CamVid.arrays", 4, True),
    "before the cache gets its name": ("pathlib", "Path.rename", 1, True),
    "in the first epoch": ("patlib.losses.pat", "pat_loss", 2, True),
    "in the middle of the second epoch": ("patlib.losses.pat", "pat_loss", 5, True),
    "between training and validation": ("patlib.training", "evaluate", 2, True),
    "before the checkpoint gets its name": ("os", "replace", 3, True),
    "between checkpoint and log": ("patlib.training", "_save_checkpoint", 2, False),
    "before the test": ("patlib.training", "evaluate", 4, True),
    "before the record gets its name": ("patlib.records", "RunRecord.save", 1, True),
    "after the record": ("patlib.records", "RunRecord.save", 1, False),
}


def start(config, where=None):
    command = [sys.executable, "-c", CHILD, json.dumps(config.to_dict()), json.dumps(where)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The result that every killed run must end with."""
    return {}


@pytest.mark.parametrize("phase", PHASES)
def test_killed_and_started_again(phase, camvid_tree, tmp_path, undisturbed):
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
        calm = dataclasses.replace(config, output_dir=str(tmp_path / "undisturbed"))
        done = start(calm)
        assert done.returncode == 0, done.stderr
        undisturbed.update(RunRecord.load(tmp_path / "undisturbed" / "record.json").result)
        shutil.rmtree(tmp_path / "cache")

    killed = start(config, PHASES[phase])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "run" / "record.json").exists() == (phase == "after the record")
    again = start(config)
    assert again.returncode == 0, again.stderr
    record = RunRecord.load(tmp_path / "run" / "record.json")
    np.testing.assert_equal(record.result, undisturbed)
