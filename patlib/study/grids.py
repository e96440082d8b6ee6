"""A grid: the runs behind one table, each with a name that its record is filed under."""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from patlib.config import RunConfig
from patlib.data import build_dataset
from patlib.records import RESULTS_VERSION, RunRecord

# What does not make a run another run: where it reads, writes and computes.
ELSEWHERE = ("data_root", "output_dir", "device", "devices")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a grid.

    Attributes:
        method: label of the row of a table, such as ``"PAT"``.
        settings: of :class:`~patlib.RunConfig`, all but those of ``ELSEWHERE``; checked.
        candidate: which of the settings that a tuned method chooses from (0 if there is one).
    """

    method: str
    settings: dict
    candidate: int = 0

    @property
    def name(self) -> str:
        """Name of the record's file, readable; any other settings have another one."""
        return run_name(self.settings)

    def config(self, data_root: str | Path | None, output_dir: str | Path, **settings) -> RunConfig:
        """The run, with places (and ``device``, ``devices``) filled in."""
        return RunConfig(
            **self.settings, data_root=data_root, output_dir=str(output_dir), **settings
        )


def load_grid(path: str | Path) -> list[PlannedRun]:
    """The cells of a grid file; see :func:`read_grid`. Errors name the file."""
    try:
        return read_grid(yaml.safe_load(Path(path).read_text()))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error


def read_grid(grid: Mapping) -> list[PlannedRun]:
    """The cells of a grid.

    A grid is a list of ``blocks``, each with ``settings`` (of RunConfig, shared by its runs),
    ``methods`` (label -> settings of the method; a list of settings is a method to be tuned: the
    one with the best validation mIoU counts) and ``seeds``. A block's runs are all methods with all
    seeds, seed by seed.

    Raises:
        ValueError: something is missing, unknown or not allowed in a RunConfig; the message says
            in which block and method. Nothing is run or read before all of it is checked.
    """
    if not isinstance(grid, Mapping) or set(grid) != {"blocks"} or not _filled(grid["blocks"]):
        raise ValueError("a grid is a list of blocks and nothing else")
    cells = []
    for number, block in enumerate(grid["blocks"]):
        where = f"blocks[{number}]"
        if not isinstance(block, Mapping) or set(block) != {"settings", "methods", "seeds"}:
            raise ValueError(f"{where} takes settings, methods and seeds, all three")
        if not _filled(block["seeds"]):
            raise ValueError(f"{where}: seeds={block['seeds']!r} is not allowed: it takes a list")
        for part in ("settings", "methods"):
            if not isinstance(block[part], Mapping) or not block[part]:
                raise ValueError(f"{where}: {part}={block[part]!r} is not allowed: it takes names")
        for seed, (method, choices) in itertools.product(block["seeds"], block["methods"].items()):
            choices = [choices] if isinstance(choices, Mapping) else choices
            if not _filled(choices) or not all(isinstance(choice, Mapping) for choice in choices):
                raise ValueError(f"{where}, method {method!r} takes settings or a list of them")
            for candidate, choice in enumerate(choices):
                try:
                    settings = complete({**block["settings"], **choice, "seed": seed})
                except ValueError as error:
                    raise ValueError(f"{where}, method {method!r}: {error}") from error
                cells.append(PlannedRun(method, settings, candidate))
    return cells


def complete(settings: Mapping) -> dict:
    """All settings that make a run what it is: those given and RunConfig's defaults, checked."""
    if given := [name for name in ELSEWHERE if name in settings]:
        raise ValueError(f"{', '.join(given)} cannot be set in a grid: it is chosen when it is run")
    known = [field.name for field in fields(RunConfig) if field.name not in ELSEWHERE]
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"unknown setting {unknown[0]!r}: it takes {', '.join(known)}")
    if settings.get("image_size") is None:
        raise ValueError("image_size is missing: a grid names it")
    somewhere = None if settings.get("dataset", "synthetic") == "synthetic" else "."
    return _without_places(RunConfig(**settings, data_root=somewhere).identity())


def run_name(settings: Mapping) -> str:
    """Name of a run: data set, size, network, loss, seed, and a hash of all settings.

    The hash is over all settings but ``ELSEWHERE``, and over ``RESULTS_VERSION``: a run with
    another setting has another name, the same run on another machine the same.
    """
    settings = _without_places(settings)
    content = json.dumps([RESULTS_VERSION, settings], sort_keys=True)
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


def load_records(cells: list[PlannedRun], folder: str | Path) -> dict[str, RunRecord]:
    """The records of those cells that were run: name -> record."""
    paths = {cell.name: Path(folder) / f"{cell.name}.json" for cell in cells}
    return {name: RunRecord.load(path) for name, path in paths.items() if path.is_file()}


def data_root(dataset: str, data: str | Path | None) -> Path | None:
    """Where a data set lies in the folder that holds them all, each under its own name.

    ``oxford_pet`` is the exception: torchvision makes a folder ``oxford-iiit-pet`` in its root.
    """
    if dataset == "synthetic":
        return None
    if data is None:
        raise ValueError(f"the data set {dataset!r} is read from files: name the folder (data)")
    return Path(data) if dataset == "oxford_pet" else Path(data) / dataset


def open_data(cells: Iterable[PlannedRun], data: str | Path | None) -> None:
    """Open the data sets of these runs, each once, to see whether they are there and complete.

    Raises:
        ValueError, FileNotFoundError: see :func:`data_root` and :func:`patlib.data.build_dataset`.
    """
    names = ("dataset", "split_scheme", "void", "data_params")
    wanted = {json.dumps([cell.settings[name] for name in names]) for cell in cells}
    for dataset, split_scheme, void, params in map(json.loads, sorted(wanted)):
        root = data_root(dataset, data)
        build_dataset(dataset, root, split_scheme=split_scheme, void=void, **params)


def _without_places(settings: Mapping) -> dict:
    return {name: value for name, value in settings.items() if name not in ELSEWHERE}


def _filled(value) -> bool:
    return isinstance(value, list) and bool(value)
