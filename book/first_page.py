"""Write the answer into the first page of the book and the README: python book/first_page.py

Figure, sentences and tables follow from the records and go between the markers of both pages. Run
it after new records; ``make book`` does. The figure (``book/images/answer.png``) carries the
numbers that it was drawn from, so that it can be checked without drawing it again.
"""

import io
import re
from pathlib import Path

import matplotlib
import PIL.Image
from figures import ROOT, first_page, rates, records_folder, what_holds
from PIL.PngImagePlugin import PngInfo

from patlib.files import write_text, write_whole

matplotlib.use("agg")
FIGURE = ROOT / "book" / "images" / "answer.png"
README, INDEX = ROOT / "README.md", ROOT / "book" / "index.md"
TERMS = ("tail", "head", "pixel accuracy", "mIoU", "seed", "interval")  # of the glossary
LINKED = ("answer", "sure")  # texts with links to the glossary
CHOICE = ["you care for", "take", f"minus CE: {'; '.join(first_page.CHANGES.values())}"]
CLAIMS = ["verdict", "the study, arithmetic, benchmarks", "with the short runs before"]
ALT = "What each loss changes beside cross-entropy, in mIoU, head and tail, on each data set"


def parts(records: Path) -> tuple[dict[str, str], list]:
    """The texts that follow from records, by the name of their marker; and the comparisons."""
    compared = first_page.compare(records)
    claims = what_holds.load_claims(ROOT / "study" / "claims.yaml")
    study = what_holds.read_evidence(first_page.STUDY, records)
    short = what_holds.read_evidence(
        first_page.SHORT, records, unjudged=first_page.UNJUDGED, short=True
    )
    counts = first_page.verdict_counts(study, short, claims)
    at_rates = what_holds.read_at_chosen_rates(study, records)
    judged_at = [evidence.judged for evidence in at_rates or ()]
    rate_changes = rates.verdict_changes(*judged_at) if at_rates else None
    limits = (
        f"{first_page.holding_words(study, claims)} {first_page.scale_words(records)} "
        f"{what_holds.rate_words(at_rates, counts=False)}"
    )
    texts = {
        "answer": "\n".join(f"- {said}" for said in first_page.sentences(compared)),
        "sure": first_page.how_sure(compared, rate_changes),
        "figure": f"![{ALT}]({{figure}})\n\n*{first_page.caption(compared)}*",
        "choice": first_page.markdown(CHOICE, first_page.choices(compared)),
        "claims": f"{first_page.markdown(CLAIMS, counts)}\n\n{limits}",
    }
    return texts, compared


def linked(text: str) -> str:
    """A text in which the first mention of each term leads to the glossary, for the book."""
    for term in TERMS:
        text = re.sub(rf"\b({term}s?)\b", rf"{{term}}`\1 <{term}>`", text, count=1)
    return text


def fill(page: str, texts: dict[str, str], figure: str) -> str:
    """A page with the texts between its markers ``<!-- NAME -->`` and ``<!-- end of NAME -->``.

    Args:
        page: what it says now. It need not have all of the markers.
        texts: name -> text.
        figure: path of the figure from this page.
    """
    for name, text in texts.items():
        text = text.replace("{figure}", figure)
        new = f"<!-- {name} -->\n{text}\n<!-- end of {name} -->"
        marked = rf"<!-- {name} -->\n.*?<!-- end of {name} -->"
        page = re.sub(marked, lambda _, new=new: new, page, flags=re.DOTALL)
    return page


def draw(compared: list) -> bytes:
    """The figure as PNG, with its numbers beside it."""
    drawn, stored = io.BytesIO(), io.BytesIO()
    figure = first_page.plot_answer(compared)
    figure.savefig(drawn, dpi=figure.dpi)
    info = PngInfo()
    info.add_itxt("numbers", first_page.numbers(compared))
    picture = PIL.Image.open(drawn).convert("RGB").quantize(64, dither=PIL.Image.Dither.NONE)
    picture.save(stored, "png", optimize=True, pnginfo=info)
    return stored.getvalue()


def main() -> None:
    texts, compared = parts(records_folder(None))
    write_text(README, fill(README.read_text(), texts, "book/images/answer.png"))
    texts = {**texts, **{name: linked(texts[name]) for name in LINKED}}
    write_text(INDEX, fill(INDEX.read_text(), texts, "images/answer.png"))
    drawn = FIGURE.is_file() and PIL.Image.open(FIGURE).text.get("numbers")
    if drawn != first_page.numbers(compared):  # its bytes differ from machine to machine
        with write_whole(FIGURE) as file:
            file.write(draw(compared))


if __name__ == "__main__":
    main()
