"""Print the whole book into one PDF: make pdf

Sphinx puts all pages on one (``singlehtml``), and Chromium prints it with formulas and figures.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from patlib.files import write_whole

SINGLE = Path(__file__).parents[1] / "_build" / "singlehtml"
SECONDS = 300  # to typeset the formulas of all pages, and to print them
# The size of a printed book, a chapter from the top of a page, without what works on a screen only.
# What scrolls on a screen is whole on paper: Chromium breaks no box that scrolls between two pages.
STYLE = """<style>
@page { size: A4; margin: 15mm; @bottom-center { content: counter(page); font: 9px sans-serif } }
html { font-size: 11px !important }
.copybtn, .headerlink, p.csv, details.hide, div.tag_hide-cell { display: none !important }
figure, img, tr { break-inside: avoid }
img { max-height: 23cm }
span[id^="document-"] + section { break-before: page }
h1, h2, h3, h4 { break-after: avoid }
main * { overflow: visible !important; max-height: none !important }
pre { white-space: pre-wrap !important }
table.dataframe { min-width: 0 !important; font-size: 0.85em }
table.dataframe :is(th, td) { padding: 0.2em 0.4em !important }
</style>"""


def within(html: str) -> str:
    """Links from page to page as links inside the one page; those to files beside it as text."""
    pages = {name.rpartition("/")[2]: name for name in re.findall(r'id="document-([^"]+)"', html)}

    def inside(found: re.Match) -> str:
        page, place = found[1], found[2]
        return f'href="{place or f"#document-{pages[page]}"}"' if page in pages else found[0]

    html = html.replace('href="book/index.html#', 'href="#')
    html = re.sub(r'href="(\w+)\.html(#[^"]*)?"', inside, html)
    return re.sub(r'href="_downloads/[^"]*"', "", html)


def print_page(page: Path, target: Path, chromium: str) -> None:
    """Print a page of HTML.

    Args:
        page: the file.
        target: the PDF.
        chromium: the program.

    Raises:
        subprocess.CalledProcessError, subprocess.TimeoutExpired: it fails, or does not finish.
        RuntimeError: it leaves no PDF.
    """
    with tempfile.TemporaryDirectory() as scratch:
        printed = Path(scratch) / "printed.pdf"
        # Virtual time: what scripts wait for is over at once, so that all formulas are typeset.
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
        options += ["--virtual-time-budget=120000", f"--user-data-dir={scratch}/profile"]
        command = [chromium, *options, f"--print-to-pdf={printed}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        if not printed.is_file() or printed.read_bytes()[:5] != b"%PDF-":
            raise RuntimeError(f"{chromium} did not print {page}")
        with write_whole(target) as file:
            file.write(printed.read_bytes())


def main() -> int:
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if chromium is None:
        print("the PDF is printed by Chromium or Chrome, and none is on the path", file=sys.stderr)
        return 2
    # The first page lies in a folder, and would look for styles and figures beside itself.
    html = (SINGLE / "book" / "index.html").read_text()
    page = SINGLE / "printed.html"
    page.write_text(within(html).replace("</head>", f"{STYLE}</head>", 1))
    target = SINGLE.parent / "patlib.pdf"
    print_page(page, target, chromium)
    print(target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
