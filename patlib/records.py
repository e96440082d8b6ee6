"""The record of a run: one JSON file with its configuration, result and provenance."""

import dataclasses
import json
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch

from patlib import __version__
from patlib.config import SCHEMA, complete_settings

# Raise by hand when a change makes earlier results wrong; nothing else than this number and the
# settings outdates a record.
RESULTS_VERSION = 1

#: the files that :func:`patlib.train` leaves in the folder of a run
CHECKPOINT, LOG, RECORD, IMAGES = "last.ckpt", "log.csv", "record.json", "test_images.npz"


@dataclass(frozen=True)
class RunRecord:
    """What a finished run leaves behind.

    Attributes:
        config: all settings that the result depends on (``RunConfig.settings()``).
        result: ``test`` and ``validation`` scores of the last epoch (see
            :class:`patlib.evaluation.Evaluation`), ``shifted`` (those under the shifts of the
            logits that validation chooses, see :func:`patlib.evaluation.choose_shifts`), ``curves``
            by epoch, ``class_names``, ``class_counts`` (training pixels), ``class_images``
            (training images that hold the class) and ``results_version``. The same configuration
            gives the same result on a CPU. Records made before 0.2.0 have fewer scores, no
            ``shifted`` and no ``class_images``; what follows from their stored counts is computed
            by ``patlib.study.runs.Run.score``.
        provenance: seed, commit, versions, device, durations in seconds, date, data fingerprints.
    """

    config: dict[str, Any]
    result: dict[str, Any]
    provenance: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write as JSON (NaN as null), atomically."""
        content = {"schema": SCHEMA, **dataclasses.asdict(self)}
        return write_text(path, format_json(content))

    @classmethod
    def load(cls, path: str | Path) -> "RunRecord":
        """Read a record. Settings that it was made without are completed with their defaults.

        Raises:
            ValueError: the file is not a record, or one of another schema; the message names it.
        """
        try:
            content = json.loads(Path(path).read_bytes())
            schema = content["schema"]
            result = _with_nan(content["result"])
            if "shifted" in result:
                chosen = result["shifted"].items()
                result["shifted"] = {name: _with_nan(scores) for name, scores in chosen}
            settings = complete_settings(content["config"])
            record = cls(settings, result, dict(content["provenance"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not the record of a run ({error!r})") from error
        if schema != SCHEMA:
            raise ValueError(f"{path}: schema must be {SCHEMA}, got {schema!r}")
        return record

    def run(self) -> dict[str, Any]:
        """What tells the run from others: its settings, the version of its results, its data."""
        return run_and_data(
            self.config, self.provenance.get("data"), self.result.get("results_version")
        )


def run_and_data(
    settings: Mapping[str, Any], data: Mapping[str, str] | None, version: int = RESULTS_VERSION
) -> dict[str, Any]:
    """What tells a run from others: its settings, the version of its results, its data.

    Args:
        settings: see :meth:`patlib.RunConfig.settings`.
        data: fingerprint of each split.
        version: of the results.
    """
    return {**settings, "results_version": version, "data": data}


def different_settings(here: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Which settings of two runs differ (see :func:`run_and_data`); empty if none does."""
    here, there = complete_settings(here), complete_settings(there)
    return ", ".join(
        f"{name} ({there.get(name)!r} there, {value!r} here)"
        for name, value in here.items()
        if there.get(name) != value
    )


def format_json(content: Any) -> str:
    """JSON of a record: NaN as null, indented, with lists of numbers or names on one line."""

    def layout(value: Any, indent: str) -> str:
        inner = f"{indent} "
        if isinstance(value, dict) and value:
            lines = [f"{inner}{json.dumps(k)}: {layout(v, inner)}" for k, v in value.items()]
            return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
        if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
            lines = [f"{inner}{layout(v, inner)}" for v in value]
            return "[\n" + ",\n".join(lines) + f"\n{indent}]"
        return json.dumps(value)

    return layout(_plain(content), "") + "\n"


def provenance(device: torch.device) -> dict[str, Any]:
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
def write_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that appears whole or not at all: written beside first, then renamed.

    Raises:
        OSError: it cannot be written, such as on a full disk; the message has the path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(beside, 0o644)
        os.replace(beside, path)
    except BaseException as error:
        Path(beside).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def remove_unfinished(path: str | Path) -> None:
    """Remove what killed processes left beside ``path`` (see :func:`write_whole`).

    Only for a caller that no other process writes ``path`` beside.
    """
    path = Path(path)
    for beside in path.parent.glob(f".{path.name}-*"):
        beside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a whole file or nothing (see :func:`write_whole`)."""
    with write_whole(path) as file:
        file.write(text.encode())
    return Path(path)


def _with_nan(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with NaN where JSON has null for a score: 0 / 0, such as of a class nowhere."""

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(v) for v in value]
        return math.nan if value is None else value

    scores = {split: result[split].items() for split in ("test", "validation")}
    return {**result, **{k: {n: number(v) for n, v in items} for k, items in scores.items()}}


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
