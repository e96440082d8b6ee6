"""What all notebooks have in common; the training notebook; glued numbers."""

import dataclasses
import json
import re
import socket
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import nbval.kernel
import papermill
import pytest
import yaml
from chapters import NOTEBOOKS, ROOT, Chapter, cells, figures, outputs, source, stored_glue, tagged
from jupyter_client import LocalPortCache

import patlib
from patlib import RunConfig
from patlib.losses import LOSSES
from patlib.models import MODELS

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("name", NAMES)
TRAIN = NOTEBOOKS / "train.ipynb"


def test_papermill_and_its_command_line_take_parameters(tmp_path):
    """Through a kernel, once: the other tests execute cells in this process."""
    with pytest.raises(papermill.PapermillExecutionError) as stopped:
        papermill.execute_notebook(
            TRAIN, tmp_path / "out.ipynb", {"los": "ce"}, cwd=tmp_path, progress_bar=False
        )
    assert "the notebook has no parameter 'los' (did you mean 'loss'?)" in str(stopped.value)
    assert not (tmp_path / "runs").exists()


def test_nbval_starts_a_kernel_again_whose_port_was_taken(monkeypatch):
    found = LocalPortCache.find_available_port
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        ports = iter([taken])
        monkeypatch.setattr(
            LocalPortCache, "find_available_port", lambda *args: next(ports, None) or found(*args)
        )
        manager, client = nbval.kernel.start_new_kernel(stderr=subprocess.DEVNULL)
    assert next(ports, None) is None and manager.shell_port != taken
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@every_notebook
def test_papermill_documents_every_parameter(name):
    known = papermill.inspect_notebook(NOTEBOOKS / f"{name}.ipynb")
    assert known
    for parameter, found in known.items():
        assert found["inferred_type_name"] not in ("", "None"), parameter
        assert found["help"], parameter
    if name == "train":
        assert list(known) == [field.name for field in dataclasses.fields(RunConfig)]


@every_notebook
def test_stored_notebooks_are_fit_to_publish(name):
    path = NOTEBOOKS / f"{name}.ipynb"
    content = json.loads(path.read_text())
    assert path.stat().st_size < 800_000
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    title = content["cells"][0]
    assert title["cell_type"] == "markdown" and title["source"][0].startswith("# ")
    # A reader meets title, question and answer, then one block of folded cells, then the text.
    assert "?" in source(title) and "```" not in source(title)
    kinds = [(c["cell_type"], tagged(c, "hide-cell")) for c in content["cells"][1:]]
    block = kinds.index(("markdown", False))
    assert 3 <= block <= 4 and set(kinds[:block]) == {("code", True)}
    code = cells(name)
    assert not code[0]["outputs"] and tagged(code[1], "parameters")
    assert not any(tagged(cell, "injected-parameters") for cell in code)
    stored = outputs(name)
    assert stored and all(o["output_type"] != "error" for o in stored)


# The answer of own_images is the verdict of its report; that of paper_and_code are tables.
@pytest.mark.parametrize("name", sorted({*NAMES} - {"own_images", "paper_and_code"}))
def test_a_chapter_opens_with_question_answer_and_figure(name):
    """Three sentences at most answer it, and the figure is the first that its cells show."""
    title, glued = source(cells(name, "markdown")[0]), stored_glue(name)
    text = re.sub(r"\{glue:text\}`([^`:]+)(:s)?`", lambda found: str(glued[found[1]]), title)
    text = re.sub(r"\{\w+(:\w+)?\}`([^`]*)`", r"\2", text)
    question, answer = text.partition("\n")[2].replace("\n", " ").rsplit("? ", 1)
    assert question and re.search(r"[.!]$", answer.strip())
    sentences = re.split(r"(?<=[.!])\s+(?=[A-Z0-9αβγ])", answer.strip())
    assert len(sentences) <= 3, sentences
    content = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    shown = [
        cell
        for cell in content[1:]
        if cell["cell_type"] == "markdown"
        or (cell["outputs"] and not {"hide-cell", "remove-cell"} & set(cell["metadata"]["tags"]))
    ]
    first = next(i for i, cell in enumerate(shown) if cell["cell_type"] == "code")
    kinds = {kind for output in shown[first]["outputs"] for kind in output.get("data", {})}
    assert "image/png" in kinds, shown[first]["id"]
    before = " ".join(source(cell) for cell in shown[:first])
    assert len(before.split()) < 60 and ("## " not in before or name == "train"), before
    text = "\n".join(map(source, cells(name, "markdown")))
    assert re.findall(r"^## (.*)", text, re.MULTILINE)[-1] == "Run it yourself"


def test_every_notebook_begins_with_the_same_cell():
    assert len({source(cells(name)[0]) for name in NAMES}) == 1


@every_notebook
def test_glued_numbers_are_those_that_the_text_names(name):
    text = "".join(map(source, cells(name, "markdown")))
    text += "".join(json.dumps(cell["metadata"]) for cell in cells(name))
    used = set(re.findall(r"\{glue:text\}`([^`:]+)`", text))
    glued = stored_glue(name)
    assert used <= set(glued)
    prefix = name.replace("_", "-")
    assert all(key.startswith(f"{prefix}-") for key in glued)
    pages = "".join(path.read_text() for path in (ROOT / "book").glob("*.md"))
    # Exponents and ratios of every stage are glued, the text names some of them.
    unused = {k for k in set(glued) - used if k not in pages}
    assert not [k for k in unused if not re.match(r"gradients-.*-(start|middle|end)-", k)]


def test_first_cell_fetches_the_repository_in_colab_and_does_nothing_elsewhere(monkeypatch):
    asked = []
    shell = SimpleNamespace(system=asked.append)
    space = {"get_ipython": lambda: shell}
    first = source(cells("train")[0])
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(first, space)
    assert not asked and "/content/patlib" not in sys.path
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    exec(first, space)
    clone, install = asked
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    # The tag of this version: book, notebooks and code are of one version.
    assert clone.endswith(f" --branch v{patlib.__version__} {url} /content/patlib")
    assert clone.startswith("git clone ")
    assert install.startswith("pip install ") and "/content/patlib[book]" in install
    assert "/content/patlib" in sys.path


# -- the training notebook --------------------------------------------------------------------

TINY = dict(image_size=[32, 40], model_params={"width": 2}, epochs=1, batch_size=60)


def test_train_with_other_parameters(tmp_path, monkeypatch, camvid_tree):
    monkeypatch.chdir(tmp_path)
    Chapter(
        "train",
        **TINY | dict(batch_size=2, epochs=2),
        dataset="camvid",
        data_root=str(camvid_tree),
        loss="ldam",
        loss_params={"scale": 10.0},
        output_dir="runs/here",
    )
    record = json.loads((tmp_path / "runs" / "here" / "record.json").read_text())
    params = {"scale": 10.0, "max_margin": 0.5, "deferred": None}
    assert record["config"]["loss_params"] == params
    assert record["config"]["dataset"] == "camvid" and len(record["result"]["curves"]["epoch"]) == 2


def test_train_runs_again_in_one_kernel_and_with_an_edited_parameter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Chapter("train", **TINY)
    first = page.space["record"]
    assert page.run().space["record"].result == first.result
    page.parameters["loss"] = "ce"
    assert page.run().space["record"].config["loss"] == "ce"
    assert len(list((tmp_path / "runs" / "demo").iterdir())) == 2  # a folder for each


@pytest.mark.parametrize("model", MODELS)
def test_every_network_and_loss_has_defaults_for_a_demonstration(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    loss = list(LOSSES)[-1]
    config = Chapter("train", only=[], model=model, loss=loss).space["config"]
    assert (config.model, config.loss) == (model, loss)
    assert config.model_params == {**config.model_params, **figures.small_model(model)}
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"los": "ce"}, "the notebook has no parameter 'los' .did you mean 'loss'"),
        ({"loss": "cee"}, "got 'cee'"),
        ({"epochs": -3}, "got -3"),
        ({"model": "net"}, "model must be one of"),
    ],
)
def test_train_stops_at_once_on_wrong_parameters(tmp_path, monkeypatch, parameters, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        Chapter("train", only=[], **parameters)
    assert not (tmp_path / "runs").exists()
