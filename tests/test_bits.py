"""A flipped bit or a cut-off end of a file never becomes another number."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import patlib.training
from patlib import RunConfig, RunRecord, load_model, train
from patlib.checkpoints import CHECKPOINT, PREVIOUS, read_checkpoint, save_checkpoint
from patlib.data import build_dataset, load_arrays
from patlib.files import check_seal
from patlib.records import IMAGES, RECORD, read_images

FLIPS, CUTS = 400, 50


def flat(content):
    """Content of any of the files, as one that can be compared by ==."""
    if isinstance(content, torch.Tensor):
        content = content.numpy()
    if isinstance(content, np.ndarray):
        return str(content.dtype), content.shape, content.tobytes()
    if isinstance(content, dict):
        return {key: flat(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [flat(value) for value in content]
    return repr(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run, and of its cache."""
    folder = tmp_path_factory.mktemp("finished")
    config = RunConfig(
        image_size=(32, 32),
        data_params={"num_classes": 3},
        model_params={"width": 1, "stages": 1},
        epochs=2,
        batch_size=80,
        device="cpu",
        output_dir=str(folder),
    )
    train(config, progress=False)
    return folder


def damaged(files, seed=0):
    """Write each damage into the files, one at a time, and yield what it is and which file."""
    rng = np.random.default_rng(seed)
    whole = {file: file.read_bytes() for file in files}
    ends = np.cumsum([len(data) for data in whole.values()])
    # Half of the flips are in the first and last bytes of the files: there are few of them.
    edges = [i + end for end in (0, *ends) for i in range(-40, 40) if 0 <= i + end < ends[-1]]
    places = np.append(rng.integers(0, ends[-1], FLIPS // 2), rng.choice(edges, FLIPS // 2))
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        file = files[number]
        data = bytearray(whole[file])
        bit = int(rng.integers(8))
        data[place - (ends[number] - len(data))] ^= 1 << bit
        file.write_bytes(data)
        yield f"bit {bit} of byte {place}", file
        file.write_bytes(whole[file])
    for number in rng.integers(0, len(files), CUTS):
        file = files[number]
        data = whole[file]
        length = int(rng.integers(0, len(data)) if rng.random() < 0.8 else len(data) - 2)
        file.write_bytes(data[:length])
        yield f"cut to {length} of {len(data)} bytes", file
        file.write_bytes(data)


def check_all_damage(files, read, name, remedy, unchanged=0):
    """Read the files with each damage: an error that says what to do, or the same content."""
    expected = flat(read())
    refused = 0
    for what, _ in damaged(files):
        try:
            content = read()
        except ValueError as error:
            assert name in str(error) and remedy in str(error), what
            refused += 1
        else:
            assert flat(content) == expected, what
    assert flat(read()) == expected
    assert refused >= FLIPS + CUTS - unchanged


def test_checkpoint(finished):
    path = finished / CHECKPOINT
    check_all_damage([path], lambda: read_checkpoint(path), CHECKPOINT, "remove it")


def test_record(finished):
    path = finished / RECORD
    # What may change is what means nothing: E for e in a number, the newline at the end.
    check_all_damage(
        [path],
        lambda: dataclasses.asdict(RunRecord.load(path)),
        RECORD,
        "Copy it again, or remove it and train again",
        unchanged=4,
    )


def test_images(finished):
    path, sha256 = finished / IMAGES, RunRecord.load(finished / RECORD).images_sha256
    check_all_damage([path], lambda: read_images(path, sha256), IMAGES, "Copy both again")


def test_cache_entry(camvid_tree, tmp_path):
    dataset = build_dataset("camvid", camvid_tree, "train", image_size=(32, 40))
    load_arrays(dataset, tmp_path)
    (entry,) = (path for path in tmp_path.iterdir() if path.name.startswith("camvid-"))
    check_all_damage(
        sorted(entry.iterdir()),
        lambda: load_arrays(dataset, tmp_path)._asdict(),
        entry.name,
        "Remove it, and it is made again",
        unchanged=4,  # the padding of a NumPy header
    )


def test_images_of_another_run_are_refused(finished, tmp_path):
    with np.load(finished / IMAGES) as file:
        other = dict(file)
    other["counts"] = other["counts"] + 1
    np.savez_compressed(tmp_path / IMAGES, **other)
    with pytest.raises(ValueError, match="of another run than the record"):
        read_images(tmp_path / IMAGES, RunRecord.load(finished / RECORD).images_sha256)


def test_a_record_may_be_laid_out_anew(finished, tmp_path):
    text = (finished / RECORD).read_text()
    (tmp_path / RECORD).write_bytes(text.replace("\n", "\r\n").encode())
    found, expected = (RunRecord.load(folder / RECORD) for folder in (tmp_path, finished))
    np.testing.assert_equal(found.result, expected.result)


def test_a_checkpoint_without_its_seal_is_refused_but_one_from_before_is_read(finished, tmp_path):
    path = tmp_path / CHECKPOINT
    content = read_checkpoint(finished / CHECKPOINT)
    assert content.pop("checksum") == "sha256"
    torch.save(content, path)  # as 0.2.0 did
    assert not check_seal(path.read_bytes())
    assert flat(read_checkpoint(path)) == flat(content)
    torch.save({**content, "checksum": "sha256"}, path)
    with pytest.raises(ValueError, match="the SHA-256 at its end is missing"):
        read_checkpoint(path)


def test_other_programs_read_a_sealed_checkpoint(finished):
    content = torch.load(finished / CHECKPOINT, weights_only=True)
    assert flat(content) == flat(read_checkpoint(finished / CHECKPOINT))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    save_checkpoint(tmp_path / CHECKPOINT, {"config": Evil()})
    with pytest.raises(ValueError, match="is not a checkpoint"):
        read_checkpoint(tmp_path / CHECKPOINT)
    assert not (tmp_path / "executed").exists()


# -- the checkpoint before ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def calm():
    """The result that every run here must end with."""
    return {}


@pytest.fixture
def interrupted(camvid_tree, tmp_path, monkeypatch, calm):
    """Configuration of a run that was interrupted in its last epoch, and its undisturbed result."""
    config = RunConfig(
        dataset="camvid",
        data_root=camvid_tree,
        image_size=(32, 40),
        model_params={"width": 2},
        epochs=4,
        batch_size=2,
        device="cpu",
        output_dir=str(tmp_path / "calm"),
    )
    if not calm:
        calm.update(train(config, progress=False).result)
    config = dataclasses.replace(config, output_dir=str(tmp_path / "run"))
    train_epoch, epochs = patlib.training.Learner.train_epoch, []

    def breaks_in_the_last(self, epoch, *args):
        epochs.append(epoch)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        return train_epoch(self, epoch, *args)

    with monkeypatch.context() as broken:
        broken.setattr(patlib.training.Learner, "train_epoch", breaks_in_the_last)
        with pytest.raises(KeyboardInterrupt):
            train(config, progress=False)
    return config, calm


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 3] ^= 16
    path.write_bytes(data[: len(data) // 2] if how == "cut" else data)
    if how == "missing":
        path.unlink()


@pytest.mark.parametrize("how", ["flip", "cut", "missing"])
@pytest.mark.filterwarnings("ignore:.*last.ckpt is not a checkpoint")
def test_a_run_falls_back_to_the_checkpoint_before(interrupted, tmp_path, how):
    config, result = interrupted
    folder = tmp_path / "run"
    epochs = [len(read_checkpoint(folder / name)["curves"]) for name in (PREVIOUS, CHECKPOINT)]
    assert epochs == [2, 3]
    damage(folder / CHECKPOINT, how)
    np.testing.assert_equal(train(config, progress=False).result, result)
    epochs = [len(read_checkpoint(folder / name)["curves"]) for name in (PREVIOUS, CHECKPOINT)]
    assert epochs == [3, 4]


def test_falling_back_says_so(interrupted, tmp_path):
    damage(tmp_path / "run" / CHECKPOINT, "flip")
    with pytest.warns(UserWarning, match=r"run/last\.ckpt .* Training goes on from previous\.ckpt"):
        train(interrupted[0], progress=False)


def test_two_damaged_checkpoints_stop_the_run(interrupted, tmp_path):
    for name in (CHECKPOINT, PREVIOUS):
        damage(tmp_path / "run" / name, "flip")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint.* remove it"):
        train(interrupted[0], progress=False)


def test_a_damaged_file_of_a_finished_run_is_made_again(interrupted, tmp_path):
    config, result = interrupted
    train(config, progress=False)
    damage(tmp_path / "run" / RECORD, "flip")
    with pytest.raises(ValueError, match=r"record\.json is not the record .* train again"):
        train(config, progress=False)
    (tmp_path / "run" / RECORD).unlink()
    np.testing.assert_equal(train(config, progress=False).result, result)
    # A network is never read from the checkpoint before: it would be another one.
    damage(tmp_path / "run" / CHECKPOINT, "flip")
    with pytest.raises(ValueError, match=r"last\.ckpt is not a checkpoint"):
        load_model(tmp_path / "run")
