"""`make book`, its first half, on a small project: what is executed, what a failure leaves."""

import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import nbformat
import pytest

ROOT = Path(__file__).parents[1]
# The very command of the Makefile.
SNAKEMAKE = re.search(r"\$\(BIN\)/(snakemake .*)", (ROOT / "Makefile").read_text())[1].split()

# In the place of execute.py: each notebook leaves a file, and does what its text says.
EXECUTE = """
import sys, time
from pathlib import Path
for name in map(Path, sys.argv[1:]):
    Path(f"executed-{name.stem}").touch()
    text = name.read_text()
    time.sleep(600 if "sleep" in text else 0)
    sys.exit(1 if "fail" in text else 0)
"""


@pytest.fixture
def project(tmp_path):
    """A project with a library, a record, and two notebooks: only one of them reads records."""
    for path in ("patlib/code.py", "book/figures/baselines.py", "study/records/runs/a.json"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("{}\n")
    for folder in ("notebooks", "study/grids", "benchmarks"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "book" / "Snakefile", tmp_path / "book")
    (tmp_path / "book" / "execute.py").write_text(EXECUTE)
    for name in ("baselines", "train"):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("one")
    return tmp_path


def command():
    return [Path(sys.executable).with_name(SNAKEMAKE[0]), *SNAKEMAKE[1:]]


def make(project):
    """Run it; return the exit code and which notebooks were executed."""
    done = subprocess.run(command(), cwd=project, capture_output=True, text=True)
    executed = sorted(project.glob("executed-*"))
    for path in executed:
        path.unlink()
    return done.returncode, [path.name.removeprefix("executed-") for path in executed]


def test_what_changed_is_executed_again_and_nothing_else(project):
    both = ["baselines", "train"]
    assert make(project) == (0, both)
    assert make(project) == (0, [])
    (project / "study" / "records" / "runs" / "new.json").write_text("{}\n")
    assert make(project) == (0, ["baselines"])
    (project / "notebooks" / "train.ipynb").write_text("changed")
    assert make(project) == (0, ["train"])
    for path in ("patlib/code.py", "book/figures/baselines.py"):
        (project / path).write_text("changed\n")
        assert make(project) == (0, both), path


def test_a_failing_notebook_stops_no_other_and_is_executed_again(project):
    (project / "notebooks" / "baselines.ipynb").write_text("fail")
    code, executed = make(project)
    assert code != 0 and executed == ["baselines", "train"]
    (project / "notebooks" / "baselines.ipynb").write_text("repaired")
    assert make(project) == (0, ["baselines"])


def test_what_a_killed_run_leaves_behind_blocks_nothing(project):
    (project / "notebooks" / "train.ipynb").unlink()
    (project / "notebooks" / "baselines.ipynb").write_text("sleep")
    process = subprocess.Popen(
        command(), cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    started, deadline = project / "executed-baselines", time.monotonic() + 120
    while not started.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert started.exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    started.unlink()
    (project / "notebooks" / "baselines.ipynb").write_text("one")
    assert make(project) == (0, ["baselines"])


# -- execute.py -------------------------------------------------------------------------------


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """The module, writing to a folder of its own."""
    spec = importlib.util.spec_from_file_location("execute", ROOT / "book" / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "EXECUTED", tmp_path / "executed.csv")
    monkeypatch.setattr(module, "LOCK", tmp_path / "build" / "executed.lock")
    return module


def write(folder, name, source):
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source, id="one")])
    content.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    path = folder / f"{name}.ipynb"
    nbformat.write(content, path)
    return path


def test_outputs_are_stored_and_a_failing_notebook_stays_as_it_was(tmp_path, execute, capsys):
    good = write(
        tmp_path, "good", "import os, sys\nprint('hello', os.listdir())\nprint(1, file=sys.stderr)"
    )
    bad = write(tmp_path, "bad", "print('before')\nraise ValueError('so it is')")
    before = bad.read_bytes()
    assert execute.execute(good) and not execute.execute(bad)
    (cell,) = json.loads(good.read_text())["cells"]
    assert [o["text"] for o in cell["outputs"]] == [["hello []\n"]]  # in an empty folder, no stderr
    assert not {"papermill", "execution"} & set(cell["metadata"])
    stored = nbformat.read(good, 4)
    assert stored.metadata["executed"] == execute.fingerprint(stored)
    stored.cells[0].source += " "
    assert stored.metadata["executed"] != execute.fingerprint(stored)
    assert bad.read_bytes() == before
    stopped = capsys.readouterr().err
    assert "bad.ipynb FAILED" in stopped and "ValueError: so it is" in stopped
    rows = execute.read_rows()
    assert {name: row["status"] for name, row in rows.items()} == {
        "bad": "failed",
        "good": "succeeded",
    }
    row = rows["good"]
    assert re.fullmatch(r".+, \d+ cores", row["device"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", row["date (UTC)"])
    assert 0 <= int(row["seconds"]) < 1000 and "torch " in row["versions"]


def test_rows_of_notebooks_side_by_side_are_all_kept(tmp_path, execute, monkeypatch):
    names = [f"n{i}" for i in range(8)]
    for name in [*names, "gone"]:
        (tmp_path / f"{name}.ipynb").touch()
    held = []

    def locked(function):
        def wrapped(*args):
            with pytest.raises(filelock.Timeout):  # while the rows are read and while written
                filelock.FileLock(execute.LOCK).acquire(timeout=0)
            held.append(function.__name__)
            return function(*args)

        return wrapped

    for name in ("read_rows", "write_text"):
        monkeypatch.setattr(execute, name, locked(getattr(execute, name)))
    execute.note({"notebook": "gone"}, tmp_path)
    (tmp_path / "gone.ipynb").unlink()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: execute.note({"notebook": name}, tmp_path), names))
    with open(execute.EXECUTED, newline="") as file:
        assert [
            row["notebook"] for row in csv.DictReader(file)
        ] == names  # one that is gone: no row
    assert held.count("read_rows") == held.count("write_text") == 9


def test_every_stored_notebook_was_executed_as_it_is(execute):
    stored = {path.stem: nbformat.read(path, 4) for path in (ROOT / "notebooks").glob("*.ipynb")}
    edited = [n for n, c in stored.items() if c.metadata.get("executed") != execute.fingerprint(c)]
    assert not edited, "python book/execute.py notebooks/NAME.ipynb"
    with open(ROOT / "book" / "executed.csv", newline="") as file:
        status = {row["notebook"]: row["status"] for row in csv.DictReader(file)}
    assert status == dict.fromkeys(stored, "succeeded")
