"""The wheel, built from the sdist: complete, and enough for a loss beside PyTorch and NumPy."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = "notebooks/own_images.ipynb"  # of `patlib compare`


def tracked(folder):
    """The files under a folder that belong to the repository."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", folder]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not a git checkout")
    return sorted(name for name in found.stdout.split("\0") if name and (ROOT / name).is_file())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the sdist and the wheel, built from a copy: building writes beside sources."""
    copy = tmp_path_factory.mktemp("source")
    for name in ["pyproject.toml", "README.md", "LICENSE", NOTEBOOK, *tracked("patlib")]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", str(copy)]
    build = subprocess.run(command, capture_output=True, text=True)
    assert build.returncode == 0, build.stdout[-2000:] + build.stderr[-2000:]
    return copy / "dist"


def test_sdist_and_wheel_hold_every_file_of_the_library_and_nothing_else(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        packed = [name for name in file.namelist() if ".dist-info/" not in name]
    with tarfile.open(sdist) as file:
        sources = {member.name.partition("/")[2] for member in file if member.isfile()}
    files = tracked("patlib")
    assert "patlib/py.typed" in files
    assert sorted(packed) == sorted([*files, f"patlib/{NOTEBOOK}"])
    assert {"pyproject.toml", "README.md", "LICENSE", NOTEBOOK, *files} <= sources


# Only what an installation of PyTorch and NumPy brings can be imported, and the unpacked wheel.
ONLY = """
import runpy, sys
allowed, wheel, script = set(sys.argv[1].split(",")), *sys.argv[2:]

class Only:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed | sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Only())
sys.path.insert(0, wheel)
runpy.run_path(script)
"""


def requirements(name, seen):
    """A distribution and what it requires, without extras."""
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:  # of another platform
        return seen
    if name not in seen:
        seen.add(name)
        for requirement in requires:
            if "extra ==" not in requirement:
                requirements(normal(re.match(r"[\w.-]+", requirement)[0]), seen)
    return seen


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_loss_of_the_readme_needs_the_wheel_pytorch_and_numpy_only(built, tmp_path):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as file:
        file.extractall(tmp_path)
    installed = requirements("numpy", requirements("torch", set()))
    allowed = [
        module
        for module, names in packages_distributions().items()
        if module == "patlib" or not installed.isdisjoint(map(normal, names))
    ]
    assert "torch" in allowed and "lightning" not in allowed
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    script = ROOT / "tests" / "take_a_loss.py"
    run = subprocess.run(
        [sys.executable, "-c", ONLY, ",".join({*allowed, "patlib"}), str(tmp_path), str(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    library = tmp_path / "patlib" / "__init__.py"
    assert run.stdout == f"The losses work, training asks for its extra: {library}\n"
