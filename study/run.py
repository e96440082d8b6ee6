"""Run a grid without Snakemake and papermill: python study/run.py GRID --data FOLDER --jobs 4

Trains what has no record yet, several runs side by side if asked, and files each record as soon as
it is there; a run that was interrupted goes on from its last epoch. A run that fails does not stop
the others; the exit code says so and the last lines name it. On a machine with a GPU the runs share
it.

Snakemake calls this file for every single run (``--cell NAME --papermill``), see study/Snakefile.
"""

import argparse
import fcntl
import multiprocessing
import os
import shutil
import subprocess
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a bare clone, not installed, can run a grid

from patlib.grid import Cell, data_root, load_grid  # noqa: E402
from patlib.training import IMAGES, RECORD  # noqa: E402

RECORDS, RUNS = ROOT / "study" / "records" / "runs", ROOT / "runs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grid", type=Path, help="a file of study/grids")
    parser.add_argument("--data", type=Path, help="folder that holds camvid/, nyuv2/, ...")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where records are filed")
    parser.add_argument("--runs", type=Path, default=RUNS, help="checkpoints and notebooks")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--cell", help="only the run of this name")
    parser.add_argument("--papermill", action="store_true", help="through the training notebook")
    parser.add_argument("--dry-run", action="store_true", help="list what would be run")
    options = parser.parse_args()

    try:
        cells = {cell.name: cell for cell in load_grid(options.grid)}
        if options.cell:
            if options.cell not in cells:
                raise ValueError(f"{options.grid} has no cell {options.cell!r}")
            cells = {options.cell: cells[options.cell]}
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    missing = [cell for cell in cells.values() if not filed(cell, options.records)]
    print(f"{options.grid}: {len(cells)} runs, {len(missing)} to do", flush=True)
    if options.dry_run:
        print(*(cell.name for cell in missing), sep="\n")
        return 0

    failed = []
    # Processes of their own even one at a time: a crash ends one run, and CUDA wants "spawn".
    with ProcessPoolExecutor(
        options.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        places = (options.data, options.runs, options.records, options.papermill)
        futures = {pool.submit(run, cell, *places): cell.name for cell in missing}
        for future in as_completed(futures):
            try:
                future.result()
                print("done  ", futures[future], flush=True)
            except Exception:
                failed.append(futures[future])
                traceback.print_exc()
                print("FAILED", futures[future], flush=True)
    if failed:
        print(f"{len(failed)} of {len(missing)} runs failed:", *failed, sep="\n", file=sys.stderr)
    return bool(failed)


def run(cell: Cell, data: Path | None, runs: Path, records: Path, papermill: bool) -> None:
    """Train one cell in ``runs/NAME`` and file its record, unless somebody else just did."""
    folder = (runs / cell.name).resolve()
    root = data_root(cell.settings["dataset"], data)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        if filed(cell, records):
            return
        config = cell.config(root and root.resolve(), folder)
        if papermill:
            parameters = folder / "parameters.yaml"
            parameters.write_text(yaml.safe_dump(config.to_dict()))
            notebook = ["notebooks/train.ipynb", folder / "train.ipynb", "--cwd", folder]
            command = [sys.executable, "-m", "papermill", *notebook, "-f", parameters]
            quiet = ["--no-progress-bar", "--log-level", "ERROR"]
            subprocess.run([*command, *quiet], cwd=ROOT, check=True)
        else:
            from patlib import train

            train(config, progress=False)
        records.mkdir(parents=True, exist_ok=True)
        for source, suffix in ((IMAGES, ".npz"), (RECORD, ".json")):  # the record last
            beside = records / f".{cell.name}{suffix}"
            shutil.copyfile(folder / source, beside)
            os.replace(beside, records / f"{cell.name}{suffix}")


def filed(cell: Cell, records: Path) -> bool:
    return (records / f"{cell.name}.json").is_file()


@contextmanager
def locked(path: Path):
    """Wait until nobody else holds this file. A killed process holds nothing."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main())
