"""The record of a run: one JSON file with its configuration, result and provenance."""

import dataclasses
import hashlib
import io
import json
import math
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patlib import __version__
from patlib.config import SCHEMA, complete_settings
from patlib.files import write_text, write_whole

# Raise by hand when a change makes earlier results wrong; nothing else than this number and the
# settings outdates a record.
RESULTS_VERSION = 1

#: the files that :func:`patlib.train` leaves in the folder of a run
LOG, RECORD, IMAGES = "log.csv", "record.json", "test_images.npz"
#: beside them where a comparison has chosen the run: the prior shift that it recommends
CHOSEN = "chosen.json"


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
        provenance: seed, commit, versions, device, durations in seconds, date, data fingerprints,
            ``images_sha256`` (of ``test_images.npz``; not before 0.3).
    """

    config: dict[str, Any]
    result: dict[str, Any]
    provenance: dict[str, Any]

    def save(self, path: str | Path) -> Path:
        """Write as JSON (NaN as null) with a SHA-256 of its content, atomically."""
        content = {"schema": SCHEMA, **dataclasses.asdict(self)}
        return write_text(path, format_json({**content, "checksum": _checksum(content)}))

    @classmethod
    def load(cls, path: str | Path) -> "RunRecord":
        """Read a record. Settings that it was made without are completed with their defaults.

        Its content is compared with its SHA-256; records made before 0.3 have none. Line ends and
        indentation may differ.

        Raises:
            ValueError: the file is damaged, not a record, or one of another schema; the message
                names it and says what to do.
        """
        try:
            content = json.loads(Path(path).read_bytes())
            if "schema" not in content:
                raise ValueError("it has no schema, as those made before 0.2.0")
            if content["schema"] != SCHEMA:
                raise ValueError(
                    f"schema must be {SCHEMA}, got {content['schema']!r}, of another version"
                )
            checksum = content.pop("checksum", None)
            if unknown := content.keys() - {"schema", "config", "result", "provenance"}:
                raise ValueError(f"it has {min(unknown)!r}, which records have not")
            if checksum is not None and checksum != _checksum(content):
                raise ValueError("its content does not have the SHA-256 that it names")
            result = _with_nan(content["result"])
            if "shifted" in result:
                chosen = result["shifted"].items()
                result["shifted"] = {name: _with_nan(scores) for name, scores in chosen}
            settings = complete_settings(content["config"])
            return cls(settings, result, dict(content["provenance"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{path} is not the record of a run, or a damaged one ({error!r}). Copy it again, "
                "or remove it and train again"
            ) from error

    @property
    def images_sha256(self) -> str | None:
        """SHA-256 of the file ``test_images.npz``; None in records made before 0.3."""
        return self.provenance.get("images_sha256")

    def run(self) -> dict[str, Any]:
        """What tells the run from others: its settings, the version of its results, its data."""
        return run_and_data(
            self.config, self.provenance.get("data"), self.result.get("results_version")
        )


def save_images(path: str | Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write what a run keeps of its images, see :func:`patlib.train`; return its SHA-256."""
    file = io.BytesIO()  # in memory: an error of the disk is then one of write_whole, with the path
    np.savez_compressed(file, **arrays)
    with write_whole(path) as whole:
        whole.write(file.getbuffer())
    return hashlib.sha256(file.getbuffer()).hexdigest()


def read_images(
    path: str | Path, sha256: str | None, names: Iterable[str] | None = None
) -> dict[str, np.ndarray]:
    """What a run keeps of its images, compared with the SHA-256 in its record.

    Args:
        path: the file ``test_images.npz`` of the run, or what it was filed as.
        sha256: :attr:`patlib.RunRecord.images_sha256`. Of a file whose record has none the CRC-32
            of each array that is read is checked.
        names: of the arrays; None for all. Those that the file does not have are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or that of another run; the message names it and says what to do.
    """
    data = Path(path).read_bytes()
    try:
        if sha256 is not None and sha256 != hashlib.sha256(data).hexdigest():
            raise ValueError("it does not have the SHA-256 in the record")
        with np.load(io.BytesIO(data)) as file:
            return {name: file[name] for name in names or file if name in file}
    except Exception as error:  # zip and NumPy each have their own
        raise ValueError(
            f"{path} is damaged, or of another run than the record beside it ({error}). Copy both "
            "again, or remove both and train again"
        ) from error


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
        "deterministic": not cuda or torch.are_deterministic_algorithms_enabled(),
    }


def _checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a record, however its JSON is laid out."""
    text = json.dumps(json.loads(format_json(content)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


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
