"""Nothing that is read executes, nothing is fetched unasked, and no name becomes a tag."""

import ast
import re
import socket
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from chapters import ROOT, figures

from patlib import RunConfig, train
from patlib.data.folder import read_classes
from patlib.records import read_images

SOURCES = [
    path
    for folder in ("patlib", "study", "book", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def calls(path):
    """Every call in a file: what is called, as written, and the call."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call, name):
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_read_in_a_way_that_executes(path):
    refused = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
    for name, call in calls(path):
        where = f"line {call.lineno}: {ast.unparse(call)}"
        assert name not in refused and not name.startswith(("pickle.", "marshal.", "shelve.")), (
            where
        )
        assert name != "torch.load" or keyword(call, "weights_only") == "True", where
        assert name != "np.load" or keyword(call, "allow_pickle") is None, where
        assert keyword(call, "shell") is None, where
        assert not name.startswith(("urllib.", "requests.", "urlretrieve")), where
        assert not name.endswith(("extractall", "unpack_archive")), where
        assert keyword(call, "download") is None, where


def test_pickled_arrays_are_refused(tmp_path):
    pickled = np.array([{}], dtype=object)
    np.savez(tmp_path / "x.npz", counts=pickled)
    with pytest.raises(ValueError, match=r"x\.npz is damaged.*allow_pickle"):
        read_images(tmp_path / "x.npz", None)


def test_a_run_needs_no_network(camvid_tree, tmp_path, monkeypatch):
    def refused(*_):
        raise AssertionError("something was fetched")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    config = RunConfig(
        "camvid", str(camvid_tree), image_size=(32, 40), model="unet", epochs=1, batch_size=2,
        device="cpu", output_dir=str(tmp_path / "run"),
    )  # fmt: skip
    assert train(config, progress=False)


EVIL = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '<span style="background:url(https://example.org)" onclick="alert(1)">x',
    '<b onmouseover="alert(1)">x</b>',
    "<a href='javascript:alert(1)'>x</a>",
    "a & b < c > d \" ' &lt;script&gt;",
]


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("name", EVIL)
def test_names_from_files_stay_text_in_tables(name, tmp_path):
    (tmp_path / "classes.yaml").write_text(yaml.safe_dump({"classes": [name, "other"]}))
    names, *_ = read_classes(tmp_path / "classes.yaml")
    shown = figures.columns_table("x", {f"in {name}": {names[0]: "1.0"}}, note=f"of {name}").data
    found = Tags(shown)
    allowed = {"table", "caption", "thead", "tbody", "tr", "th", "td", "b", "code", "span"}
    assert {tag for tag, _ in found.tags} <= allowed
    attributes = {key for tag, given in found.tags for key in given if tag != "table"}
    assert attributes <= {"style"} and "url" not in str([given for _, given in found.tags])
    if "&" not in name and not name.startswith("<b"):
        assert name in found.text


def test_what_the_tables_mean_as_html_stays_html():
    cell = '<b>PAT</b> <code>x</code>&nbsp;<span style="background:#cc3311;border:1px">y</span>'
    assert figures.harmless(cell) == cell
    assert figures.harmless("a < b") == "a &lt; b"


def test_missing_runs_are_named_as_text():
    shown = figures.missing_html(("no <script>", "run <img src=x>")).data
    assert {tag for tag, _ in Tags(shown).tags} == {"p", "code"}


def test_the_book_asks_for_nothing_from_elsewhere():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert "sphinx-mathjax-offline" in config["sphinx"]["extra_extensions"]
    assert "thebe" not in config["launch_buttons"]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        loaded = re.findall(
            r"<(?:script|link|iframe|img)[^>]*(?:src|href)=.{0,3}https?:", path.read_text()
        )
        assert not loaded, path


def test_every_file_that_a_workflow_names_is_there():
    """The weekly check of known holes reads the exact versions."""
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "versions.yml").read_text())
    steps = [step.get("run", "") for step in workflow["jobs"]["audit"]["steps"]]
    (audit,) = (step.split() for step in steps if step.startswith("pip-audit"))
    # Without --strict, pip-audit ends with 0 where it could look up nothing.
    assert {"--strict", "--no-deps", "constraints.txt"} <= set(audit)
    assert Path(ROOT, "SECURITY.md").is_file()
