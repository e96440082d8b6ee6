"""The report of a comparison: one HTML file that opens offline, and the scores as CSV."""

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from patlib.files import write_text
from patlib.own_images import figures
from patlib.own_images.comparison import (
    METRICS,
    Comparison,
    score_table,
    shift_text,
    verdict,
)
from patlib.own_images.folder import Survey, notes
from patlib.own_images.plan import CANDIDATES

REPORT, SCORES = "report.html", "scores.csv"
#: what the methods are, by the loss, for readers who do not know them
EXPLAINED = {
    "ce": "cross-entropy, the usual loss",
    "focal": "Focal loss: easy pixels count less",
    "cb": "class-balanced: cross-entropy weighted by class frequency",
    "cb_focal": "class-balanced Focal loss",
    "bms": "balanced softmax: cross-entropy with the class frequencies in its softmax",
    "ldam": "larger margins for rarer classes",
    "blv": "noise on the logits, more for rarer classes",
    "pat": "pixel-wise adaptive training: a pixel counts more, the smaller its class in the image",
    "dice": "overlap of regions (Dice)",
    "jaccard": "overlap of regions (intersection over union)",
    "tversky": "overlap of regions (Tversky)",
    "lovasz": "overlap of regions (Lovász)",
    "mix": "a sum of losses",
}
#: ... and of those by their label that are another form of a loss
EXPLAINED_LABELS = {"1/√S": "a pixel weighs 1/√S, S the pixels of its class in the image"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  color: #1b1b1b; background: #fff; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.answer { border-left: 4px solid #0072b2; background: #eef5fa; padding: .6rem 1rem; }
.answer p:first-child { font-weight: 600; }
.wide { overflow-x: auto; } .wide img { min-width: 34rem; }
img { width: 100%; height: auto; display: block; }
figure { margin: 1rem 0; } figcaption { color: #444; font-size: .9rem; }
table { margin: 0; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; } td:nth-child(3) { white-space: normal; min-width: 9rem; }
@media (max-width: 40rem) { .wide::before { content: "scroll sideways →"; color: #595959;
  font-size: .8rem; position: sticky; left: 0; } }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
pre { background: #f4f4f4; padding: .7rem; overflow-x: auto; }
"""


def summary_table(found: Comparison) -> pd.DataFrame:
    """A row for each method, the chosen one first: shift and scores in percent, as texts."""
    rows: dict[str, dict[str, str]] = {}
    order = [found.best, *(m for m in found.runs if m != found.best)]
    judged = {d.method: d.short for d in found.differences["miou"]}
    for method in order:
        scores = {split: pd.DataFrame(found.scores(method, split)) for split in
                  ("validation", "test")}  # fmt: skip
        row = {"test mIoU (%)": _mean_and_std(scores["test"]["miou"])}
        # Second, so that a narrow window shows how sure a difference is.
        row[f"test mIoU minus {found.best} (points)"] = judged.get(method, "")
        for metric, title in METRICS.items():
            if metric != "miou":
                row[f"test {title} (%)"] = _mean_and_std(scores["test"][metric])
        for metric in ("miou", "tail"):  # what a loss is chosen by
            row[f"validation {METRICS[metric]} (%)"] = _mean_and_std(scores["validation"][metric])
        row["shift"] = shift_text(found.shifts[method])
        rows[method] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _mean_and_std(values: pd.Series) -> str:
    if not values.notna().any():
        return "no test image"
    text = f"{100 * values.mean():.1f}"
    return text if len(values) < 2 else f"{text} ± {100 * values.std():.1f}"


def make_figures(survey: Survey, found: Comparison) -> dict[str, tuple[Figure, str]]:
    """Name -> a figure of the report and its caption."""
    if len(found.plan.seeds) == 1:
        bars = (
            "bar: 95 % interval over the test images alone. With one seed the variation of "
            "training itself is not in these bars: a bar beside 0 does not decide, and no mark is "
            "filled."
        )
    else:
        bars = (
            "mean over the seeds and 95 % interval over seeds and test images. Filled: told apart "
            "from 0. Ticks: single seeds."
        )
    made = {
        "intervals": (
            figures.plot_intervals(found),
            f"Test IoU of each loss minus that of {found.best}, each with its shift: {bars}",
        ),
        "trade-off": (
            figures.plot_trade_off(found),
            "Common classes against rare ones. Each line is one loss as its logits are shifted "
            "from favouring common classes (τ = −1) to favouring rare ones (τ = 1), which costs no "
            "training. Mark: the shift that validation chose.",
        ),
        "classes": (
            figures.plot_class_scores(found),
            "Test IoU of each class (mean over the seeds, with shift), common classes left.",
        ),
        "predictions": (
            figures.plot_example_predictions(found, survey),
            "Test images, the truth, and what the first seed of each loss predicts with its shift, "
            "with the wrong pixels dark.",
        ),
        "tail": (
            figures.plot_tail(survey),
            "Left: share of each class in the training pixels. Right: its size in the images that "
            "hold it (dot: median, box: quartiles, line: 5 to 95 %), and the share of these "
            "images.",
        ),
        "images": (figures.plot_examples(survey), "Training images and their masks."),
    }
    return {name: pair for name, pair in made.items() if pair[0] is not None}


def write_report(survey: Survey, found: Comparison, output_dir: str | Path) -> Path:
    """Write ``report.html`` and ``scores.csv``.

    Names of classes and files are shown as text, whatever they hold. The report has no date: the
    same runs give the same file.

    Returns:
        The path of the report.
    """
    folder = Path(output_dir).expanduser()
    write_text(folder / SCORES, score_table(found).to_csv(index=False, lineterminator="\n"))
    drawn = make_figures(survey, found)
    parts = {name: _figure(*pair) for name, pair in drawn.items()}
    plan, best = found.plan, folder / "best"
    table = summary_table(found).rename_axis("loss").reset_index().to_html(
        index=False, escape=True, border=0, justify="right"
    )  # fmt: skip
    command = f"patlib predict {best} IMAGES --out LABELS --overlay"
    call = f"patlib.export({str(best)!r}, 'net.onnx', prior_shift='chosen')"
    body = [
        "<h1>Which loss for these images?</h1>",
        f'<div class="answer">{_paragraphs(verdict(found))}</div>',
        f"<p>{_explain(plan.methods)}</p>",
        f'<h2>Scores</h2><div class="wide">{table}</div>',
        "<p>The shift of each loss, and the loss itself, are chosen by mIoU on the validation "
        "images; the test images judge the choice. All words are explained at the end.</p>",
        f"<h2>How sure is it?</h2>{parts['intervals']}",
        "<h2>Common or rare classes?</h2>"
        + parts.get("trade-off", "<p>No test image holds a class of the tail.</p>"),
        f"<h2>Class by class</h2>{parts['classes']}",
        f"<h2>What it looks like</h2>{parts['predictions']}",
        "<h2>The images</h2>",
        f"<p>{_counts(survey)}</p>{_paragraphs(notes(survey))}{parts['tail']}{parts['images']}",
        f"<h2>What was run</h2><p>{html.escape(str(plan))}.</p>",
        f"<h2>Use it</h2><pre>{html.escape(command)}</pre>"
        f"<p>Or, in Python, as a file for another program:</p><pre>{html.escape(call)}</pre>",
        "<p>The label maps have the values of your masks (of masks in colours: their colours, as "
        "a palette); <code>classes.json</code> beside them says which value is which class. The "
        "shift of this report is applied; <code>--prior_shift none</code> leaves it out.</p>"
        "<p><code>scores.csv</code> has every run, <code>labels/</code> the label maps of the "
        "test images, <code>best/</code> the network. <code>runs/</code> has the networks of all "
        "runs: it is needed to add seeds, and can be removed otherwise.</p>",
        f"<h2>Words</h2><dl>{_words()}</dl>",
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Which loss for these images?</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    return write_text(folder / REPORT, page)


def _explain(methods: Mapping[str, Mapping]) -> str:
    """What each method is, in a sentence."""

    def text(label: str, settings: Mapping) -> str:
        params = settings.get("loss_params", {})
        if settings == CANDIDATES.get(label) and label in EXPLAINED_LABELS:
            return f"{label}: {EXPLAINED_LABELS[label]}"
        told = EXPLAINED.get(settings["loss"], settings["loss"])
        if settings["loss"] == "mix" and "losses" in params:
            told += " (" + ", ".join(f"{a:g} {name}" for name, a in params["losses"].items()) + ")"
        elif params:
            told += " (" + ", ".join(f"{k} {v}" for k, v in params.items()) + ")"
        return f"{label}: {told}"

    return html.escape("; ".join(text(*method) for method in methods.items()) + ".")


WORDS = {
    "mIoU": "Intersection over union (pixels that are rightly called a class, divided by those "
    "that are of it or called it), the mean over the classes.",
    "Head, middle, tail": "The same mean over the commonest, the middle and the rarest third of "
    "the classes.",
    "Seed": "The number that the random choices of a run start from (first weights, order of the "
    "images). Runs that differ in the seed alone show how much of a difference is chance.",
    "Shift": "What is added to the scores of the classes after training, so that rare classes are "
    "predicted more often (τ > 0) or less often (τ < 0). κ takes back what a loss itself does for "
    "rare classes: all of it at κ = 1.",
    "Not distinguishable": "The 95 % interval of the difference holds 0: it may be chance.",
    "Not judged": "With one seed there is no interval over seeds.",
}


def _words() -> str:
    pairs = ((html.escape(a), html.escape(b)) for a, b in WORDS.items())
    return "".join(f"<dt>{word}</dt><dd>{told}</dd>" for word, told in pairs)


def _paragraphs(texts: Iterable[str]) -> str:
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)


def as_markdown(texts: Iterable[str]) -> str:
    """Paragraphs in Markdown; names of classes and files are shown as text, whatever they hold.

    Options are code: Sphinx would make one dash of their two hyphens.
    """

    def shown(found: re.Match) -> str:
        return f"`{found[0]}`" if found[0].startswith("--") else f"\\{found[0]}"

    special = r"(?<!\S)--\w+(?: \d+)?|[\\`*_{}\[\]<>#$&|~]"
    return "\n\n".join(re.sub(special, shown, text) for text in texts)


def _counts(survey: Survey) -> str:
    parts: Mapping[str, int] = {split: len(sizes) for split, sizes in survey.splits.items()}
    images = ", ".join(f"{number} {split}" for split, number in parts.items())
    return html.escape(f"{images} images; {len(survey.class_names)} classes.")


def _figure(figure: Figure, caption: str) -> str:
    stored = io.BytesIO()
    figure.savefig(stored, dpi=110, metadata={"Software": None})
    plt.close(figure)
    data = base64.b64encode(stored.getvalue()).decode()
    text = html.escape(caption)
    return (
        f'<figure><div class="wide"><img alt="{text}" src="data:image/png;base64,{data}"></div>'
        f"<figcaption>{text}</figcaption></figure>"
    )
