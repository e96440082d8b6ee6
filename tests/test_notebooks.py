"""The notebooks under papermill, as a user runs them."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import papermill
import pytest
import yaml
from papermill.exceptions import PapermillExecutionError

from patlib import RunConfig

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
TRAIN = NOTEBOOKS / "train.ipynb"


def run(notebook, tmp_path, **parameters):
    output = tmp_path / "out.ipynb"
    papermill.execute_notebook(
        notebook, output, parameters=parameters, cwd=tmp_path, progress_bar=False
    )
    return output


def test_train_with_other_parameters(tmp_path, camvid_tree):
    run(
        TRAIN,
        tmp_path,
        dataset="camvid",
        data_root=str(camvid_tree),
        image_size=[32, 40],
        loss="ldam",
        loss_params={"scale": 10.0},
        model="attention_unet",
        model_params={"width": 2},
        epochs=2,
        batch_size=2,
        output_dir="runs/here",
    )
    record = json.loads((tmp_path / "runs" / "here" / "record.json").read_text())
    assert record["config"]["loss_params"] == {"scale": 10.0, "max_margin": 0.5}
    assert record["config"]["dataset"] == "camvid" and len(record["result"]["curves"]["epoch"]) == 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"los": "ce"}, "the notebook has no parameter 'los' (did you mean 'loss'?)"),
        ({"loss": "cee"}, "got 'cee'"),
        ({"epochs": -3}, "got -3"),
    ],
)
def test_train_stops_at_once_on_wrong_parameters(tmp_path, parameters, message):
    with pytest.raises(PapermillExecutionError) as stopped:
        run(TRAIN, tmp_path, **parameters)
    assert message in str(stopped.value)
    assert not (tmp_path / "runs").exists()


def test_papermill_documents_every_parameter():
    command = [sys.executable, "-m", "papermill", "--help-notebook", str(TRAIN)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    entries = text.split("Parameters inferred")[1].splitlines()[1:]
    names = [
        line.split(":")[0].strip()
        for line in entries
        if line.startswith("  ") and not line.startswith("   ")
    ]
    assert names == [field.name for field in dataclasses.fields(RunConfig)]
    assert "Unknown type" not in text


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.name)
def test_stored_notebooks_are_fit_to_publish(notebook):
    content = json.loads(notebook.read_text())
    assert notebook.stat().st_size < 700_000
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    title = content["cells"][0]
    assert title["cell_type"] == "markdown" and title["source"][0].startswith("# ")
    code = [c for c in content["cells"] if c["cell_type"] == "code"]
    # First what Colab lacks, then the parameters.
    assert code[0]["metadata"]["tags"] == ["hide-cell"] and not code[0]["outputs"]
    assert "parameters" in code[1]["metadata"]["tags"]
    assert not any("injected-parameters" in c["metadata"].get("tags", []) for c in code)
    outputs = [o for c in code for o in c["outputs"]]
    assert outputs and all(o["output_type"] != "error" for o in outputs)


def first_cell(notebook):
    cells = json.loads(notebook.read_text())["cells"]
    return next("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def test_every_notebook_begins_with_the_same_cell():
    assert len({first_cell(notebook) for notebook in NOTEBOOKS.glob("*.ipynb")}) == 1


def test_first_cell_fetches_the_repository_in_colab_and_does_nothing_elsewhere(monkeypatch):
    asked = []
    shell = SimpleNamespace(system=asked.append)
    space = {"get_ipython": lambda: shell}
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(first_cell(TRAIN), space)
    assert not asked and "/content/patlib" not in sys.path
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    exec(first_cell(TRAIN), space)
    clone, install = asked
    url = yaml.safe_load((NOTEBOOKS.parent / "_config.yml").read_text())["repository"]["url"]
    assert clone.startswith("git clone ") and clone.endswith(f" {url} /content/patlib")
    assert install.startswith("pip install ") and "/content/patlib[book]" in install
    assert sys.path[0] == "/content/patlib"


def test_every_stored_notebook_was_executed():
    with open(NOTEBOOKS.parent / "book" / "executed.csv", newline="") as file:
        status = {row["notebook"]: row["status"] for row in csv.DictReader(file)}
    assert status == {notebook.stem: "succeeded" for notebook in NOTEBOOKS.glob("*.ipynb")}
