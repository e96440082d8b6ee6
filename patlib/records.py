"""The record of a run: one JSON file with its configuration, result and provenance."""

import dataclasses
import json
import math
import os
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from patlib import __version__

# Raise by hand when a change makes earlier results wrong; nothing else than this number and the
# configuration outdates a record.
RESULTS_VERSION = 1


@dataclass(frozen=True)
class RunRecord:
    """What a finished run leaves behind.

    Attributes:
        config: the settings that the result depends on (``RunConfig.identity()``).
        result: ``test`` and ``validation`` scores of the last epoch (see SegmentationMetrics),
            ``curves`` by epoch, ``class_names``, ``class_counts`` (training pixels) and
            ``results_version``. The same configuration gives the same result on a CPU.
        provenance: seed, commit, versions, device, durations in seconds, date, data fingerprints.
    """

    config: dict
    result: dict
    provenance: dict

    def save(self, path: str | Path) -> Path:
        """Write as JSON (NaN as null), atomically."""
        return write_text(path, json.dumps(_plain(dataclasses.asdict(self)), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "RunRecord":
        """Read a record.

        Raises:
            ValueError: the file is not a record; the message names it.
        """
        try:
            record = cls(**json.loads(Path(path).read_text()))
            parts = [record.result[part] for part in ("test", "validation")]
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not the record of a run ({error!r})") from error
        for scores in parts:
            # null stands for NaN: a class in neither truth nor prediction
            for name, score in scores.items():
                if name == "iou":
                    scores[name] = [math.nan if v is None else v for v in score]
                elif score is None:
                    scores[name] = math.nan
        return record


def provenance(device: torch.device) -> dict:
    """Where a result came from: commit, versions and device."""
    packages = ("torch", "torchvision", "lightning", "numpy", "segmentation-models-pytorch")
    cuda = device.type == "cuda"
    return {
        "commit": _commit(),
        "versions": {"patlib": __version__, **{p: _version(p) for p in packages}},
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "threads": torch.get_num_threads(),
    }


@contextmanager
def write_whole(path: str | Path):
    """A binary file that appears whole or not at all: written beside first, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> Path:
    """Write a whole file or nothing (see :func:`write_whole`)."""
    with write_whole(path) as file:
        file.write(text.encode())
    return Path(path)


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of this source tree, with ``-dirty`` if it was changed; None outside of git."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", *command],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        # Installed into somebody's environment, this file is not part of the repository around it.
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None
