"""The learning rate that the trials choose for each method: python study/rates.py

Reads the records of ``grids/small/rates.yaml`` and prints, for each data set and method, the
validation mIoU at each rate (%, the mean over the last tenth of the epochs) and the rate that is
chosen, that of the highest. The test part is not read.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from patlib.records import RunRecord  # noqa: E402
from patlib.study.grids import load_grid, load_records  # noqa: E402

GRID = ROOT / "study" / "grids" / "small" / "rates.yaml"
RECORDS = ROOT / "study" / "records" / "runs"


def last_tenth(record: RunRecord) -> float:
    """The mean validation mIoU over the last tenth of the epochs."""
    curve = record.result["curves"]["validation_miou"]
    return float(np.mean(curve[-max(1, len(curve) // 10) :]))


def trials(grid: Path = GRID, records: Path = RECORDS) -> pd.DataFrame:
    """A row for each data set and method: the score at each rate (NaN if not run) and the choice.

    While a trial is missing, nothing is chosen.
    """
    planned = load_grid(grid)
    done = load_records(planned, records)
    scores = defaultdict(dict)
    for run in planned:
        key = run.settings["dataset"], run.method
        record = done.get(run.name)
        scores[key][run.settings["learning_rate"]] = last_tenth(record) if record else np.nan
    table = pd.DataFrame.from_dict(scores, orient="index")
    table["chosen"] = [row.idxmax() if row.notna().all() else np.nan for _, row in table.iterrows()]
    return table


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.parse_args(arguments)
    table = trials()
    rates = [column for column in table if column != "chosen"]
    table[rates] = (100 * table[rates]).round(1)
    print(table.to_string())


if __name__ == "__main__":
    main()
