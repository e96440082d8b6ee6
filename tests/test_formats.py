"""Files of every released version load, or are refused by name.

``tests/formats`` holds a run of SegNet on the embedded data as each version left it: its record,
what it kept of its images, the checkpoint after the first of its two epochs; an entry of the cache;
and a grid of that version. They are never changed. A new version adds a folder.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import patlib
from patlib import RunConfig, RunRecord, load_model, predict, train
from patlib.checkpoints import read_checkpoint
from patlib.data import build_dataset, load_arrays
from patlib.records import read_images
from patlib.study.grids import load_grid

FORMATS = Path(__file__).parent / "formats"
VERSIONS = sorted(path.name for path in FORMATS.iterdir())
every_version = pytest.mark.parametrize("version", VERSIONS)


def config(output_dir):
    return RunConfig(
        image_size=(32, 32),
        data_params={"num_classes": 3},
        model_params={"width": 1, "stages": 1},
        epochs=2,
        batch_size=60,
        device="cpu",
        output_dir=str(output_dir),
    )


def test_there_is_one_of_every_version():
    changes = (FORMATS.parents[1] / "CHANGELOG.md").read_text().splitlines()
    released = {line.split("]")[0][4:] for line in changes if line.startswith("## [")}
    # The files of a version are added with the next one.
    assert released - {"Unreleased", patlib.__version__} <= set(VERSIONS) <= released


def test_records_of_0_2_0_load():
    record = RunRecord.load(FORMATS / "0.2.0" / "record.json")
    assert record.images_sha256 is None and record.provenance["versions"]["patlib"] == "0.2.0"
    assert record.config == config("x").settings()
    arrays = read_images(FORMATS / "0.2.0" / "test_images.npz", record.images_sha256)
    tp, true, predicted = arrays["counts"].sum(0)
    np.testing.assert_allclose(tp / (true + predicted - tp), record.result["test"]["iou"])


def test_a_record_of_0_1_0_is_refused_by_name():
    with pytest.raises(ValueError, match=r"0\.1\.0/record\.json .* no schema.*before 0\.2\.0"):
        RunRecord.load(FORMATS / "0.1.0" / "record.json")


def test_a_run_of_0_2_0_goes_on_to_the_same_result(tmp_path):
    shutil.copy(FORMATS / "0.2.0" / "last.ckpt", tmp_path)
    record = train(config(tmp_path), progress=False)
    expected = RunRecord.load(FORMATS / "0.2.0" / "record.json").result
    # Exactly where it was made; another processor rounds otherwise.
    for name, values in expected["curves"].items():
        assert record.result["curves"][name] == pytest.approx(values, rel=1e-4)
    assert record.result["test"]["miou"] == pytest.approx(expected["test"]["miou"], abs=1e-3)
    assert read_checkpoint(tmp_path / "previous.ckpt")["curves"][0]["epoch"] == 1


def test_a_checkpoint_of_0_2_0_predicts(tmp_path):
    image = Image.fromarray(np.zeros((40, 50, 3), np.uint8))
    assert predict(FORMATS / "0.2.0" / "last.ckpt", image).shape == (40, 50)
    _, content = load_model(FORMATS / "0.2.0" / "last.ckpt")
    assert content["priors"].log_natural.shape == torch.Size([3])


def test_a_checkpoint_of_0_1_0_is_refused_by_name(tmp_path):
    shutil.copy(FORMATS / "0.1.0" / "last.ckpt", tmp_path)
    for use in (load_model, lambda folder: train(config(folder), progress=False)):
        with pytest.raises(
            ValueError, match=r"last\.ckpt .*run is missing.* before 0\.2\.0.*remove"
        ):
            use(tmp_path)


@every_version
def test_a_cache_entry_of_an_earlier_version_is_not_taken(version, camvid_tree, tmp_path):
    (old,) = (FORMATS / version / "cache").iterdir()
    cache = tmp_path / "cache"
    shutil.copytree(old, cache / old.name)
    dataset = build_dataset("camvid", camvid_tree, "train", image_size=(32, 32))
    expected = load_arrays(dataset, cache)
    (entry,) = (path for path in cache.iterdir() if path.name.startswith("camvid-"))
    assert {path.name for path in cache.iterdir()} == {".lock", old.name, entry.name}
    # Nor in the place of one of this version.
    shutil.rmtree(entry)
    shutil.copytree(old, entry)
    with pytest.raises(ValueError, match=rf"{entry.name} is damaged .*Remove it"):
        load_arrays(dataset, cache)
    shutil.rmtree(entry)
    assert load_arrays(dataset, cache).fingerprint == expected.fingerprint


@every_version
def test_grids_load(version):
    planned = load_grid(FORMATS / version / "grid.yaml")
    content = yaml.safe_load((FORMATS / version / "grid.yaml").read_text())
    assert [run.method for run in planned] == list(content["blocks"][0]["methods"])
    # The names of their records have been these since 0.2.0.
    hashes = [run.name.rpartition("-")[2] for run in planned]
    assert (
        hashes == "a8f442c9 6ccf3e6c 4cd0fab8 6ef40e3d b34af130 3059fdd8 a2e46709 289acb78".split()
    )


def test_a_parameter_that_0_1_0_had_is_refused_by_name(tmp_path):
    grid = yaml.safe_load((FORMATS / "0.1.0" / "grid.yaml").read_text())
    grid["blocks"][0]["settings"] |= {"model": "unet", "model_params": {"pretrained": True}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    with pytest.raises(ValueError, match=r"grid\.yaml: .*'unet' has no parameter 'pretrained'"):
        load_grid(tmp_path / "grid.yaml")
