"""Facts that stand in one place only, and files that are where users expect them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from patlib import RunConfig, RunRecord
from patlib.config import SCHEMA_DEFAULTS
from patlib.study.grids import run_name
from patlib.study.runs import by_benchmark, load_runs, summarize

ROOT = Path(__file__).parents[1]


def test_environment_installs_from_pyproject_and_names_no_version_itself():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    *conda, pip = environment["dependencies"]
    assert [re.split("[=<>]", package)[0] for package in conda] == ["python", "pip"]
    assert pip == {"pip": [f"--editable .[{','.join(extras)}]"]}


def test_version_is_the_same_everywhere():
    import patlib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == patlib.__version__ == citation["version"]


def test_every_chapter_exists_and_every_notebook_is_a_chapter():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    files = [toc["root"], *(c["file"] for c in toc["chapters"])]
    for file in files:
        assert any((ROOT / f"{file}{suffix}").is_file() for suffix in (".md", ".ipynb")), file
    notebooks = {f"notebooks/{n.stem}" for n in (ROOT / "notebooks").glob("*.ipynb")}
    pages = {f"book/{page.stem}" for page in (ROOT / "book").glob("*.md")}
    assert notebooks | pages == set(files) and len(files) == len(set(files))


def test_publishing_replaces_the_placeholder_wherever_it_stands():
    steps = yaml.safe_load((ROOT / ".github/workflows/book.yml").read_text())["jobs"]["publish"]
    sed = next(s["run"] for s in steps["steps"] if "OWNER" in s.get("run", ""))
    replaced = {path for word in sed.split()[3:] for path in ROOT.glob(word)}
    folders = (ROOT, ROOT / "book", ROOT / "notebooks")
    pages = {p for f in folders for p in f.iterdir() if p.suffix in (".md", ".yml", ".ipynb")}
    assert {p for p in pages if "OWNER/patlib" in p.read_text()} <= replaced | {ROOT / "README.md"}


def test_python_of_the_readme_is_valid_and_its_files_exist():
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (ROOT / path).is_file(), path


def test_results_of_the_readme_are_those_of_the_records():
    runs = load_runs(ROOT / "study/grids/small/table1.yaml", ROOT / "study/records/runs")
    benchmarks = by_benchmark(runs)
    tables = [[summarize(m, metric) for metric in ("miou", "tail")] for m in benchmarks.values()]
    lines = [
        "| mIoU / tail IoU (%) | " + " | ".join(map(str, benchmarks)) + " |",
        "|---|" + "---|" * len(benchmarks),
        "| seeds | " + " | ".join(f"{'/'.join(map(str, set(t.n)))}" for t, _ in tables) + " |",
    ]
    for method in tables[0][0].index:
        cells = [
            " / ".join(
                f"{100 * t['mean'][method]:.1f} ± {100 * t['std'][method]:.1f}" for t in pair
            )
            for pair in tables
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    expected = "\n".join(lines)
    assert expected in (ROOT / "README.md").read_text(), f"it should say:\n{expected}"


def test_importing_a_loss_does_not_wait_for_the_training_library():
    code = "import sys, patlib.losses; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_stored_records_can_be_read_and_run_again():
    """Also where the device of a record is not at hand."""
    paths = sorted((ROOT / "study/records/runs").glob("*.json"))
    assert paths
    for path in paths:
        record, stored = RunRecord.load(path), json.loads(path.read_text())["config"]
        root = None if record.config["dataset"] == "synthetic" else "somewhere"
        config = RunConfig(**{**record.config, "data_root": root})
        assert config.settings() == record.config, path
        assert path.stem == run_name(record.config), path
        assert path.with_suffix(".npz").is_file(), path
        commit = record.provenance["commit"]
        assert commit and not commit.endswith("-dirty"), path
        assert record.result["curves"]["epoch"][-1] == config.epochs, path
        # What records hold has defaults in the schema, which are never changed.
        assert stored.keys() <= SCHEMA_DEFAULTS["settings"].keys() | PARAMETERS.keys(), path
        for part, kind in PARAMETERS.items():
            known = SCHEMA_DEFAULTS[part].get(stored[kind], {})
            assert stored[part].keys() <= known.keys(), (
                f"{path}: enter the parameters of {stored[kind]!r} in patlib/schema_1.json"
            )


PARAMETERS = {"data_params": "dataset", "loss_params": "loss", "model_params": "model"}
