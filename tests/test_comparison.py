"""The chapters that compare methods: their figures, their stored numbers, and other records."""

import functools
import json
import re
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from chapters import (
    Chapter,
    cells,
    figures,
    read_tables,
    source,
    stored_glue,
    stored_tables,
    tagged,
)
from fake_runs import fake_record, grid_file
from figures.temperature import equal_cells, plot_scores_over, tidy

from patlib.metrics import class_groups
from patlib.plots import (
    plot_class_iou,
    plot_differences,
    plot_predictions,
    plot_runs,
    plot_scores,
    plot_validation,
)
from patlib.study.grids import load_grid
from patlib.study.runs import by_method, load_runs
from patlib.study.statistics import Difference, mean_iou

ROOT = Path(__file__).parents[1]
GRIDS, RECORDS = ROOT / "study" / "grids", ROOT / "study" / "records" / "runs"
SMALL = GRIDS / "small"
PAPER = figures.load_paper()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


# -- records and stored pages -----------------------------------------------------------------


def test_scores_of_a_record_are_those_of_its_counts():
    paths = sorted(RECORDS.glob("*.json"))
    assert len(paths) > 100
    for path in paths:
        record = json.loads(path.read_text())
        test, class_counts = record["result"]["test"], record["result"]["class_counts"]
        with np.load(path.with_suffix(".npz")) as file:
            table, shown, labels = (file[name] for name in ("counts", "shown", "labels"))
        assert len(table) == record["provenance"]["num_images"]["test"], path.stem
        tp, true, predicted = table.sum(0, dtype=np.int64)
        with np.errstate(invalid="ignore"):
            iou = tp / (true + predicted - tp)
        expected = {"miou": np.nanmean(iou), "pixel_accuracy": tp.sum() / true.sum()}
        for group, classes in class_groups(class_counts).items():
            expected[group] = np.nanmean(iou[classes])
        found = {name: test[name] for name in expected}
        assert found == pytest.approx(expected, abs=1e-9), path.stem
        height, width = labels.shape[1:]
        assert labels.shape[0] == len(shown) and labels.max() < len(class_counts), path.stem
        assert f"-{height}x{width}-" in path.stem


@functools.cache
def small_grid(name):
    return load_grid(SMALL / f"{name}.yaml")


def planned_runs(grid, dataset, model):
    settings = [(p, p.settings) for p in small_grid(grid)]
    return [p for p, s in settings if (s["dataset"], s["model"]) == (dataset, model)]


def recorded_text(grid, metric, method, dataset, model, seeds=None):
    """What a table must show, from the JSON files alone."""
    paths = [
        RECORDS / f"{p.name}.json"
        for p in planned_runs(grid, dataset, model)
        if p.method == method and (seeds is None or p.settings["seed"] in seeds)
    ]
    records = [json.loads(path.read_text()) for path in paths if path.is_file()]
    if not records:
        return "not run"
    scores = [100 * record["result"]["test"][metric] for record in records]
    if len(scores) == 1:
        return f"{scores[0]:.1f}"
    return f"{statistics.mean(scores):.1f}\u00a0±\u00a0{statistics.stdev(scores):.1f}"


def methods_with_records(grid, dataset, model="segnet"):
    """The rows that a table must have; those without a run are left out."""
    runs = planned_runs(grid, dataset, model)
    return {p.method for p in runs if (RECORDS / f"{p.name}.json").is_file()}


LABELS = {"Oxford-IIIT Pet": "oxford_pet", "NYUv2": "nyuv2", "CamVid": "camvid"}
NETWORKS = {
    "SegNet": "segnet",
    "U-Net": "unet",
    "Attention U-Net": "attention_unet",
    "U-Net++": "unetplusplus",
}
SCORES = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mIoU D": "miou"}
SCORES |= {"mIoU I": "miou_i", "mIoU C": "miou_c"} | {g: g for g in ("head", "mid", "tail")}
TITLES = {"mIoU": "miou", "released measure": "released_miou", "pixel accuracy": "pixel_accuracy"}


def test_stored_numbers_of_the_baselines_are_those_of_the_records():
    tables = stored_tables("baselines")
    checked = 0
    for metric in ("miou", "pixel_accuracy", "dice_error"):
        for method, row in tables[f"baselines-table1-{metric}"].items():
            for column, text in row.items():
                label, _, whose = column.rpartition(", ")
                if whose == "ours" and text:
                    expected = recorded_text("segnet", metric, method, LABELS[label], "segnet")
                    assert text == expected, (metric, method, column)
                    checked += 1
    assert checked >= 3 * 2 * 2  # CE and PAT on two data sets at least
    number = 0
    for method, row in stored_tables("paper_and_code")["paper-and-code-released"].items():
        label, _, method = method.rpartition(", ")
        for column, text in row.items():
            title = TITLES[column.removesuffix(" (%)")]
            expected = recorded_text("table1", title, method, LABELS[label], "segnet")
            assert text == expected, (method, column)
            number += 1
    methods = {p.method for p in small_grid("table1")}
    assert number == len(methods) * len(LABELS) * 2
    checked = {"segnet": 0, "unet": 0}
    for name in ("methods", "dic"):
        for key, row in tables[f"baselines-{name}"].items():
            where, method = key.split(", ", 1)
            label, network = where.split(" with ")
            grid = {"SegNet": "segnet", "pretrained U-Net": "unet"}[network]
            for column, text in row.items():
                metric = SCORES[column.removesuffix(" (%)")]
                if metric in ("miou_i", "miou_c"):
                    continue  # computed from the counts, see test_metrics.py
                assert text == recorded_text(grid, metric, method, LABELS[label], grid), key
                checked[grid] += 1
    assert checked["segnet"] >= 2 * 2 * (5 + 1) and checked["unet"] >= 7 * (5 + 1)
    for key, row in tables["baselines-tail-classes"].items():
        where, name = key.rpartition(" (")[0].split(", ")
        label, network = where.split(" with ")
        grid = {"SegNet": "segnet", "pretrained U-Net": "unet"}[network]
        row = {method: text for method, text in row.items() if text}  # others have other runs
        assert set(row) == methods_with_records(grid, LABELS[label], grid)
        for method, text in row.items():
            scores = []
            for p in planned_runs(grid, LABELS[label], grid):
                path = RECORDS / f"{p.name}.json"
                if p.method == method and path.is_file():
                    result = json.loads(path.read_text())["result"]
                    scores.append(100 * result["test"]["iou"][result["class_names"].index(name)])
            assert text == f"{statistics.mean(scores):.1f}", (key, method)


def test_the_short_runs_have_every_loss_on_every_data_set():
    rows = stored_tables("baselines")["baselines-short"]
    methods = {p.method for p in small_grid("table1")} - {"CE", "LDAM"}
    expected = {f"{label} with SegNet, {method}" for label in LABELS for method in methods}
    assert set(rows) == expected
    for key, row in rows.items():  # means over the seeds
        where, method = key.split(", ")
        means = []
        for m in (method, "CE"):
            text = recorded_text("table1", "miou", m, LABELS[where.split(" with ")[0]], "segnet")
            means.append(float(text.split("\u00a0")[0]))
        found = row["mIoU minus that of CE"].split(": ")[1].split(" ")[0].replace("−", "-")
        assert float(found) == pytest.approx(means[0] - means[1], abs=0.11), key


def test_stored_numbers_of_the_architectures_are_those_of_the_records():
    tables = stored_tables("architectures")
    checked = 0

    def grid_of(label):
        return "table1" if label == "SegNet" else "table2"

    ran = {
        (label, method)
        for label, model in NETWORKS.items()
        for method in methods_with_records(grid_of(label), "camvid", model)
        if method in {p.method for p in small_grid("table2")}
    }
    for metric in ("miou", "pixel_accuracy"):
        for label, model in NETWORKS.items():
            for method, row in tables[f"architectures-table2-{metric}-{model}"].items():
                text = row.get("CamVid, ours", "")
                assert (text not in ("", "not run")) == ((label, method) in ran)
                if text:
                    assert text == recorded_text(grid_of(label), metric, method, "camvid", model)
                    checked += 1
    groups = tables["architectures-groups"]
    assert {tuple(key.split(", ")) for key in groups} == ran
    for key, row in groups.items():
        label, method = key.split(", ")
        for column, text in row.items():
            group = column.removesuffix(" (%)")
            model = NETWORKS[label]
            assert text == recorded_text(grid_of(label), group, method, "camvid", model)
            checked += 1
    assert checked >= 5 * len(ran) > 0


def test_stored_answer_on_the_architectures_is_that_of_the_records():
    """Each network's PAT minus cross-entropy, those with as many seeds and epochs together."""
    answer = {}
    for part in stored_glue("architectures")["architectures-words"].removesuffix(".").split("; "):
        names, scale, miou, tail = re.fullmatch(
            r"with ([^(]+) \(([^)]+)\) (.+) in mIoU and (.+) in the tail", part
        ).groups()
        listed = [re.split(", | and ", text) for text in (names, miou, tail)]
        answer |= {name: (scale, *changes) for name, *changes in zip(*listed, strict=True)}
    for label, model in NETWORKS.items():
        grid = "table1" if model == "segnet" else "table2"
        planned, found = planned_runs(grid, "camvid", model), {}
        for p in planned:
            if (path := RECORDS / f"{p.name}.json").is_file():
                test = json.loads(path.read_text())["result"]["test"]
                found.setdefault(p.method, []).append([test["miou"], test["tail"]])
        number = len(found["PAT"])
        assert len(found["CE"]) == number
        changes = 100 * (np.mean(found["PAT"], axis=0) - np.mean(found["CE"], axis=0))
        scale, *said = answer.pop(label)
        assert scale.removesuffix(", not judged") == (
            f"{'one seed' if number == 1 else f'{number} seeds'} of {planned[0].settings['epochs']}"
            " epochs"
        )
        assert (number == 1) == scale.endswith("not judged")
        for change, text in zip(changes, said, strict=True):
            assert round(change, 1) == float(text.split(" (")[0].replace("−", "-"))
            assert (number == 1) == ("(" not in text)
    assert not answer


def test_stored_numbers_of_the_temperatures_are_those_of_the_records():
    tables = stored_tables("temperature")
    checked = 0
    for metric in ("miou", "pixel_accuracy"):
        for key, row in tables[f"temperature-table3-{metric}"].items():
            if key.endswith("ours"):
                name = LABELS[key.split(", ")[1]]
                for method, text in row.items():
                    assert text == recorded_text("table3", metric, method, name, "segnet"), key
                    checked += 1
    assert checked == 2 * 4 * 2
    parts = methods_with_records("components", "camvid")
    assert {"CE", "PAT"} | parts == set(tables["temperature-components"])
    assert methods_with_records("longer", "camvid") == set(tables.get("temperature-longer", {}))
    for name, grids in {"components": ("components", "table1"), "longer": ("longer",)}.items():
        seeds = {p.settings["seed"] for p in small_grid(grids[0])}  # CE has more in Table 1
        known = {p.method for p in small_grid(grids[0])}
        for method, row in tables.get(f"temperature-{name}", {}).items():
            grid = grids[0] if method in known else grids[1]
            assert len(row) == 5
            for column, text in row.items():
                title = column.removesuffix(" (%)")
                metric = TITLES.get(title, title)
                expected = recorded_text(grid, metric, method, "camvid", "segnet", seeds)
                assert text == expected, method


@pytest.mark.parametrize("name", ["baselines", "architectures", "temperature"])
def test_stored_numbers_of_the_paper_are_those_of_its_file(name):
    """Also: nothing is stored that was made with real images."""
    numbers = 0
    for table, rows in stored_tables(name).items():
        if not re.search(r"-table\d", table):
            continue
        for first, row in rows.items():
            for second, text in row.items():
                # In Table 3 the rows are the networks and data sets, elsewhere the columns.
                method, where = (second, first) if "table3" in table else (first, second)
                if where.endswith("paper") and text:
                    *network, label, _ = where.split(", ")
                    assert float(text) == paper_number(table, method, label, network), where
                    numbers += 1
    assert numbers >= 40
    parameters = next(cell for cell in cells(name) if tagged(cell, "parameters"))
    assert "data: str = None" in source(parameters)


def paper_number(table, method, label, network):
    metric = re.search(r"table\d-(miou|pixel_accuracy|dice_error)", table)[1]
    dataset = {**LABELS, "Cityscapes": "cityscapes"}[label]
    loss = method.lower().replace("cbfocal", "cb_focal")
    if "table3" in table:
        node = PAPER["table3"][NETWORKS[network[0]]][int(method.removeprefix("T = "))]
    elif not network or network[0] == "SegNet":
        node = PAPER["table1"][loss]
    else:
        node = PAPER["table2"][NETWORKS[network[0]]][loss]
    return node[dataset][metric]


def test_equal_cells_of_two_networks():
    scores = {"camvid": {"miou": 1.0, "pixel_accuracy": 2.0}}
    other = {"camvid": {"miou": 1.0, "pixel_accuracy": 3.0}}
    tables = {"a": {"x": scores, "y": other}, "b": {"x": other, "z": scores}, "c": {"x": other}}
    equal, pairs = equal_cells(tables)
    # a and b, a and c, b and c, which have row x in common; the latter are the same.
    both = [("x", "camvid", "miou", 1.0), ("x", "camvid", "pixel_accuracy", 3.0)]
    assert equal == [both[0], both[0], *both] and pairs == 6
    # 7 losses (BMS is in Table 1 alone), 3 data sets, 2 scores, 6 pairs of 4 networks
    found, pairs = equal_cells({"segnet": PAPER["table1"], **PAPER["table2"]})
    assert found == [("pat", "cityscapes", "pixel_accuracy", 85.80)] and pairs == 7 * 3 * 2 * 6
    found, pairs = equal_cells(PAPER["table3"])
    assert len(found) == 4 and pairs == 4 * 3 * 2


# -- figures ----------------------------------------------------------------------------------


@pytest.fixture
def toy(tmp_path):
    methods = {"CE": {"loss": "ce"}, "PAT": {"loss": "pat"}, "CB": {"loss": "cb"}}
    grid = grid_file(tmp_path, methods, seeds=[0, 1])
    for planned in load_grid(grid):
        if planned.method != "CB":
            fake_record(planned, tmp_path, 0.1 * (planned.method == "PAT"))
    return load_runs(grid, tmp_path)


def drawn(axis):
    """(x, row) of the marks of a strip plot, rounded."""
    points = np.concatenate([c.get_offsets() for c in axis.collections if len(c.get_offsets())])
    return {(round(float(x), 4), round(float(y))) for x, y in points}


def test_scores_show_every_seed_and_leave_out_what_was_not_run(toy):
    (axis,) = plot_scores({"toy": toy, "none": by_method(toy)["CB"]}).axes
    assert axis.get_title() == "toy"
    assert [t.get_text() for t in axis.get_yticklabels()] == ["CE", "PAT", "CB"]
    expected = set()
    for row, method in enumerate(("CE", "PAT")):
        scores = [100 * run.score("miou") for run in by_method(toy)[method]]
        expected |= {(round(x, 4), row) for x in (*scores, np.mean(scores))}
    assert drawn(axis) == expected
    far = [run for run in toy if run.method != "PAT" or run.seed]
    spans = [np.ptp(axis.get_xlim()) for axis in plot_scores({"a": toy, "b": far}).axes]
    assert spans[0] == pytest.approx(spans[1])  # a point is as wide in each


def test_heat_map_and_curves(toy):
    heat = plot_class_iou(toy).axes[0]
    methods = by_method(toy)
    record = methods["CE"][0].record
    order = [c for group in class_groups(record.result["class_counts"]).values() for c in group]
    names = [record.result["class_names"][c] for c in order]
    assert [t.get_text().split("\n")[0] for t in heat.get_xticklabels()] == names
    assert [t.get_text() for t in heat.get_yticklabels()] == ["CE", "PAT"]
    mean = np.mean([run.score("iou") for run in methods["PAT"]], axis=0)[order]
    shown = np.asarray(heat.collections[0].get_array()).reshape(2, -1)
    np.testing.assert_allclose(shown[1], 100 * mean)

    curves = plot_validation({"toy": toy})
    lines = [line for line in curves.axes[0].lines if len(line.get_xdata())]
    expected = [
        np.mean([run.record.result["curves"]["validation_miou"] for run in methods[m]], axis=0)
        for m in ("CE", "PAT")
    ]
    for line, values in zip(lines, expected, strict=True):
        np.testing.assert_allclose(line.get_ydata(), 100 * values)
    assert [t.get_text() for t in curves.legends[0].get_texts()] == ["CE", "PAT"]


def test_a_legend_of_many_methods_lies_within_its_figure(tmp_path):
    """The methods are those of the chapter on the baselines."""
    planned = [run for name in ("segnet", "unet") for run in load_grid(SMALL / f"{name}.yaml")]
    methods = {run.method: {"loss": "ce"} for run in planned}
    grid = grid_file(tmp_path, methods, seeds=[0])
    for planned in load_grid(grid):
        fake_record(planned, tmp_path)
    figure = plot_validation({"many": load_runs(grid, tmp_path)})
    figure.canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert len(legend.get_texts()) == len(methods) > 8
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width and box.y0 >= 0


def test_differences_are_filled_where_they_are_significant(toy):
    difference = Difference("PAT", "CE", {0: 0.11, 1: 0.09}, 0.08, 0.12)
    flat = Difference("CB", "CE", {0: 0.01, 1: -0.01}, -0.02, 0.02)
    axis = plot_differences({"toy": {"all": [difference, flat]}, "none": {"all": []}}).axes[0]
    marks = [line for line in axis.lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, True]
    assert marks[0].get_xdata()[0] == pytest.approx(100 * difference.mean)


def test_scores_over_a_setting(toy):
    steps = {"CE": 5.0, "PAT": 20.0, "CB": 50.0}
    table = tidy(toy, {"miou": "mIoU", "tail": "tail"}, T=steps, line=dict.fromkeys(steps, "all"))
    assert set(table["T"]) == {5.0, 20.0}  # CB was not run
    figure = plot_scores_over(table, "T", "metric", {"CE": {"mIoU": 29.0, "tail": 1.0}}, log=True)
    assert [axis.get_title() for axis in figure.axes] == ["mIoU", "tail"]
    line = figure.axes[0].lines[0]
    means = [100 * np.mean([r.score("miou") for r in by_method(toy)[m]]) for m in ("CE", "PAT")]
    np.testing.assert_allclose(line.get_xydata(), np.stack([[5, 20], means], 1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["all", "CE"]


def test_there_is_no_figure_of_nothing(toy, capsys):
    nothing = by_method(toy)["CB"]
    made = [plot_class_iou(nothing), plot_validation({"toy": nothing}), plot_runs(nothing)]
    made += [plot_scores({"toy": nothing}), plot_differences({"toy": {"all": []}})]
    one = tidy(toy, {"miou": "mIoU"}, T={"CE": 5.0}, line={"CE": "all"})
    made += [plot_scores_over(table, "T", "metric") for table in (one, one.head(0))]
    assert made == [None] * len(made) and not plt.get_fignums()
    assert figures.as_png(None, ("None of 3 runs is done", "python here")) is None
    assert capsys.readouterr().out == "None of 3 runs is done:\n\npython here\n"


def test_pictures_of_predictions(toy):
    figure = plot_runs(toy, columns=range(3))
    assert len(figure.axes) == 2 * 3
    counts = by_method(toy)["PAT"][0].images()["counts"]
    tp, true, _ = counts[0]
    note = f"{100 * tp.sum() / true.sum():.0f} / {100 * mean_iou(counts[0]):.0f}"
    assert figure.axes[3].get_xlabel() == note

    truth = np.array([[0, 1], [255, 1]])
    labels = np.array([[0, 0], [0, 1]])
    image = np.zeros((2, 2, 3))
    figure = plot_predictions([image], [truth], {"CE": [labels]}, ["a", "b"])
    shade = np.asarray(figure.axes[3].images[0].get_array())
    assert (shade < 0.2).tolist() == [[False, True], [False, False]]  # wrong
    assert (shade == 1).tolist() == [[False, False], [True, False]]  # ignored
    assert figure.axes[3].get_xlabel() == "67 % correct"
    picture = figures.as_png(figure)
    assert picture.data[:4] == b"\x89PNG" and not plt.fignum_exists(figure.number)


def test_tables_of_runs_that_are_missing(tmp_path):
    path = GRIDS / "paper" / "table1-cityscapes.yaml"
    table = figures.grid_table("x", path, tmp_path, {"miou": "mIoU (%)"}).data
    assert "may not be redistributed" in table and "<table" not in table
    assert "python study/run.py study/grids/paper/table1-cityscapes.yaml --data FOLDER" in table
    fake_record(load_grid(path)[0], tmp_path)
    table = figures.grid_table("x", path, tmp_path, {"miou": "mIoU (%)", "tail": "tail (%)"}).data
    # The one method with a run, on the one benchmark where it has it.
    assert "redistributed" not in table and table.count("<td>") == 3 and "1 of 3." in table
    columns = figures.columns_table("t", {"a": {"CE": "1"}, "b": {"PAT": "2"}})
    assert columns.data.count("<td></td>") == 2
    left = figures.columns_table("t", {"a": {"CE": "1", "PAT": "not run"}, "b": {"CE": "not run"}})
    assert "PAT" not in left.data and "<th>b" not in left.data
    assert figures.columns_table("t", {"a": {"CE": "not run"}}) is None
    long = figures.table("t", ["a"], [["x" * 200]])
    assert "x" * 200 in long.data  # pandas cuts long cells unless told not to


def test_settings_are_those_of_the_runs(toy):
    rows = read_tables([figures.settings_table("s", toy).data])["s"]
    row = {name: text for name, columns in rows.items() for text in columns.values()}
    assert row["runs done"] == "4 of 6" and row["seeds done"] == "0, 1"
    assert row["size (H x W)"] == "32 x 40" and row["median wall time"] == "1 min, cpu"
    assert row["images (train / validation / test)"] == "9 / 3 / 20"


def test_settings_stand_beside_those_of_the_paper(toy, tmp_path):
    """The paper's as printed in Section 5 and 5.1 (sizes as height x width)."""
    said = figures.settings_beside_paper(toy)
    paper, ours = said.split(" Here: ")
    assert paper == (
        "The paper: 100 epochs; Oxford-IIIT Pet at 256 x 256, Cityscapes at 256 x 512 and NYUv2 at"
        " 256 x 340 pixels; a split of 80 / 10 / 10 % of all images; by its numbers of"
        " classes void is a class."
    )
    assert ours == (
        "embedded at 32 x 40 pixels, 2 epochs; the published split; void is ignored."
        " Any of these may explain a difference."
    )
    methods = {"CE": {"loss": "ce"}}
    grids = [
        dict(dataset="nyuv2", epochs=9, model="segnet", model_params={"width": 8, "stages": 3}),
        dict(dataset="nyuv2", epochs=5, split_scheme="paper", void="class"),
        dict(dataset="nyuv2", epochs=5, model="unet"),
    ]
    runs = []
    for number, settings in enumerate(grids):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = grid_file(folder, methods, seeds=[0, 1], **settings)
        fake_record(load_grid(path)[0], folder)  # of one seed
        runs += load_runs(path, folder)
    assert (
        figures.settings_beside_paper(runs)
        .split(" Here: ")[1]
        .startswith(
            "NYUv2 at 32 x 40 pixels, 5 (Attention U-Net and U-Net) and 9 (SegNet) epochs;"
            " the published split and a split of 80 / 10 / 10 % of all images;"
            " void is ignored and void is a class."
        )
    )
    assert figures.settings_beside_paper([]) == f"{paper} Here nothing has been run yet."


# -- the chapters -----------------------------------------------------------------------------

PLANNED = {
    "baselines": ["segnet", "unet"],
    "architectures": ["table1", "table2"],
    "temperature": ["table1", "table3", "components", "longer"],
}


def chapter(name, records, **parameters):
    """The chapter on other records, without its miniature, which nbval executes."""
    live = [cell["id"] for cell in cells(name) if "miniature(" in source(cell)]
    return Chapter(name, skip=live, records=str(records), resamples=50, **parameters)


@pytest.mark.parametrize("name", PLANNED)
def test_chapter_with_other_parameters(name, tmp_path):
    records = tmp_path / "records"
    records.mkdir()
    bonus = {"PAT": 0.1, "T = 20": 0.1, "BLV": -0.1}  # of the only seed that was run
    seeds = [0, 2] if name == "baselines" else [1, 0]
    for grid in PLANNED[name]:
        for planned in small_grid(grid):
            if planned.settings["seed"] == seeds[0] and planned.method != "BMS":
                fake_record(planned, records, bonus.get(planned.method, 0.0))
    page = chapter(name, records, seeds=sorted(seeds))
    tables = page.tables
    check_texts(page)
    if name == "baselines":
        assert "CamVid with SegNet 1 of 2;" in page.text
        assert tables["baselines-table1-miou"]["BMS"]["CamVid, ours"] == "not run"
        row = tables["baselines-glance"]["CamVid with SegNet, mIoU"]
        assert row["PAT minus CE"].startswith("not judged: +")
        blv = tables["baselines-contrasts"]["CamVid with SegNet, BLV"]
        assert blv["mIoU minus that of CE"].startswith("not judged: −")
        assert "not judged, with one seed" in page.glued["baselines-answer-miou"]
        assert "baselines-best" not in tables
        again = {key: value for key, value in page.glued.items() if isinstance(value, str)}
        page.run(only=["baselines-08"])  # in the same kernel
        assert {**again, **page.glued} == page.glued
    elif name == "architectures":
        text = tables["architectures-gains"]["SegNet"]["CamVid, ours: all classes"]
        assert text.startswith("not judged: +")
        words = page.glued["architectures-words"]
        assert words.startswith("with SegNet (one seed of 30 epochs, not judged) +")
        assert tables["architectures-gains"]["U-Net"]["ours: tail"] == "not run"  # seed 0 alone
    else:
        ours = tables["temperature-table3-miou"]["SegNet, CamVid, ours"]
        assert float(ours["T = 20"]) > float(ours["T = 5"])
        row = tables["temperature-range"]["CamVid"]
        assert float(row["range, ours"]) > 0 and row["scatter, ours"] == "–"
        assert set(tables["temperature-sentences"]) >= {"CamVid, T = 5", "NYUv2, T = 50"}
        assert "two programs for one loss" in page.text


@pytest.mark.parametrize("name", PLANNED)
def test_chapter_with_next_to_no_records(name, tmp_path):
    """One loss of one table: no statement about others, no figure without data, the commands."""
    records = tmp_path / "records"
    records.mkdir()
    for planned in small_grid("table1"):
        if (planned.method, planned.settings["seed"]) == ("PAT", 0):
            fake_record(planned, records)
    page = chapter(name, records)
    check_texts(page)
    for grid in PLANNED[name][1:] or ["table1"]:
        assert f"python study/run.py study/grids/small/{grid}.yaml" in page.text
    assert "two programs" not in page.text
    assert not set(page.tables) & {
        "baselines-contrasts",
        "baselines-tuned",
        "temperature-sentences",
        "temperature-parts",
        "temperature-longer",
    }


def check_texts(page):
    """A cell of a table may be "not run"; a sentence that has this in it says nothing."""
    texts = [text for text in page.glued.values() if isinstance(text, str)]
    for rows in page.tables.values():
        texts += [cell for row in rows.values() for cell in row.values() if cell != "not run"]
    assert texts and not [t for t in texts if "not run" in t or re.search(r"\bnan\b", t)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"resample": 5}, "has no parameter 'resample' .did you mean 'resamples'"),
        ({"records": "/no/such/folder"}, "records must be an existing folder, got '/no/such/f"),
    ],
)
def test_chapter_stops_at_wrong_parameters(parameters, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Chapter("temperature", only=[], **parameters)
