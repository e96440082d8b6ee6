"""Offers every table that a chapter shows as CSV: a file beside the pages, a link below the table.

A table is one of `figures.table`, which has an id: the file is `_downloads/tables/ID.csv`. It is
made when a page is written, from the table on the page, so that both say the same.
"""

import csv
import html
import io
import re
from pathlib import Path

from patlib.files import write_text

TABLE = re.compile(r'<table class="dataframe table" id="([\w-]+)">.*?</table>', re.DOTALL)
ROW = re.compile(r"<tr.*?</tr>", re.DOTALL)
CELL = re.compile(r"<t([hd])\b[^>]*>(.*?)</t\1>", re.DOTALL)
LINK = '<p class="csv"><a class="reference download internal" href="{}" download>{}</a></p>'


def as_csv(table: str) -> str:
    """The rows of a table in HTML, header first; cells are texts without markup."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in ROW.findall(table):
        cells = (re.sub(r"<[^>]*>", " ", cell) for _, cell in CELL.findall(row))
        writer.writerow(" ".join(html.unescape(cell).split()) for cell in cells)
    return text.getvalue()


def offer(app, pagename, templatename, context, doctree):
    """Write the tables of a page as CSV and put the links below them."""

    def with_link(found: re.Match) -> str:
        table, name = found[0], found[1]
        file = f"_downloads/tables/{name}.csv"
        path = Path(app.outdir, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, as_csv(table))
        return table + LINK.format(context["pathto"](file, resource=True), "Download: CSV")

    if "body" in context:
        context["body"] = TABLE.sub(with_link, context["body"])


def setup(app):
    app.connect("html-page-context", offer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
