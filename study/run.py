"""Run a grid in one call, on a machine that has a clone and PyTorch and not much else.

    python study/run.py study/grids/NAME.yaml --data FOLDER --jobs 4

Trains what has no record yet, ``--jobs`` runs side by side, each in a process of its own, and files
each record as soon as it is there. An interrupted run goes on from its last epoch. A run that fails
does not stop the others: the last lines name it, and the exit code is not zero. Where there are
several GPUs, each run gets the one with the fewest runs on it.

With Snakemake and papermill at hand, ``study/Snakefile`` does the same through the training
notebook: it calls this file once a run, with ``--notebook NAME``.
"""

import argparse
import fcntl
import itertools
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a bare clone, not installed, can run a grid

from patlib.records import write_whole  # noqa: E402
from patlib.study.grids import PlannedRun, data_root, load_grid, open_data  # noqa: E402

RECORDS, RUNS = ROOT / "study" / "records" / "runs", ROOT / "runs"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grid", type=Path, help="a file of study/grids")
    parser.add_argument("--data", type=Path, help="folder that holds camvid/, nyuv2/, ...")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where records are filed")
    parser.add_argument("--runs", type=Path, default=RUNS, help="checkpoints, logs, notebooks")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, help="CPU threads of a run (OMP_NUM_THREADS or 1)")
    parser.add_argument("--notebook", metavar="NAME", help="only this run, by papermill")
    parser.add_argument("--dry-run", action="store_true", help="list what would be run")
    options = parser.parse_args()
    for name in ("jobs", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} takes a number of at least 1")

    try:
        cells = {cell.name: cell for cell in load_grid(options.grid)}
        if options.notebook:  # the others, and their data, are no concern of this call
            if options.notebook not in cells:
                raise ValueError(f"{options.grid} has no run {options.notebook!r}")
            cells = {options.notebook: cells[options.notebook]}
        missing = {name: cell for name, cell in cells.items() if not filed(name, options.records)}
        open_data(missing.values(), options.data)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    places = (options.data, options.runs, options.records)
    if options.notebook:
        run(cells[options.notebook], *places, train_in_notebook)
        return 0
    print(f"{options.grid}: {len(cells)} runs, {len(missing)} to do", flush=True)
    if options.dry_run:
        print(*missing, sep="\n")
        return 0

    os.environ["OMP_NUM_THREADS"] = str(options.threads or os.environ.get("OMP_NUM_THREADS", 1))
    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            futures = {pool.submit(in_process, run, c, *places): n for n, c in missing.items()}
            for future in as_completed(futures):
                name, succeeded = futures[future], future.result()
                print("done  " if succeeded else "FAILED", name, flush=True)
                if not succeeded:
                    failed.append(name)
        finally:  # interrupted: start no more
            pool.shutdown(cancel_futures=True)
    if failed:
        print(f"{len(failed)} of {len(missing)} runs failed:", *failed, sep="\n", file=sys.stderr)
    return bool(failed)


def in_process(function, *args) -> bool:
    """Whether it succeeded. Its crash, or its death for want of memory, ends nothing else."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode == 0


def train_directly(config) -> None:
    from patlib import train

    train(config, progress=False)


def train_in_notebook(config) -> None:
    """The same, and figures: a notebook beside the checkpoint."""
    import papermill

    # The kernel imports this clone, whatever else is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    papermill.execute_notebook(
        ROOT / "notebooks" / "train.ipynb",
        Path(config.output_dir) / "train.ipynb",
        parameters=config.to_dict(),
        cwd=config.output_dir,
        progress_bar=False,
    )


def run(
    cell: PlannedRun, data: Path | None, runs: Path, records: Path, train=train_directly
) -> None:
    """Train one cell in ``runs/NAME`` and file its record, unless somebody else just did."""
    from patlib.training import IMAGES, RECORD

    folder = (runs / cell.name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"), own_gpu():
        if filed(cell.name, records):
            return
        root = data_root(cell.settings["dataset"], data)
        train(cell.config(root and root.resolve(), folder))
        for source, suffix in ((IMAGES, ".npz"), (RECORD, ".json")):  # the record last
            with write_whole(records / f"{cell.name}{suffix}") as file:
                file.write((folder / source).read_bytes())


def filed(name: str, records: Path) -> bool:
    return (records / f"{name}.json").is_file()


@contextmanager
def locked(path: Path, wait: bool = True):
    """Hold this file, as soon as nobody else does. A killed process holds nothing.

    Raises:
        BlockingIOError: somebody holds it, and ``wait`` is False.
    """
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextmanager
def own_gpu():
    """Of several GPUs, show this process only the one that the fewest runs here use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) < 2:
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"patlib-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    places = ((place, gpu) for place in itertools.count() for gpu in gpus)
    with ExitStack() as held:
        for place, gpu in places:
            try:
                held.enter_context(locked(folder / f"{gpu.replace('/', '_')}.{place}", wait=False))
                break
            except BlockingIOError:  # taken
                continue
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        yield


if __name__ == "__main__":
    sys.exit(main())
