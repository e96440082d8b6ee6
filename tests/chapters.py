"""Notebooks for the tests: their stored content, and their cells executed in this process."""

import ast
import builtins
import contextlib
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import matplotlib
from IPython.display import HTML

matplotlib.use("agg")
ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
sys.path.insert(0, str(ROOT / "book"))  # as the setup cell of every notebook does

import figures  # noqa: E402


def cells(name: str, kind: str = "code") -> list[dict]:
    content = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())
    return [cell for cell in content["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tagged(cell: dict, tag: str) -> bool:
    return tag in cell["metadata"].get("tags", [])


class Chapter:
    """What the cells of a notebook do: the texts and tables that they show, what they glue.

    Args:
        name: of the notebook.
        only: ids of the cells that are executed after the folded ones at the top; None for all.
        skip: ids of cells that are not executed.
        **parameters: instead of the defaults, as papermill injects them.
    """

    def __init__(self, name: str, only=None, skip=(), **parameters):
        self.name, self.parameters = name, parameters
        self.space, self.glued = {"__name__": "__main__", "In": []}, {}
        self.run(only, skip)

    def run(self, only=None, skip=()):
        self.shown, self.printed = [], io.StringIO()
        code = cells(self.name)
        first = next(i for i, cell in enumerate(code) if not tagged(cell, "hide-cell"))
        for number, cell in enumerate(code):
            if cell["id"] not in skip and (only is None or number < first or cell["id"] in only):
                self._execute(source(cell), cell["id"])
                if tagged(cell, "parameters"):  # what papermill adds
                    given = [f"{key} = {value!r}" for key, value in self.parameters.items()]
                    self._execute("\n".join(["# Parameters", *given]), "injected")
        return self

    def _execute(self, code, name):
        self.space["In"].append(code)
        tree = ast.parse(code)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        show = lambda *values: self.shown.extend(values)  # noqa: E731
        keep = lambda key, value, display: self.glued.update({key: value})  # noqa: E731
        with (
            mock.patch.object(figures, "glue", keep),
            mock.patch.object(builtins, "display", show, create=True),
            contextlib.redirect_stdout(self.printed),
        ):
            exec(compile(tree, name, "exec"), self.space)
            if last is not None:
                show(eval(compile(ast.Expression(last.value), name, "eval"), self.space))
        matplotlib.pyplot.close("all")

    @property
    def text(self) -> str:
        """All that is printed and shown as text, without markup."""
        return self.printed.getvalue() + "\n".join(_plain(html) for html in self._html())

    @property
    def tables(self) -> dict:
        return read_tables(self._html())

    def _html(self):
        return [value.data for value in self.shown if isinstance(value, HTML)]


class _Tables(HTMLParser):
    """id -> rows of texts, of tables in HTML."""

    def __init__(self):
        super().__init__()
        self.tables, self.name, self.in_cell, self.plain = {}, None, False, []

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.name = dict(attrs).get("id")
            self.tables[self.name] = []
        elif tag == "tr":
            self.tables[self.name].append([])
        elif tag in ("td", "th"):
            self.in_cell = True
            self.tables[self.name][-1].append("")

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.plain.append(data)
        if self.in_cell:
            self.tables[self.name][-1][-1] += data


def _plain(html: str) -> str:
    parser = _Tables()
    parser.feed(html)
    return " ".join(parser.plain)


def read_tables(htmls) -> dict[str, dict[str, dict[str, str]]]:
    """id of a table -> first cell of a row -> title of a column -> text."""
    parser = _Tables()
    for html in htmls:
        parser.feed(html)
    return {
        name: {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}
        for name, (head, *rows) in parser.tables.items()
        if name
    }


def outputs(name: str) -> list[dict]:
    """The stored outputs of a notebook."""
    return [output for cell in cells(name) for output in cell["outputs"]]


def stored_tables(name: str) -> dict:
    return read_tables("".join(o.get("data", {}).get("text/html", "")) for o in outputs(name))


def stored_glue(name: str) -> dict[str, object]:
    """Key -> value of what a stored notebook glues as text."""
    key, found = "application/papermill.record/text/plain", {}
    for output in outputs(name):
        if key in output.get("data", {}):
            text = "".join(output["data"][key])
            with contextlib.suppress(ValueError, SyntaxError):
                text = ast.literal_eval(text)
            found[output["metadata"]["scrapbook"]["name"]] = text
    return found


def stored_text(name: str) -> str:
    """What the stored cells print."""
    return "".join("".join(o["text"]) for o in outputs(name) if o.get("name") == "stdout")
