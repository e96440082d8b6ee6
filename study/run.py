"""Run a grid in one call, on a machine that has a clone and PyTorch and not much else.

    python study/run.py study/grids/NAME.yaml --data FOLDER --jobs 4

Trains what has no record yet, ``--jobs`` runs side by side, each in a process of its own, and files
each record as soon as it is there. An interrupted run goes on from its last epoch; SIGTERM, SIGHUP
and Ctrl-C end the runs as well. A run that fails does not stop the others: the last lines name it,
and the exit code is not zero. Where there are
several GPUs, each run gets the one with the fewest runs on it.

With Snakemake and papermill at hand, ``study/Snakefile`` does the same through the training
notebook: it calls this file once a run, with ``--notebook NAME``.
"""

import argparse
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that a bare clone, not installed, can run a grid

from patlib.checks import check_choice  # noqa: E402
from patlib.config import RunConfig  # noqa: E402
from patlib.files import remove_unfinished, write_whole  # noqa: E402
from patlib.records import IMAGES, RECORD, RunRecord, read_images  # noqa: E402
from patlib.study.grids import PlannedRun, data_root, load_grid, open_data  # noqa: E402

RECORDS, RUNS = ROOT / "study" / "records" / "runs", ROOT / "runs"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grid", type=Path, help="a file of study/grids")
    parser.add_argument("--data", type=Path, help="folder that holds camvid/, nyuv2/, ...")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where records are filed")
    parser.add_argument("--runs", type=Path, default=RUNS, help="checkpoints, logs, notebooks")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, help="CPU threads of a run (OMP_NUM_THREADS or 1)")
    parser.add_argument("--notebook", metavar="NAME", help="only this run, by papermill")
    parser.add_argument("--dry-run", action="store_true", help="list what would be run")
    options = parser.parse_args(arguments)
    for name in ("jobs", "threads"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be an integer >= 1, got {getattr(options, name)}")

    try:
        planned = {run.name: run for run in load_grid(options.grid)}
        if options.notebook:  # needs neither the others nor their data
            check_choice(f"{options.grid}: --notebook", options.notebook, list(planned))
            planned = {options.notebook: planned[options.notebook]}
        missing = {n: run for n, run in planned.items() if not filed(n, options.records)}
        open_data(missing.values(), options.data)
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    folders = (options.data, options.runs, options.records)
    if options.notebook:
        train_and_file(planned[options.notebook], *folders, train_in_notebook)
        return 0
    print(f"{options.grid}: {len(planned)} runs, {len(missing)} to do", flush=True)
    if options.dry_run:
        for name in missing:
            print(name)
        return 0

    os.environ["OMP_NUM_THREADS"] = str(options.threads or os.environ.get("OMP_NUM_THREADS", 1))
    failed = []
    with ThreadPoolExecutor(options.jobs) as pool:
        futures = {}
        try:
            for name, run in missing.items():
                futures[pool.submit(in_process, train_and_file, run, *folders)] = name
            for future in as_completed(futures):
                name, succeeded = futures[future], future.result()
                print("done  " if succeeded else "FAILED", name, flush=True)
                if not succeeded:
                    failed.append(name)
        except BaseException:  # interrupted: start no more, and leave none going
            pool.shutdown(wait=False, cancel_futures=True)
            while not all(future.done() for future in futures):
                for process in multiprocessing.active_children():
                    process.terminate()
                time.sleep(0.1)
            print("interrupted; the same command goes on", file=sys.stderr)
            raise
    if failed:
        print(f"{len(failed)} of {len(missing)} runs failed:", *failed, sep="\n", file=sys.stderr)
    return bool(failed)


def stop(number: int, _: object) -> None:
    """Handle a signal: end as after an exception, with the exit code of a shell."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def in_process(function: Callable, *args) -> bool:
    """Call it in a process of its own; return whether it succeeded.

    A crash or an out-of-memory kill does not affect other runs.
    """
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode == 0


def train_directly(config: RunConfig) -> None:
    from patlib import train

    train(config, progress=False)


def train_in_notebook(config: RunConfig) -> None:
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


def train_and_file(
    run: PlannedRun,
    data: Path | None,
    runs: Path,
    records: Path,
    train: Callable[[RunConfig], None] = train_directly,
) -> None:
    """Train a run in ``runs/NAME`` and file its record, unless another process just did."""
    folder = (runs / run.name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # Another process waits here for the whole run; a killed one holds nothing.
    with FileLock(folder / "lock"), own_gpu():
        if filed(run.name, records):
            return
        root = data_root(run.settings["dataset"], data)
        train(run.config(root and root.resolve(), folder))
        # Damage is found here, not when the record is read for a table.
        read_images(folder / IMAGES, RunRecord.load(folder / RECORD).images_sha256)
        for source, suffix in ((IMAGES, ".npz"), (RECORD, ".json")):  # the record last
            target = records / f"{run.name}{suffix}"
            remove_unfinished(target)
            with write_whole(target) as file:
                file.write((folder / source).read_bytes())


def filed(name: str, records: Path) -> bool:
    return (records / f"{name}.json").is_file()


@contextmanager
def own_gpu() -> Iterator[None]:
    """Of several GPUs, show this process only the one that the fewest runs here use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    if len(gpus) < 2:
        yield
        return
    folder = Path(tempfile.gettempdir()) / f"patlib-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    # Each GPU has a first, a second, ... lock: the first free one of all decides.
    for number, gpu in ((number, gpu) for number in itertools.count() for gpu in gpus):
        lock = FileLock(folder / f"{gpu.replace('/', '_')}.{number}")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
        try:
            yield
        finally:
            lock.release()
        return


if __name__ == "__main__":
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP; nohup ignores it
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    sys.exit(main())
