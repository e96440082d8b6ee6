"""The tables of the chapters as CSV: a table on a page, and what its file says."""

import csv
import importlib
from types import SimpleNamespace

import pytest
from chapters import NOTEBOOKS, figures, stored_tables


@pytest.fixture
def module(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS.parent / "book")
    return importlib.import_module("table_downloads")


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def shown_on(module, tmp_path, body):
    """The body of a page as it is written, and the files."""
    context = {"body": body, "pathto": lambda file, resource: f"../{file}"}
    module.offer(SimpleNamespace(outdir=tmp_path), "notebooks/page", "page.html", context, None)
    return context["body"], {f.stem: read(f) for f in tmp_path.rglob("*.csv")}


def test_tables_of_a_page_have_a_link_and_a_file(module, tmp_path):
    rows = [["CE, <b>plain</b>", "36.1 ± 0.6"], ['"PAT" &amp; β', "a <code>b</code>"]]
    first = figures.table("page-scores", ["loss", "mIoU (%)"], rows, note="Three seeds.").data
    second = figures.table("page-more", ["x"], [["1.000"]]).data
    other = '<table class="executed" id="id1"><tr><td>1</td></tr></table>'
    body, files = shown_on(module, tmp_path, f"<p>A</p>{first}<p>B</p>{second}{other}")
    assert files == {
        "page-scores": [["loss", "mIoU (%)"], ["CE, plain", "36.1 ± 0.6"], ['"PAT" & β', "a b"]],
        "page-more": [["x"], ["1.000"]],
    }
    link = 'href="../_downloads/tables/{}.csv" download>Download: CSV</a></p>'
    for name, table in (("page-scores", first), ("page-more", second)):
        after = body.partition(table)[2]
        assert after.startswith("<p ") and link.format(name) in after.partition("</p>")[0] + "</p>"
    assert body.count("Download: CSV") == 2
    assert shown_on(module, tmp_path, "<p>no table</p>")[0] == "<p>no table</p>"


NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def test_no_two_tables_of_the_chapters_have_one_name():
    names = [name for chapter in NAMES for name in stored_tables(chapter)]
    assert len(names) == len(set(names)) > 40
