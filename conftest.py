import os
import shutil
import tempfile
from pathlib import Path

import nbval.kernel
import numpy as np
import pytest
import torch
from PIL import Image

# The networks of the tests are too small for two threads to do anything but wait on each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # in the kernels of notebooks and other processes, too

START_KERNEL = nbval.kernel.start_new_kernel


def start_kernel(**settings):
    """A kernel for nbval, in three attempts.

    A kernel is told its ports before it opens them. Where tests run side by side, another process
    can take one in between, and the kernel dies: https://github.com/nteract/papermill/issues/511.
    """
    for _ in range(2):
        try:
            return START_KERNEL(**settings)
        except RuntimeError:  # it died, or did not answer in time
            continue
    return START_KERNEL(**settings)


nbval.kernel.start_new_kernel = start_kernel


def pytest_configure(config):
    if hasattr(config, "workerinput"):  # a worker of pytest-xdist; this is done once, before them
        return
    # The notebooks' demonstration is trained afresh, never read back.
    shutil.rmtree(Path(__file__).parent / "notebooks" / "runs" / "demo", ignore_errors=True)
    # The notebooks that nbval runs do not read or fill the user's cache; own_cache is for tests.
    cache = tempfile.TemporaryDirectory(prefix="patlib-cache-")
    config.add_cleanup(cache.cleanup)
    os.environ["PATLIB_CACHE"] = cache.name


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or fills the user's cache, or that of another test."""
    monkeypatch.setenv("PATLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def real_data():
    """The folder of real images, where there is one."""
    if not os.environ.get("PATLIB_TEST_DATA"):
        pytest.skip("PATLIB_TEST_DATA is not set: no real images here")
    return Path(os.environ["PATLIB_TEST_DATA"]).resolve()


def write_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def camvid_tree(tmp_path):
    """A tiny CamVid in its official layout: 6 / 2 / 5 frames of 36x48."""
    rng = np.random.default_rng(0)
    root = tmp_path / "camvid"
    for folder, n in {"train": 6, "val": 2, "test": 5}.items():
        for i in range(n):
            image = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
            write_image(root / folder / f"{folder}_{i}.png", image)
            mask = rng.integers(0, 12, (36, 48), dtype=np.uint8)
            write_image(root / f"{folder}annot" / f"{folder}_{i}.png", mask)
    return root


@pytest.fixture
def pet_tree(tmp_path):
    """A tiny Oxford-IIIT Pet in its official layout: 10 trainval, 4 test, sizes differ."""
    rng = np.random.default_rng(1)
    base = tmp_path / "pets" / "oxford-iiit-pet"
    for part, n in {"trainval": 10, "test": 4}.items():
        lines = []
        for i in range(n):
            name, size = f"Breed_{part}_{i}", (33 + i, 47)
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            write_image(base / "images" / f"{name}.jpg", image)
            trimap = rng.integers(1, 4, size, dtype=np.uint8)
            write_image(base / "annotations" / "trimaps" / f"{name}.png", trimap)
            lines.append(f"{name} 1 1 1\n")
        (base / "annotations" / f"{part}.txt").write_text("".join(lines))
    return base.parent
