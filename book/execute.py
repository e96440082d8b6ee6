"""Execute notebooks in place through papermill: python book/execute.py notebooks/train.ipynb ...

A notebook is executed with its default parameters, on one thread, in an empty folder. What differs
from run to run without meaning (times, progress bars) is not stored. A notebook that fails is left
as it was. Status, seconds and surroundings go into executed.csv, which the book's last page shows;
the minutes are on the page "Rerun and extend", too.
"""

import csv
import hashlib
import io
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

# Two notebooks side by side on two cores: more threads would only wait on each other. Before torch.
os.environ["OMP_NUM_THREADS"] = "1"

import filelock
import nbformat
import papermill
import torch

from patlib.files import write_text
from patlib.records import provenance

ROOT = Path(__file__).resolve().parents[1]
EXECUTED = ROOT / "book" / "executed.csv"
LOCK = ROOT / "_build" / "executed.lock"
COLUMNS = ["notebook", "status", "seconds", "date (UTC)", "device", "versions", "commit"]
SHOWN = ("patlib", "torch", "lightning", "numpy")


def execute(notebook: Path) -> bool:
    """Execute and store one notebook and its row of executed.csv; True if it ran through."""
    row = {"notebook": notebook.stem, "status": "succeeded", "commit": commit(notebook)}
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            executed = Path(folder) / notebook.name
            empty = Path(folder) / "empty"
            empty.mkdir()
            # A kernel that is shut down logs an error, which would look like one of the notebook.
            quiet = ["--IPKernelApp.log_level=CRITICAL"]
            papermill.execute_notebook(
                notebook, executed, cwd=empty, progress_bar=False, extra_arguments=quiet
            )
            store(nbformat.read(executed, as_version=4), notebook)
    except Exception as error:  # of the notebook, its kernel or papermill: all mean the same here
        # Without the colours that IPython puts around a traceback.
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
        print(f"{text}\n{notebook} FAILED; the stored one is as it was", file=sys.stderr)
        row["status"] = "failed"
    row["seconds"] = round(time.perf_counter() - start)
    row["date (UTC)"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    here = provenance(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    row["device"] = f"{here['device']}, {os.cpu_count()} cores"
    versions = {"Python": platform.python_version(), **{p: here["versions"][p] for p in SHOWN}}
    row["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    note(row, notebook.parent)
    return row["status"] == "succeeded"


def store(content: nbformat.NotebookNode, notebook: Path) -> None:
    """Put an executed notebook in the place of the old one, whole."""
    content.metadata.pop("papermill", None)
    content.metadata["executed"] = fingerprint(content)
    for cell in content.cells:
        for volatile in ("papermill", "execution"):
            cell.metadata.pop(volatile, None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    write_text(notebook, nbformat.writes(content) + "\n")


def fingerprint(content: nbformat.NotebookNode) -> str:
    """SHA-256 of the code: tells if a notebook was edited after it was executed."""
    code = [cell.source for cell in content.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()


def note(row: dict, notebooks: Path) -> None:
    """Replace the row of a notebook; one that is no longer in the folder has none."""
    LOCK.parent.mkdir(exist_ok=True)
    # Another process may be doing the same. executed.csv is replaced, so the lock is another file.
    with filelock.FileLock(LOCK):
        rows = {**read_rows(), row["notebook"]: row}
        rows = [rows[name] for name in sorted(rows) if (notebooks / f"{name}.ipynb").is_file()]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(EXECUTED, text.getvalue())


def read_rows() -> dict[str, dict]:
    """The rows of executed.csv: name of a notebook -> row."""
    if not EXECUTED.is_file():
        return {}
    with open(EXECUTED, newline="") as file:
        return {row["notebook"]: row for row in csv.DictReader(file)}


def commit(notebook: Path) -> str:
    """The commit that was executed; "+" after it if what is executed has changed since."""

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", ROOT, *command], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        read = ("patlib", "book/figures", "study", "benchmarks", str(notebook.resolve()))
        changed = git("status", "--porcelain", "--", *read)
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # not a clone


if __name__ == "__main__":
    failed = [name for name in sys.argv[1:] if not execute(Path(name))]
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
