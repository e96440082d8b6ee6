"""The commands and the Python of the README and of "Rerun and extend", as a reader types them."""

import re
import shlex
import sys
from ast import literal_eval
from pathlib import Path
from unittest import mock

import numpy as np
import papermill
import pytest
import torch
import yaml
from PIL import Image

from patlib import RunConfig, train
from patlib.cli import build_parser, build_parsers, one_spelling
from patlib.data.synthetic import NUM_IMAGES
from patlib.losses import LOSSES

ROOT = Path(__file__).parents[1]
RERUN = ROOT / "book" / "rerun.md"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def commands(page):
    """The shell commands of a page, as lists of words, without comments."""
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def parameters(words):
    """What a papermill command gives to its notebook: name -> value."""
    given = {}
    words = iter(words)
    for word in words:
        if word == "-p":
            name, value = next(words), next(words)
            given[name] = yaml.safe_load(value)
        elif word == "-y":
            given.update(yaml.safe_load(next(words)))
    return given


@pytest.mark.parametrize("page", [ROOT / "README.md", RERUN], ids=lambda page: page.name)
def test_commands_name_what_exists_and_notebooks_take_what_they_are_given(page):
    found = commands(page)
    for words in found:
        for word in words:
            if re.match(r"(notebooks|study|benchmarks)/", word):
                assert (ROOT / word).exists(), word
    for words in found:
        if words[0] == "patlib":  # the parser refuses what it does not know
            options = build_parser(build_parsers()).parse_args(one_spelling(words[1:]))
            if options.command == "train":
                RunConfig(**vars(options.train))
    runs = [words for words in found if words[0] == "papermill"]
    assert len(runs) >= 4
    for words in runs:
        notebook = next(ROOT / word for word in words if word.startswith("notebooks/"))
        known = papermill.inspect_notebook(notebook)
        given = parameters(words)
        assert given.keys() <= known.keys(), words
        if notebook.name == "train.ipynb":
            defaults = {name: literal_eval(v["default"]) for name, v in known.items()}
            defaults = {name: value for name, value in defaults.items() if value is not None}
            RunConfig(**{**defaults, **given})  # refuses what is not allowed


def test_python_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, n in {"train": 16, "validation": 4, "test": 4}.items():
        monkeypatch.setitem(NUM_IMAGES, split, n)
    # What the page says is there: a run, and a photograph.
    tiny = {"model": "segnet", "model_params": {"width": 2, "stages": 2}, "epochs": 1}
    train(RunConfig(**tiny, output_dir="runs/mine"), progress=False)
    Image.fromarray(np.zeros((720, 960, 3), np.uint8)).save("new.jpg")

    space = {"__name__": "__main__"}
    with mock.patch.dict(LOSSES):
        for block in blocks(RERUN, "python"):
            space.pop("loss", None)
            exec(compile(block, RERUN.name, "exec"), space)
            if isinstance(loss := space.get("loss"), torch.Tensor):
                assert torch.isfinite(loss) and loss > 0
                if "backward()" not in block:
                    loss.backward()
        assert "poly" in LOSSES
    assert space["labels"].shape == (720, 960)
    assert space["logits"].shape == (4, 13, 64, 96)
    assert all(p.grad is not None for p in space["network"].parameters())
    assert 0 <= space["record"].result["test"]["tail"] <= 1
    # The loss is what the page says, cross-entropy + a (1 - p), of one valid pixel with p = 1/4.
    poly = space["PolyLoss"](a=2.0, num_classes=4)
    value = poly(torch.zeros(1, 4, 1, 2), torch.tensor([[[1, 255]]])).item()
    assert value == pytest.approx(np.log(4) + 2 * 0.75)


def test_minutes_of_every_notebook_are_those_of_its_execution(tmp_path):
    sys.path.insert(0, str(ROOT / "book"))  # as Sphinx does
    from execution_times import EXECUTED, minutes_of

    stored = [row[0] for row in minutes_of(EXECUTED)[1:]]
    notebooks = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert stored == [f"[](../notebooks/{name})" for name in notebooks]
    assert all(float(row[1]) <= 2 for row in minutes_of(EXECUTED)[1:])  # as the page says
    (tmp_path / "executed.csv").write_text(
        'notebook,seconds,device,date (UTC)\none,75,"cpu, 2 cores",2026-11-24 09:43\n'
    )
    assert minutes_of(tmp_path / "executed.csv")[1] == [
        *("[](../notebooks/one)", "1.2", "cpu, 2 cores", "2026-11-24 09:43"),
    ]


def test_pat_is_as_many_times_cross_entropy_as_there_are_classes():
    """The page says so of normalize="images"; exactly, where all pixels are predicted alike."""
    from patlib.losses import build_loss

    target = torch.arange(6).repeat_interleave(10).view(1, 6, 10)
    logits = torch.zeros(1, 6, 6, 10)
    no_beta = {"weight": "none", "num_classes": 6}
    ratio = build_loss("pat", **no_beta)(logits, target) / build_loss("ce", 6)(logits, target)
    assert ratio.item() == pytest.approx(6)
    mean = build_loss("pat", **no_beta, normalize="weights")
    assert mean(logits, target).item() == pytest.approx(np.log(6))
