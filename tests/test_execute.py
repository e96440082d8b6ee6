"""`make book`, its first half, on a small project: what is executed, what a failure leaves."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
# The very command of the Makefile.
SNAKEMAKE = re.search(r"\$\(BIN\)/(snakemake .*)", (ROOT / "Makefile").read_text())[1].split()

# Each leaves a line in a file when it is executed.
SOURCE = """
from pathlib import Path
note = Path({log!r})
note.write_text((note.read_text() if note.exists() else "") + {name!r} + "\\n")
print({text!r})
"""


@pytest.fixture
def project(tmp_path):
    """A project with a library, a record, and two notebooks: only one of them reads records."""
    for folder in (
        "book",
        "notebooks",
        "patlib",
        "study/grids",
        "study/records/runs",
        "benchmarks",
    ):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("Snakefile", "execute.py"):
        shutil.copy(ROOT / "book" / name, tmp_path / "book")
    (tmp_path / "patlib" / "code.py").write_text("x = 1\n")
    (tmp_path / "study" / "records" / "runs" / "a.json").write_text("{}\n")
    for name in ("baselines", "train"):
        write(tmp_path, name)
    return tmp_path


def write(project, name, text="hello", source=SOURCE):
    source = source.format(log=str(project / "log"), name=name, text=text)
    cell = nbformat.v4.new_code_cell(source, id="one")
    content = nbformat.v4.new_notebook(cells=[cell])
    content.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(content, project / "notebooks" / f"{name}.ipynb")


def command():
    return [Path(sys.executable).with_name(SNAKEMAKE[0]), *SNAKEMAKE[1:]]


def make(project):
    """Run it; return the exit code, the text, and which notebooks were executed, sorted."""
    (project / "log").unlink(missing_ok=True)
    done = subprocess.run(command(), cwd=project, capture_output=True, text=True)
    log = project / "log"
    executed = sorted(log.read_text().split()) if log.exists() else []
    return done.returncode, done.stdout + done.stderr, executed


def outputs(project, name):
    content = json.loads((project / "notebooks" / f"{name}.ipynb").read_text())
    return ["".join(o["text"]) for cell in content["cells"] for o in cell["outputs"]]


def rows(project):
    with open(project / "book" / "executed.csv", newline="") as file:
        return {row["notebook"]: row for row in csv.DictReader(file)}


def test_what_changed_is_executed_again_and_nothing_else(project):
    code, text, executed = make(project)
    assert code == 0, text
    assert executed == ["baselines", "train"]
    assert outputs(project, "train") == ["hello\n"]
    assert make(project)[::2] == (0, [])

    (project / "study" / "records" / "runs" / "a.json").write_text('{"more": 1}\n')
    assert make(project)[::2] == (0, ["baselines"])

    write(project, "train", "changed")
    (project / "study" / "records" / "runs" / "new.json").write_text("{}\n")
    assert make(project)[::2] == (0, ["baselines", "train"])
    assert outputs(project, "train") == ["changed\n"]

    (project / "patlib" / "code.py").write_text("x = 2\n")
    (project / "notebooks" / "baselines.ipynb").unlink()
    assert make(project)[::2] == (0, ["train"])
    assert set(rows(project)) == {"train"}  # one that is gone has no row


def test_a_failing_notebook_stays_as_it_was_and_is_named(project):
    write(project, "baselines", source="print('before')\nraise ValueError('so it is')")
    before = (project / "notebooks" / "baselines.ipynb").read_bytes()
    code, text, executed = make(project)
    assert code != 0
    assert "notebooks/baselines.ipynb FAILED" in text and "ValueError: so it is" in text
    assert executed == ["train"] and outputs(project, "train") == ["hello\n"]
    assert (project / "notebooks" / "baselines.ipynb").read_bytes() == before
    found = rows(project)
    assert {name: row["status"] for name, row in found.items()} == {
        "baselines": "failed",
        "train": "succeeded",
    }
    row = found["train"]
    assert row["device"] and re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", row["date (UTC)"])
    assert 0 < int(row["seconds"]) < 100 and "torch " in row["versions"]
    # Repaired, it is executed, and only it.
    write(project, "baselines")
    assert make(project)[::2] == (0, ["baselines"])
    assert rows(project)["baselines"]["status"] == "succeeded"


def test_what_a_killed_run_leaves_behind_blocks_nothing(project):
    (project / "notebooks" / "train.ipynb").unlink()
    write(project, "baselines", source=SOURCE + "\nimport time\ntime.sleep(600)")
    process = subprocess.Popen(
        command(), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (project / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (project / "log").exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    write(project, "baselines")
    assert make(project)[::2] == (0, ["baselines"])
    assert outputs(project, "baselines") == ["hello\n"]
