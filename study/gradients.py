"""Measure class gradients on real data: python study/gradients.py --data FOLDER [--runs FOLDER]

Takes the settings of CamVid and NYUv2 in ``study/grids/small/table1.yaml``, seed 0, and trains them
with cross-entropy, with 1/S alone and with PAT. At the start, half-way and at the end the gradients
of the run's own loss are measured by class (:mod:`patlib.gradients`) and summarised in
``study/records/gradients.json``: numbers only. Where ``--runs`` holds the finished run (as
``study/run.py`` leaves it), its last network is taken and only the first half is trained.

A measurement that the record already has is left alone; two CPU cores need about 40 minutes for
all six.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

import torch

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
GRID = ROOT / "study" / "grids" / "small" / "table1.yaml"
DATASETS = ("camvid", "nyuv2")
METHODS = {
    "CE": {"loss": "ce", "loss_params": {}},
    "1/S": {"loss": "pat", "loss_params": {"weight": "none"}},
    "PAT": {"loss": "pat", "loss_params": {"temperature": 20.0}},
}
IMAGES = 128  # training images of each measurement
WHOLE = 24  # of them, those that are followed through the whole network


def describe(config: RunConfig, runs: Path | None) -> dict:
    """The states of one run, measured: epochs done -> summary."""
    stages = [0, config.epochs // 2, config.epochs]
    finished = runs and runs / run_name(config.settings())
    if finished and (finished / RUN_RECORD).is_file():
        last = (stages.pop(), load_model(finished)[0])
        states = list(chain(training_states(config, stages), [last]))
    else:
        states = list(training_states(config, stages))
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

    record = json.loads(chosen.out.read_text()) if chosen.out.exists() else {"datasets": {}}
    planned = [run for run in load_grid(GRID) if run.settings["seed"] == 0]
    for name, (method, settings) in [(n, m) for n in DATASETS for m in METHODS.items()]:
        entry = record["datasets"].setdefault(name, {"methods": {}})
        if method in entry["methods"]:
            continue
        shared = next(run.settings for run in planned if run.settings["dataset"] == name)
        root = str(data_root(name, chosen.data))
        config = RunConfig(**{**shared, **settings}, data_root=root, device="cpu")
        print(f"{name}, {method} ...", flush=True)
        started = time.perf_counter()
        entry["class_names"] = list(build_dataset(name, root).class_names)
        entry["methods"][method] = {
            "config": config.settings(),
            "states": describe(config, chosen.runs),
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
