"""A full, failing or read-only disk and a power loss: nothing is lost but the last epoch.

Kills are in test_killed.py. `make chaos` goes through every operation, and kills more often.
"""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from chapters import figures
from fake_runs import grid_file
from faults import (
    CHAOS,
    PowerLoss,
    failing_disk,
    other_device,
    temporary_files,
    tiny_config,
    watched,
)

from patlib import RunRecord, load_model, train
from patlib.checkpoints import read_checkpoint, save_checkpoint
from patlib.data import build_dataset, load_arrays
from patlib.files import write_text
from patlib.study.grids import load_grid
from patlib.training import output_folder

# The short form takes every fifth operation of a whole run.
SHARE = 1 if CHAOS else 5


@pytest.fixture(scope="module")
def calm():
    """The result that every run here must end with, once there is one."""
    return {}


@pytest.fixture
def undisturbed(camvid_tree, tmp_path, calm, monkeypatch):
    if not calm:
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("PATLIB_CACHE", str(tmp_path / "calm-cache"))
            config = tiny_config(camvid_tree, tmp_path / "calm")
            calm.update(train(config, progress=False).result)
    return calm


def until_it_passes(folder, action, error, step=1):
    """Let the n-th operation of an action fail, for n = 1, 1 + step, ... until it passes.

    After each failure it must pass. Returns the operations of an undisturbed action.
    """
    n = 1
    while True:
        with failing_disk(folder, n, error) as done:
            try:
                action(n)
            except (OSError, ValueError) as raised:  # ValueError: output_dir is refused
                assert os.strerror(error) in str(raised) and str(folder) in str(raised), raised
            else:
                assert len(done) < n  # no fault was swallowed
                return done
        assert len(done) == n, "it went on after the failure"
        action(n)
        n += step


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_failure_of_the_disk_leaves_the_old_file_or_the_new_one(tmp_path, error):
    path = tmp_path / "file.txt"

    def action(n):
        before = path.read_text() if path.exists() else None
        try:
            write_text(path, f"content {n}")
        except OSError:
            after = path.read_text() if path.exists() else None
            assert after in (before, f"content {n}")
            raise
        finally:
            assert not temporary_files(tmp_path)
        assert path.read_text() == f"content {n}"

    done = until_it_passes(tmp_path, action, error)
    assert [operation for operation, _ in done] == ["write", "fsync", "rename", "fsync"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_failure_of_the_disk_leaves_a_whole_checkpoint(camvid_tree, tmp_path, error):
    folder = tmp_path / "run"
    train(tiny_config(camvid_tree, folder, epochs=1), progress=False)
    content = read_checkpoint(folder / "last.ckpt")

    def action(n):
        try:
            save_checkpoint(folder / "last.ckpt", content)
        finally:
            assert not temporary_files(folder)
            kept = [name for name in ("last.ckpt", "previous.ckpt") if (folder / name).exists()]
            assert kept
            for name in kept:
                read_checkpoint(folder / name)

    until_it_passes(folder, action, error)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_failure_of_the_disk_leaves_a_whole_cache_entry_or_none(camvid_tree, tmp_path, error):
    dataset = build_dataset("camvid", camvid_tree, "validation", image_size=(32, 40))
    expected = load_arrays(dataset, tmp_path / "other")
    cache = tmp_path / "cache"

    def action(n):
        try:
            arrays = load_arrays(dataset, cache)
        finally:
            assert not temporary_files(cache)
        assert arrays.fingerprint == expected.fingerprint
        shutil.rmtree(cache)

    done = until_it_passes(cache, action, error)
    operations = [operation for operation, _ in done]
    assert operations.count("write") >= 4 and operations[-2:] == ["rename", "fsync"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_any_failure_of_the_disk_leaves_a_record_that_is_filed_whole_or_not(tmp_path, error):
    """By study/run.py: arrays and record, the record last."""
    script = figures.load_script("study/run.py")
    small = dict(model="segnet", model_params={"width": 1, "stages": 1}, image_size=[32, 40])
    (planned,) = load_grid(grid_file(tmp_path, {"CE": {"loss": "ce"}}, seeds=[0], **small))
    runs, records = tmp_path / "runs", tmp_path / "records"
    records.mkdir()
    train(planned.config(None, runs / planned.name), progress=False)
    finished = (runs / planned.name / "record.json").read_bytes()

    def action(n):
        for file in records.iterdir():
            file.unlink()
        try:
            script.train_and_file(planned, None, runs, records, train=lambda config: None)
        finally:
            filed = records / f"{planned.name}.json"
            assert not filed.exists() or filed.read_bytes() == finished
            assert not filed.exists() or filed.with_suffix(".npz").exists()
        assert sorted(file.suffix for file in records.iterdir()) == [".json", ".npz"]

    done = until_it_passes(records, action, error)
    assert [operation for operation, _ in done].count("rename") == 2


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO] if CHAOS else [errno.ENOSPC])
def test_a_run_passes_after_any_failure_of_the_disk(camvid_tree, tmp_path, undisturbed, error):
    folder = tmp_path / "runs"

    def action(n):
        config = tiny_config(camvid_tree, folder / str(n))
        result = train(config, progress=False).result
        np.testing.assert_equal(result, undisturbed)
        assert not temporary_files(folder)

    folder.mkdir()
    done = until_it_passes(folder, action, error, SHARE)
    assert len(done) > 24


def test_a_run_survives_a_power_loss(camvid_tree, tmp_path, undisturbed, monkeypatch):
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setenv("PATLIB_CACHE", str(folder / "cache"))
    power = PowerLoss(folder)
    with power.watch():
        train(tiny_config(camvid_tree, folder / "run"), progress=False)
    epochs = []
    # With the state at the very end, at which nothing may be lost.
    power.states.append((power.content, power.names))
    last = len(power.states) - 1
    for state in sorted({*range(0, last, 1 if CHAOS else 10), last}):
        after = tmp_path / f"after-{state}"
        power.restore(state, after)
        epochs.append(checkpointed_epochs(after / "run"))
        monkeypatch.setenv("PATLIB_CACHE", str(after / "cache"))
        record = train(tiny_config(camvid_tree, after / "run"), progress=False)
        np.testing.assert_equal(record.result, undisturbed)
        assert not temporary_files(after)
    assert epochs == sorted(epochs) and epochs[0] == 0 and epochs[-1] == 2
    assert RunRecord.load(tmp_path / f"after-{last}" / "run" / "record.json")


def checkpointed_epochs(folder):
    found = [0]
    for name in ("last.ckpt", "previous.ckpt"):
        if (folder / name).exists():
            found.append(len(read_checkpoint(folder / name)["curves"]))
    return max(found)


def test_every_file_is_on_the_disk_before_it_gets_its_name(camvid_tree, tmp_path, monkeypatch):
    """Also the folder that has the name, before anything else is written."""
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setenv("PATLIB_CACHE", str(folder / "cache"))
    synced, renamed_in = set(), set()

    def check(operation, path):
        if operation == "write":
            synced.discard(path)
            assert not renamed_in, f"{renamed_in} not synced before {path} is written"
        elif operation == "fsync":
            synced.add(path)
            renamed_in.discard(path)
        else:
            # Of a kept checkpoint, the inode was synced when it got its first name.
            assert path in synced or path.name == "last.ckpt", path
            renamed_in.add(path.parent)

    with watched(folder, check):
        train(tiny_config(camvid_tree, folder / "run"), progress=False)
    assert not renamed_in and {"cache", "run"} <= {path.name for path in synced}


def test_temporary_files_on_another_device(camvid_tree, tmp_path, undisturbed):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with other_device(elsewhere):
        with pytest.raises(OSError, match="cross-device"):
            os.replace(elsewhere / "x", tmp_path / "x")
        record = train(tiny_config(camvid_tree, tmp_path / "run"), progress=False)
    np.testing.assert_equal(record.result, undisturbed)


@pytest.fixture
def without_rights():
    """A folder that this process may read and not write to, also where it is that of root."""
    folder = Path(tempfile.mkdtemp(prefix="patlib-read-only-"))
    try:
        folder.chmod(0o555)
        yield folder
    finally:
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_read_only_folders(camvid_tree, tmp_path, without_rights, monkeypatch):
    train(tiny_config(camvid_tree, tmp_path / "run", epochs=1), progress=False)
    without_rights.chmod(0o755)
    shutil.copytree(tmp_path / "run", without_rights / "run")
    shutil.copytree(camvid_tree, without_rights / "camvid")
    dataset = build_dataset("camvid", without_rights / "camvid", "train", image_size=(32, 40))
    cache = without_rights / "cache"
    load_arrays(dataset, cache)
    for path in (without_rights, *(p for p in without_rights.rglob("*") if p.is_dir())):
        path.chmod(0o555)
    if os.geteuid() == 0:
        os.seteuid(65534)
    # Reading needs no right to write: images, a cache entry that is there, a trained network.
    load_arrays(dataset, cache)
    assert load_model(without_rights / "run")
    with pytest.raises(ValueError, match="output_dir must be a folder that can be written to"):
        with output_folder(without_rights / "run"):
            pass
    other = build_dataset("camvid", without_rights / "camvid", "test", image_size=(32, 40))
    with pytest.raises(OSError, match=r"PATLIB_CACHE names another folder.*cache/camvid-test"):
        load_arrays(other, cache)
