"""What the chapters share: the repository's folders, tables, and numbers for the text.

The figures and statistics of a single chapter are in the module of its name. A notebook's setup
cell puts ``book`` on ``sys.path``, so that it can ``import figures``.
"""

import html
import importlib.util
import inspect
import io
import re
import tempfile
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import PIL.Image
import yaml
from IPython.display import HTML, Image
from myst_nb import glue

from patlib.data import DATASETS, build_dataset
from patlib.models import MODELS
from patlib.plots import plot_runs
from patlib.study.grids import data_root, load_grid, load_records
from patlib.study.paper import check_statement
from patlib.study.runs import (
    Run,
    by_benchmark,
    load_runs,
    missing_runs,
    summarize,
)
from patlib.study.statistics import GROUPS
from patlib.study.wording import listing, mean_and_std, seeds_note

ROOT = Path(__file__).parents[2]
GRIDS = ROOT / "study" / "grids"
SCORES = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "head": "head",
    "mid": "mid",
    "tail": "tail",
}
SPLITS = {
    "official": "the published split",
    "grouped": "the published test part with validation cut by room or drive",
    "paper": "a split of 80 / 10 / 10 % of all images",
}
VOID = {"class": "void is a class", "ignore": "void is ignored"}


def records_folder(records: str | None) -> Path:
    """The folder of the records that a chapter reads; None means those of this repository."""
    if records is None:
        return ROOT / "study" / "records" / "runs"
    folder = Path(records).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"records must be an existing folder, got {records!r}")
    return folder


def load_script(path: str) -> ModuleType:
    """A script of this repository as a module, such as ``benchmarks/common.py``."""
    name = path.removesuffix(".py").replace("/", "_")
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small_model(name: str) -> dict:
    """Parameters of a demonstration: ``width`` 8 and ``stages`` 4 where the network has them."""
    has = inspect.signature(MODELS[name]).parameters if name in MODELS else {}
    return {param: value for param, value in (("width", 8), ("stages", 4)) if param in has}


def network_name(runs: Sequence[Run]) -> str:
    """The network of runs of one benchmark: ``U-Net``, or ``pretrained U-Net``."""
    settings = runs[0].planned.settings
    pretrained = settings["model_params"].get("encoder_weights") is not None
    return f"{'pretrained ' if pretrained else ''}{MODELS[settings['model']].label}"


def read_panels(
    grids: Sequence[str], folder: Path, seeds: Sequence[int] | None = None
) -> dict[str, list[Run]]:
    """The benchmarks of grids of which something was run: ``CamVid with SegNet`` -> its runs.

    Where two grids have the same data and network, their lengths tell them apart: ``CamVid with
    SegNet for 100 epochs``.
    """
    found = []
    for grid in grids:
        for benchmark, runs in by_benchmark(load_runs(GRIDS / grid, folder, seeds)).items():
            if any(run.record for run in runs):
                found.append((f"{benchmark} with {network_name(runs)}", runs))
    number = Counter(title for title, _ in found)
    return {
        f"{title} for {epochs_of(runs)}" if number[title] > 1 else title: runs
        for title, runs in found
    }


def epochs_of(runs: Iterable[Run]) -> str:
    """How long runs are: ``30 epochs``, ``20 to 30 epochs``."""
    epochs = {run.planned.settings["epochs"] for run in runs}
    return f"{' to '.join(map(str, sorted({min(epochs), max(epochs)})))} epochs"


def precisions(panels: Mapping[str, Iterable[Run]]) -> str:
    """Which seeds are in which precision, where a benchmark has several: sentences, or none.

    Args:
        panels: title -> runs of a benchmark.
    """
    names = {"32-true": "float32", "bf16-mixed": "bfloat16", "16-mixed": "float16"}
    titles: dict[str, list[str]] = {}
    for title, runs in panels.items():
        seeds: dict[str, set[int]] = {}
        for run in sorted((run for run in runs if run.record), key=lambda run: run.seed):
            seeds.setdefault(names[run.planned.settings["precision"]], set()).add(run.seed)
        if len(seeds) > 1:
            parts = (
                f"seed{'s' if len(of) > 1 else ''} {listing(map(str, sorted(of)))} in {name}"
                for name, of in seeds.items()
            )
            titles.setdefault(listing(parts), []).append(title)
    return " ".join(f"On {listing(where)}, {said}." for said, where in titles.items())


def load_paper() -> dict:
    """The paper's own numbers."""
    return yaml.safe_load((ROOT / "study" / "paper.yaml").read_text())


def glue_for(chapter: str) -> Callable[..., None]:
    """A function that glues values for the text: ``f(some_name=1)`` as ``CHAPTER-some-name``."""

    def put(**values) -> None:
        for name, value in values.items():
            glue(f"{chapter}-{name.replace('_', '-')}", value, display=False)

    return put


def miniature(**settings) -> dict:
    """The result of a run of seconds, on drawn scenes of 32 x 48 pixels; nothing is kept."""
    from patlib import RunConfig, train  # takes seconds, and not every chapter trains

    with tempfile.TemporaryDirectory() as scratch:
        shared = dict(
            dataset="synthetic",
            image_size=(32, 48),
            model="attention_unet",
            model_params={"width": 8},
            batch_size=8,
            device="cpu",
            output_dir=scratch,
        )
        result = train(RunConfig(**{**shared, **settings}), progress=False).result
    losses = result["curves"]["train_loss"]
    assert 0 < result["test"]["miou"] < 1
    assert len(losses) == 1 or losses[-1] < losses[0], "nothing was learned"
    return result


def table(name: str, header: Sequence, rows: Sequence[Sequence], note: str = "") -> HTML:
    """A table of cells that may hold a few tags of HTML, see :func:`harmless`.

    Args:
        name: its id in the page.
        header: the titles of the columns.
        rows: the cells.
        note: what stands below, such as :func:`patlib.study.wording.seeds_note`.
    """
    cells = [[harmless(cell) for cell in row] for row in rows]
    frame = pd.DataFrame(cells, columns=[harmless(title) for title in header])
    with pd.option_context("display.max_colwidth", None):
        shown = frame.to_html(index=False, escape=False, border=0, classes="table", table_id=name)
    caption = f"<caption>{harmless(note)}</caption>\n" if note else ""
    return HTML(
        shown.replace(' style="text-align: right;"', "").replace("</table>", caption + "</table>")
    )


def harmless(cell: Any) -> str:
    """The text of a cell as HTML in which nothing can run, whatever a file calls its classes.

    Bold, code, spans with a plain style, and links to other pages of the book stay as they are;
    all else is text.
    """
    text = html.escape(str(cell), quote=False)
    text = re.sub(r"&amp;(\w+|#\d+);", r"&\1;", text)
    style = r' style="[-\w:;#.% ]*"'
    text = re.sub(
        r'&lt;a href="([a-z_]+\.html)"&gt;([\w ]*)&lt;/a&gt;', r'<a href="\1">\2</a>', text
    )
    return re.sub(rf"&lt;(/?(?:b|code|span)|span{style})&gt;", r"<\1>", text)


def columns_table(
    name: str, columns: Mapping[str, Mapping[str, str]], first: str = "loss", note: str = ""
) -> HTML | None:
    """A table with a row for each method: title of a column -> label of a method -> text.

    Rows and columns in which nothing was run are left out; None if none is left.

    Args:
        name, note: of :func:`table`.
        columns: the texts.
        first: title of the column of labels.
    """
    frame = pd.DataFrame(columns).fillna("")
    was_run = ~frame.isin(["", "not run"])
    frame = frame.loc[was_run.any(axis=1), was_run.any()].reset_index(names=first)
    return table(name, frame.columns, frame.values, note) if len(frame) else None


def join(*parts: HTML | None) -> HTML:
    """Several tables below one another; those that are None are left out."""
    return HTML("\n".join(part.data for part in parts if part is not None))


def missing_html(missing: tuple[str, str]) -> HTML:
    """What :func:`patlib.study.runs.missing_runs` says, as a paragraph."""
    sentence, command = missing
    return HTML(f"<p>{html.escape(sentence)}: <code>{html.escape(command)}</code></p>")


def unfinished(
    grids: Sequence[str], folder: Path, seeds: Sequence[int] | None = None
) -> list[HTML]:
    """Of each grid with runs that have no record: how many are done, what starts the others."""
    return [
        missing_html(missing_runs(GRIDS / grid, folder))
        for grid in grids
        if any(run.record is None for run in load_runs(GRIDS / grid, folder, seeds))
    ]


def grid_table(
    name: str,
    grid: Path,
    records: Path,
    metrics: Mapping[str, str],
    seeds: Sequence[int] | None = None,
) -> HTML:
    """The scores of a grid, a column for each benchmark and score; how to run it if nobody has.

    Args:
        name: of the table.
        grid, records, seeds: of :func:`patlib.study.runs.load_runs`.
        metrics: score -> its title.
    """
    columns, tables = {}, {}
    for benchmark, runs in by_benchmark(load_runs(grid, records, seeds)).items():
        where = f"{benchmark}, {network_name(runs)}"
        for metric, title in metrics.items():
            scores = summarize(runs, metric)
            columns[f"{where}: {title}"] = mean_and_std(scores)
        if scores.n.any():
            tables[where] = scores
    if not tables:
        return missing_html(missing_runs(grid, records))
    return columns_table(name, columns, note=seeds_note(tables))


def grid_tables(
    chapter: str,
    pattern: str,
    records: Path,
    metrics: Mapping[str, str],
    seeds: Sequence[int] | None = None,
) -> HTML:
    """:func:`grid_table` of every grid at the paper's scale whose name fits a pattern."""
    grids = sorted(path for p in pattern.split() for path in (GRIDS / "paper").glob(f"{p}.yaml"))
    done, rest = [], []
    for grid in grids:
        ran = any(run.record for run in load_runs(grid, records, seeds))
        (done if ran else rest).append(grid)
    tables = [grid_table(f"{chapter}-paper-{g.stem}", g, records, metrics, seeds) for g in done]
    if rest:
        names = ", ".join(f"<code>{grid.name}</code>" for grid in rest)
        where = '<a href="what_holds.html#not-yet-run">Not yet run</a>'
        tables.append(HTML(f"<p>None of the runs of {names} is done yet: see {where}.</p>"))
    return join(*tables)


def not_yet_run(records: Path) -> list[list[str]]:
    """The grids with runs that have no record: what they are, how many are done, the command."""
    rows = []
    for grid in sorted(GRIDS.glob("*/*.yaml")):
        runs = load_grid(grid)
        names = {run.name for run in runs}
        done = len(load_records(runs, records))
        if done < len(names):
            _, command = missing_runs(grid, records)
            about = grid.read_text().split("\n#\n")[0].replace("\n#", "").lstrip("# ")
            title = about.split(". ")[0].rstrip(".")
            name = f"{grid.parent.name}/{grid.stem}"
            rows.append([f"{name}: {title}", f"{done} of {len(names)}", code(command)])
    return rows


def code(text: str) -> str:
    """A text as code, in a cell of :func:`table`."""
    return f"<code>{text}</code>"


def groups_table(name: str, parts: Mapping[str, Sequence[Run]], first: str, note: str):
    """Mean IoU of head, middle and tail: a row for each title and method; None if nothing ran."""
    columns = {
        f"{group} (%)": {
            f"{title}, {method}": text
            for title, runs in parts.items()
            for method, text in mean_and_std(summarize(runs, group)).items()
        }
        for group in GROUPS
    }
    return columns_table(name, columns, first, note)


def statements_table(name: str, paper: Mapping, table_of_paper: str) -> HTML:
    """The paper's statements on one of its tables beside what that table holds."""
    rows = []
    for statement in paper["statements"]:
        if statement["tables"][0][0].startswith(table_of_paper):
            ends, agrees = check_statement(paper, statement)
            given = " to ".join(f"{end:.2f}" for end in ends)
            cells = [" to ".join(statement["printed"]), given, "yes" if agrees else "no"]
            rows.append([statement["says"], *cells])
    return table(name, ["what it says", "printed", "in the tables", "as printed"], rows)


def predictions(runs: Sequence[Run], data: str | None, missing: tuple[str, str]) -> Image | None:
    """Labels that the first run of each method predicts; with real images at hand, errors as well.

    Args:
        runs: of one data set.
        data: folder of the data sets, or None.
        missing: of :func:`as_png`.
    """
    if data is None:
        return as_png(plot_runs(runs), missing)
    settings = runs[0].planned.settings
    root, name = data_root(settings["dataset"], data), settings["dataset"]
    images = build_dataset(name, root, "test", settings["image_size"])
    return as_png(plot_runs(runs, images, columns=[1, 4, 6]), missing)


def settings_table(name: str, runs: Sequence[Run]) -> HTML | None:
    """What was run: a column for each benchmark and length, the settings those of its first run."""
    groups: dict = defaultdict(list)
    for run in runs:
        groups[run.benchmark, run.planned.settings["epochs"]].append(run)
    columns = {}
    for (benchmark, epochs), members in groups.items():
        settings, done = members[0].planned.settings, [r for r in members if r.record]
        given = {k: v for k, v in settings["model_params"].items() if v not in (None, False)}
        model = ", ".join(f"{k} {v}" for k, v in given.items())
        column = {
            "size (H x W)": " x ".join(map(str, settings["image_size"])),
            "parameters of the network": model,
            "epochs": settings["epochs"],
            "batch": settings["batch_size"],
            "learning rate": f"{settings['learning_rate']:g}",
            "planned seeds": ", ".join(map(str, sorted({r.seed for r in members}))),
            "seeds done": ", ".join(map(str, sorted({r.seed for r in done}))) or "none",
            "runs done": f"{len(done)} of {len(members)}",
        }
        images = "images (train / validation / test)"
        if done:
            made = pd.DataFrame([run.record.provenance for run in done])
            minutes = made["seconds"].str["all"].median() / 60
            devices = ", ".join(sorted(set(made["device"])))
            column["median wall time"] = f"{minutes:.0f} min, {devices}"
            column = {images: " / ".join(map(str, made["num_images"][0].values())), **column}
        else:
            column = {images: "", **column, "median wall time": ""}
        several = sum(other == benchmark for other, _ in groups) > 1
        length = f" for {epochs} epochs" if several else ""
        columns[f"{benchmark}, {network_name(members)}{length}"] = column
    return columns_table(name, columns, first="")


def settings_beside_paper(runs: Sequence[Run]) -> str:
    """The paper's lengths, image sizes, parts and void beside those of these runs: for a line.

    Args:
        runs: of any grids, whose scores stand beside those of the paper; those without a record do
            not count.
    """
    protocol = load_paper()["protocol"]
    sizes = [
        f"{DATASETS[name].label} at {_size(size)}" for name, size in protocol["image_size"].items()
    ]
    paper = (
        f"The paper: {protocol['epochs']} epochs; {listing(sizes)} pixels; a split"
        f" of {protocol['splits']}; by its numbers of classes {VOID[protocol['void']]}."
    )
    done = [run for run in runs if run.record]
    if not done:
        return f"{paper} Here nothing has been run yet."
    settings = [run.planned.settings for run in done]
    several = len({s["model"] for s in settings}) > 1
    lengths: dict[str, dict[int, dict[str, None]]] = {}  # where -> epochs -> networks
    for s in settings:
        where = f"{DATASETS[s['dataset']].label} at {_size(s['image_size'])} pixels"
        networks = lengths.setdefault(where, {}).setdefault(s["epochs"], {})
        networks[MODELS[s["model"]].label] = None
    trained = []
    for where, of in lengths.items():
        each = [
            f"{epochs} ({listing(networks)})" if several else str(epochs)
            for epochs, networks in sorted(of.items())
        ]
        trained.append(f"{where}, {listing(each)} epochs")
    schemes = listing(dict.fromkeys(SPLITS[s["split_scheme"]] for s in settings))
    void = listing(dict.fromkeys(VOID[s["void"]] for s in settings))
    return (
        f"{paper} Here: {'; '.join(trained)}; {schemes}; {void}. Any of these may explain a"
        " difference."
    )


def _size(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def as_png(figure, missing: tuple[str, str] | None = None, colors: int = 256) -> Image | None:
    """A figure as PNG with few colours, for notebooks: label maps take half the bytes or less.

    Args:
        figure: None if there was nothing to draw.
        missing: what is printed then, from :func:`patlib.study.runs.missing_runs`. The book makes
            a numbered figure of what a cell shows, not of what it prints.
        colors: at most so many.
    """
    if figure is None:
        sentence, command = missing
        print(f"{textwrap.fill(sentence, 78)}:\n\n{command}")
        return None
    drawn, stored = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=figure.dpi)
    plt.close(figure)  # or the notebook would show it once more
    picture = PIL.Image.open(drawn).convert("RGB").quantize(colors, dither=PIL.Image.Dither.NONE)
    picture.save(stored, "png", optimize=True)
    return Image(stored.getvalue())
