"""Grid files: the runs behind one table, each with the name that its record is filed under."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from patlib.checks import check_parameters
from patlib.config import PLACEMENT, SCHEMA, RunConfig, identity
from patlib.data import build_dataset
from patlib.records import RESULTS_VERSION, RunRecord


@dataclass(frozen=True)
class PlannedRun:
    """One run of a grid.

    Attributes:
        method: label of the row of a table, such as ``"PAT"``.
        settings: complete and checked, see :meth:`patlib.RunConfig.settings`.
        candidate: which of the settings that a tuned method chooses from (0 if there is one).
    """

    method: str
    settings: dict[str, Any]
    candidate: int = 0

    @property
    def name(self) -> str:
        """Name of the record's file, see :func:`run_name`."""
        return run_name(self.settings)

    def config(
        self, data_root: str | Path | None, output_dir: str | Path, **placement: Any
    ) -> RunConfig:
        """The configuration of the run, in these folders (and on ``device``, ``devices``)."""
        return RunConfig(
            **self.settings, data_root=data_root, output_dir=str(output_dir), **placement
        )


def load_grid(path: str | Path) -> list[PlannedRun]:
    """The runs of a grid file; see :func:`read_grid`. Errors name the file."""
    try:
        return read_grid(yaml.safe_load(Path(path).read_text()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_grid(grid: Any) -> list[PlannedRun]:
    """The runs of a grid.

    A grid is a list of ``blocks``, each with ``settings`` (of RunConfig, shared by its runs),
    ``methods`` (label -> settings of the method; a list of settings is a method to be tuned: the
    one with the best validation mIoU counts) and ``seeds``. A block's runs are all methods with all
    seeds, seed by seed.

    Raises:
        ValueError: something is missing, unknown or not allowed in a RunConfig; the message says
            in which block and method. Nothing is run or read before all of it is checked.
    """
    if not isinstance(grid, Mapping) or set(grid) != {"blocks"} or not _filled(grid["blocks"]):
        given = list(grid) if isinstance(grid, Mapping) else grid
        raise ValueError(f"a grid must be a list of blocks and nothing else, got {given!r}")
    runs = []
    for number, block in enumerate(grid["blocks"]):
        where = f"blocks[{number}]"
        if not isinstance(block, Mapping) or set(block) != {"settings", "methods", "seeds"}:
            given = list(block) if isinstance(block, Mapping) else block
            raise ValueError(f"{where} must have settings, methods and seeds, got {given!r}")
        if not _filled(block["seeds"]):
            raise ValueError(f"{where}: seeds must be a list of integers, got {block['seeds']!r}")
        for part in ("settings", "methods"):
            if not isinstance(block[part], Mapping) or not block[part]:
                raise ValueError(f"{where}: {part} must be a filled mapping, got {block[part]!r}")
        for seed, (method, choices) in itertools.product(block["seeds"], block["methods"].items()):
            choices = [choices] if isinstance(choices, Mapping) else choices
            if not _filled(choices) or not all(isinstance(choice, Mapping) for choice in choices):
                raise ValueError(
                    f"{where}, method {method!r} must be settings or a list of them, "
                    f"got {choices!r}"
                )
            for candidate, choice in enumerate(choices):
                try:
                    settings = complete({**block["settings"], **choice, "seed": seed})
                except ValueError as error:
                    raise ValueError(f"{where}, method {method!r}: {error}") from error
                runs.append(PlannedRun(method, settings, candidate))
    return runs


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a run of a grid: those given and the defaults, checked."""
    if given := [name for name in PLACEMENT if name in settings]:
        raise ValueError(
            f"a grid must not set {', '.join(given)}: chosen when it is run, got {settings!r}"
        )
    known = [field.name for field in fields(RunConfig) if field.name not in PLACEMENT]
    check_parameters("a run", settings, known)
    if settings.get("image_size") is None:
        raise ValueError("image_size must be (H, W) in a grid, got None")
    if settings.get("precision") == "auto":
        raise ValueError(
            "precision must be named in a grid, so that its runs are the same on every machine, "
            "got 'auto'"
        )
    somewhere = None if settings.get("dataset", "synthetic") == "synthetic" else "."
    return RunConfig(**settings, data_root=somewhere).settings()


def run_name(settings: Mapping[str, Any]) -> str:
    """The name that the record of a run is filed under.

    It consists of data set, image size, network, loss, seed, and a hash of the schema's number,
    ``RESULTS_VERSION`` and the run's identity (:func:`patlib.config.identity`). The same run on
    another machine has the same name.

    Args:
        settings: complete, with an ``image_size``; see :meth:`patlib.RunConfig.settings`.
    """
    content = json.dumps([SCHEMA, RESULTS_VERSION, identity(settings)], sort_keys=True)
    return "-".join(
        [
            settings["dataset"],
            "x".join(map(str, settings["image_size"])),
            settings["model"],
            settings["loss"],
            f"seed{settings['seed']}",
            hashlib.sha256(content.encode()).hexdigest()[:8],
        ]
    )


def load_records(planned: Iterable[PlannedRun], folder: str | Path) -> dict[str, RunRecord]:
    """The records of those runs that have one: name -> record."""
    paths = {run.name: Path(folder) / f"{run.name}.json" for run in planned}
    return {name: RunRecord.load(path) for name, path in paths.items() if path.is_file()}


def data_root(dataset: str, data: str | Path | None) -> Path | None:
    """Where a data set lies in the folder that holds them all, each under its own name.

    ``oxford_pet`` is the exception: torchvision makes a folder ``oxford-iiit-pet`` in its root.
    """
    if dataset == "synthetic":
        return None
    if data is None:
        raise ValueError(f"data must be the folder that holds the data set {dataset!r}, got None")
    return Path(data) if dataset == "oxford_pet" else Path(data) / dataset


def open_data(planned: Iterable[PlannedRun], data: str | Path | None) -> None:
    """Open the data sets of these runs, each once, to see whether they are there and complete.

    Raises:
        ValueError, FileNotFoundError: see :func:`data_root` and :func:`patlib.data.build_dataset`.
    """
    names = ("dataset", "split_scheme", "void", "data_params")
    wanted = {json.dumps([run.settings[name] for name in names]) for run in planned}
    for dataset, split_scheme, void, params in map(json.loads, sorted(wanted)):
        root = data_root(dataset, data)
        build_dataset(dataset, root, split_scheme=split_scheme, void=void, **params)


def _filled(value: Any) -> bool:
    return isinstance(value, list) and bool(value)
