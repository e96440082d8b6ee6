"""Measure class gradients on real data: python study/gradients.py --data FOLDER [--runs FOLDER]

Takes the settings of CamVid and NYUv2 in ``study/grids/small/table1.yaml``, seed 0, and trains them
with cross-entropy, with 1/S alone and with PAT. At the start, half-way and at the end the gradients
of the run's own loss are measured by class (:mod:`patlib.gradients`) and summarised in
``study/records/gradients.json``: numbers only. Where ``--runs`` holds the finished run (as
``study/run.py`` leaves it), its last network is taken and only the first half is trained.

Of runs of 100 epochs (cross-entropy and PAT of seed 2 in ``study/grids/small/segnet.yaml``) the
last network alone is measured, where ``--runs`` holds it.

A measurement that the record already has is left alone; two CPU cores need about 40 minutes for
the six short ones.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a bare clone, not installed, can run it

from patlib import RunConfig, load_model  # noqa: E402
from patlib.data import build_dataset  # noqa: E402
from patlib.files import write_text  # noqa: E402
from patlib.gradients import measure, summarise, training_states  # noqa: E402
from patlib.records import RECORD as RUN_RECORD  # noqa: E402
from patlib.records import provenance  # noqa: E402
from patlib.study.grids import data_root, load_grid, run_name  # noqa: E402

RECORD = ROOT / "study" / "records" / "gradients.json"
GRIDS = ROOT / "study" / "grids" / "small"
LONG_SEED = 2  # of the runs of 100 epochs
DATASETS = ("camvid", "nyuv2")
METHODS = {
    "CE": {"loss": "ce", "loss_params": {}},
    "1/S": {"loss": "pat", "loss_params": {"weight": "none"}},
    "PAT": {"loss": "pat", "loss_params": {"temperature": 20.0}},
}
IMAGES = 128  # training images of each measurement
WHOLE = 24  # of them, those that are followed through the whole network


def planned(data: Path) -> Iterator[tuple[str, str, RunConfig]]:
    """The part of the record, the loss and the run of each measurement."""

    def configure(settings: Mapping[str, Any]) -> RunConfig:
        root = str(data_root(settings["dataset"], data))
        return RunConfig(**settings, data_root=root, device="cpu")

    short = [run.settings for run in load_grid(GRIDS / "table1.yaml") if run.settings["seed"] == 0]
    for name in DATASETS:
        shared = next(settings for settings in short if settings["dataset"] == name)
        for method, settings in METHODS.items():
            yield "datasets", method, configure({**shared, **settings})
    for run in load_grid(GRIDS / "segnet.yaml"):
        if run.settings["seed"] == LONG_SEED and run.method in ("CE", "PAT"):
            yield "long", run.method, configure(run.settings)


def networks(part: str, config: RunConfig, runs: Path | None) -> list[tuple[int, nn.Module]]:
    """Epochs done, and the network then; those of a short run that are not there are trained."""
    folder = runs and runs / run_name(config.settings())
    finished = bool(folder) and (folder / RUN_RECORD).is_file()
    last = [(config.epochs, load_model(folder)[0])] if finished else []
    if part == "long":
        return last
    stages = [0, config.epochs // 2, config.epochs]
    return [*training_states(config, stages[: 3 - len(last)]), *last]


def describe(config: RunConfig, states: Sequence[tuple[int, nn.Module]]) -> dict:
    """The networks of one run, measured: epochs done -> summary."""
    parts = measure(config, states, IMAGES), measure(config, states, WHOLE, whole_network=True)
    return {
        str(epochs): {**summarise(part), "network": summarise(whole)["network"]}
        for (epochs, part), whole in zip(parts[0].items(), parts[1].values(), strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="holds camvid/ and nyuv2/")
    parser.add_argument("--runs", type=Path, help="finished runs, each under its own name")
    parser.add_argument("--out", type=Path, default=RECORD, help="the file (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    try:
        for name in DATASETS:
            build_dataset(name, data_root(name, chosen.data))
    except (OSError, ValueError) as error:
        parser.error(str(error))

    record = json.loads(chosen.out.read_text()) if chosen.out.exists() else {}
    for part, method, config in planned(chosen.data):
        by_dataset = record.setdefault(part, {})
        if method in by_dataset.get(config.dataset, {"methods": {}})["methods"]:
            continue
        print(f"{config.dataset}, {method}, {config.epochs} epochs ...", flush=True)
        started = time.perf_counter()
        states = networks(part, config, chosen.runs)
        if not states:
            print(f"left out: --runs does not hold {run_name(config.settings())}", flush=True)
            continue
        names = list(build_dataset(config.dataset, config.data_root).class_names)
        entry = by_dataset.setdefault(config.dataset, {"methods": {}, "class_names": names})
        entry["methods"][method] = {
            "config": config.settings(),
            "states": describe(config, states),
            "provenance": {
                **provenance(torch.device("cpu")),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(time.perf_counter() - started, 1),
            },
        }
        write_text(chosen.out, json.dumps(record, indent=1) + "\n")
    print(chosen.out)


if __name__ == "__main__":
    main()
