"""The first page and the README: they say what the records say, and flipped records other words."""

import importlib
import re

import numpy as np
import PIL.Image
import pytest
from chapters import ROOT, cells, source, stored_glue, tagged
from fake_runs import fake_record, grid_file
from figures import first_page as chapter
from figures import records_folder

from patlib.data import DATASETS
from patlib.study.grids import load_grid

METHODS = {"CE": {"loss": "ce"}, "Focal": {"loss": "focal"}, "PAT": {"loss": "pat"}}
PAGES = {ROOT / "README.md": "book/images/answer.png", ROOT / "book/index.md": "images/answer.png"}


@pytest.fixture(scope="module")
def command():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "book")
        patch.delitem(__import__("sys").modules, "first_page", raising=False)
        yield importlib.import_module("first_page")


@pytest.fixture(scope="module")
def now(command):
    """What the stored records say: the texts, and the comparisons."""
    return command.parts(records_folder(None))


@pytest.fixture
def study(tmp_path):
    """A function: the comparisons of records in which methods are better than CE by a bonus."""

    def make(bonus, seeds=(0, 1, 2), single=(), datasets=("synthetic",)):
        records = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        settings = []
        for name in datasets:
            (records / name).mkdir(parents=True)
            of = bonus.get(name, bonus)
            methods = {method: METHODS[method] for method in of} or METHODS
            grid = grid_file(records / name, methods, seeds=seeds, dataset=name)
            for planned in load_grid(grid):
                left_out = planned.method in single and planned.settings["seed"] > 0
                if of and not left_out:
                    fake_record(planned, records, of[planned.method], images=40)
            settings.append((f"net {name}", str(grid)))
        return chapter.compare(records, settings, resamples=100)

    return make


def test_readme_and_first_page_say_what_the_records_say(command, now):
    texts, _ = now
    readme, index = (page.read_text() for page in PAGES)
    run = "run: python book/first_page.py"
    assert readme == command.fill(readme, texts, "book/images/answer.png"), run
    with_terms = {**texts, **{name: command.linked(texts[name]) for name in command.LINKED}}
    assert index == command.fill(index, with_terms, "images/answer.png"), run
    for name in ("answer", "figure", "sure", "choice"):
        assert all(f"<!-- end of {name} -->" in page for page in (readme, index)), name
    plain = re.sub(r"\{term\}`([^`<]*) <[^`]*>`", r"\1", index)
    assert all(texts[name] in readme and texts[name] in plain for name in command.LINKED)
    assert texts["answer"].count("\n") <= 2


def test_the_figure_carries_the_numbers_of_the_records(command, now):
    _, compared = now
    assert command.FIGURE.stat().st_size < 100_000
    image = PIL.Image.open(command.FIGURE)
    assert image.text["numbers"] == chapter.numbers(compared), "run: python book/first_page.py"


def test_no_table_of_the_two_pages_has_more_than_five_columns():
    for page in PAGES:
        rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
        assert rows and max(len(re.findall(r"(?<!\\)\|", row)) for row in rows) <= 6, page


def test_claims_are_counted_as_in_their_chapter(now):
    texts, _ = now
    (given,) = (source(c) for c in cells("what_holds") if tagged(c, "parameters"))
    assert f"grids: list = {chapter.STUDY}".replace("'", '"') in given
    assert f"short: list = {chapter.SHORT}".replace("'", '"') in given
    lines = [line for line in texts["claims"].splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in lines]
    counts = {word: numbers for word, *numbers in rows[2:]}
    glued = stored_glue("what_holds")
    for column, key in enumerate(("what-holds-answer", "what-holds-short")):
        total, holds, in_part, unclear, fails, rest = map(int, re.findall(r"\d+", glued[key]))
        words = ("holds", "holds in part", "not shown", "does not hold")
        assert [int(counts[w][column]) for w in words] == [holds, in_part, unclear, fails]
        assert (
            int(counts["still to run"][column]) + int(counts["cannot be tested here"][column])
            == rest
        )
        assert total == len(chapter.what_holds.load_claims(ROOT / "study/claims.yaml"))


def test_the_claims_that_hold_are_named(monkeypatch):
    claims = [{"id": name, "says": f"“{name}”\n"} for name in "abc"]
    words = {name: chapter.what_holds.Verdict(chapter.what_holds.FAILS, "") for name in "abc"}
    monkeypatch.setattr(chapter.what_holds, "judge", lambda claim, _: words[claim])
    assert chapter.holding_words(None, claims) == "No claim holds."
    words["a"] = chapter.what_holds.Verdict(chapter.what_holds.HOLDS, "")
    words["c"] = chapter.what_holds.Verdict(chapter.what_holds.HOLDS, "", "at 2 of 8")
    said = "What holds by the study: “a”; “c” (at 2 of 8)."
    assert chapter.holding_words(None, claims) == said


def test_flipped_records_change_the_words(study):
    better, worse = study({"CE": 0.0, "PAT": 0.1}), study({"CE": 0.1, "PAT": 0.0})
    answer, price, _ = chapter.sentences(better)
    assert answer.startswith("Yes: ") and "95 % intervals, higher with net synthetic on" in answer
    assert price.startswith("No price is shown: ")
    change = better[0].change("PAT", "tail")
    assert f"(+{100 * change.mean:.1f}: +{100 * change.low:.1f} to " in answer
    answer, price, _ = chapter.sentences(worse)
    assert answer.startswith("It harms them: ") and "95 % intervals, lower with" in answer
    assert price.startswith("Its price: ")
    mixed = study(
        {"synthetic": {"CE": 0.0, "PAT": 0.1}, "camvid": {"CE": 0.1, "PAT": 0.0}},
        datasets=("synthetic", "camvid"),
    )
    assert chapter.sentences(mixed)[0].startswith("On some data: ")
    same = chapter.sentences(study({"CE": 0.0, "PAT": 0.0}, seeds=range(6)))
    assert same[0].startswith("No: ") and same[1].startswith("No price is shown")
    assert "shown to be higher for PAT with net synthetic on" in chapter.sentences(better)[2]
    assert chapter.sentences(worse)[2].startswith("No loss is shown to raise both")
    said = chapter.sentences(mixed)[2]
    assert "), on the other neither; no other loss" in said
    assert said.endswith("; no other loss that was run is shown to be higher in both.")
    assert [row[1] for row in chapter.choices(better)] == ["PAT"] * 4
    assert [row[1] for row in chapter.choices(worse)] == ["CE"] * 3 + [
        "no loss is shown to do that"
    ]
    assert chapter.numbers(better) != chapter.numbers(worse)


def test_a_loss_that_is_higher_in_one_of_the_two_is_told_apart(study):
    number = len(DATASETS["camvid"].class_names)
    tail_alone = np.where(np.arange(number) >= number - number // 3, 0.3, -0.2)
    said = chapter.sentences(
        study(
            {"synthetic": {"CE": 0.0, "PAT": 0.1}, "camvid": {"CE": 0.0, "PAT": tail_alone}},
            datasets=("synthetic", "camvid"),
        )
    )[2]
    assert said.endswith(
        "), on the other only the tail; no other loss that was run is shown to be higher in both."
    )


def test_the_same_on_several_data_sets_is_said_once(study):
    three = study({"CE": 0.1, "PAT": 0.0}, datasets=("synthetic", "camvid", "nyuv2"))
    answer, price, _ = chapter.sentences(three)
    assert "lower on all three of them (−" in price and "on all three" not in answer
    differs = study(
        {"synthetic": {"CE": 0.1, "PAT": 0.0}, "camvid": {"CE": 0.0, "PAT": 0.1}},
        datasets=("synthetic", "camvid"),
    )
    mixed = {name: {"CE": 0.1, "PAT": 0.0} for name in ("synthetic", "camvid", "nyuv2")}
    mixed["cityscapes"] = {"CE": 0.0, "PAT": 0.1}
    price = chapter.sentences(study(mixed, datasets=tuple(mixed)))[1]
    assert "higher with net cityscapes on Cityscapes (+" in price
    assert "lower on three of the four (−" in price
    best = chapter.choices(differs)
    assert len(best) == 8  # by network
    assert {row[1] for row in best} == {"CE", "PAT", "no loss is shown to do that"}


def test_where_miou_must_not_fall_a_loss_with_a_lower_one_is_not_taken(study):
    names = DATASETS["camvid"].class_names
    tail = np.arange(len(names)) >= len(names) - len(names) // 3  # fake records: rarest last
    for_the_tail = np.where(tail, 0.3, -0.3)
    losses = {"CE": 0.0, "PAT": for_the_tail, "Focal": 0.1}
    (compared,) = study(losses, datasets=["camvid"])
    assert compared.decided("tail") == "higher" and compared.decided("miou") == "lower"
    (row,) = chapter._keeping([compared])
    assert row[0] == "Focal" and all(said.startswith("+") for said in row[1].split("; "))
    assert chapter._best([compared], "tail")[0][0] == "PAT"
    (compared,) = study({**losses, "PAT": 0.2}, datasets=["camvid"])
    assert chapter._keeping([compared])[0][0] == "PAT (as well: Focal)"


def test_one_seed_is_not_judged_and_named(study):
    one = study({"CE": 0.0, "PAT": 0.1}, seeds=[0, 1], single=["CE", "PAT"])
    (answer,) = chapter.sentences(one)
    sure = chapter.how_sure(one)
    assert answer.startswith("Not decided yet") and chapter.choices(one) == []
    assert "2 of 4 runs are done, one seed on " in sure and "(tail +" in sure
    assert "Without a line, one seed and not judged: CE and PAT on" in chapter.caption(one)
    some = study({"CE": 0.0, "PAT": 0.1, "Focal": 0.1}, single=["Focal"])
    assert "not judged: Focal on" in chapter.caption(some)
    assert chapter.sentences(some)[0].startswith("Yes")
    assert chapter.choices(some) == []  # Focal may be better, and is not judged
    change = {m: some[0].change(m, "tail") for m in ("PAT", "Focal")}
    assert np.isfinite(change["PAT"].low) and np.isnan(change["Focal"].low)
    by_seed = {r.method: r.score("tail") for r in some[0].runs if r.seed == 0}
    assert change["Focal"].mean == pytest.approx(by_seed["Focal"] - by_seed["CE"])


def test_a_part_of_a_data_set_is_said_to_be_one(study):
    pet, scenes = (
        study({"CE": 0.0, "PAT": 0.1}, datasets=[name]) for name in ("oxford_pet", "synthetic")
    )
    assert "- Of Oxford-IIIT Pet three of 37 breeds were at hand" in chapter.how_sure(pet)
    assert "breeds" not in chapter.how_sure(scenes)


def test_two_losses_with_two_seeds_are_said_to_be_few(study):
    losses = {"CE": 0.0, "PAT": 0.1, "Focal": 0.05}
    few = study(losses, seeds=[0, 1], single=["Focal"])
    said = "two losses with two seeds in common"
    assert said in chapter.how_sure(few) and chapter._degrees(few[0]) == 1
    assert said not in chapter.how_sure(study(losses, seeds=[0, 1]))


def test_marks_of_the_figure_are_hollow_with_one_seed_and_have_lines_with_several(study):
    def marks(compared):
        (axis, *_) = chapter.plot_answer(compared).axes
        points = [line for line in axis.lines if line.get_marker() in (*chapter.MARKERS, "<", ">")]
        return [p.get_markerfacecolor() for p in points], len(axis.collections)

    faces, lines = marks(study({"CE": 0.0, "PAT": 0.1, "Focal": 0.1}, single=["Focal"]))
    assert faces[0] != "white" and faces[1] == "white" and lines == 1
    faces, _ = marks(study({"CE": 0.3, "PAT": 0.0}))  # beyond the edge
    assert len(faces) == 1
    assert chapter.plot_answer(study({"PAT": 0.1})) is None
    some = study(
        {"synthetic": {"CE": 0.0, "PAT": 0.1}, "camvid": {"PAT": 0.1}},
        datasets=("synthetic", "camvid"),
    )
    (legend,) = chapter.plot_answer(some).legends
    names = [entry.get_text() for entry in legend.get_texts()]
    drawn = [DATASETS["synthetic"].label, "net synthetic"]  # nothing of CamVid
    assert names == [*drawn, "interval contains 0"]
    same = study({"CE": 0.0, "PAT": 0.0})
    faces, lines = marks(same)
    assert [*faces] == ["white"] and lines == 1


def test_a_very_wide_interval_leaves_its_panel(study, monkeypatch):
    compared = study({"CE": 0.0, "PAT": 0.05, "Focal": 0.1}, datasets=["synthetic", "camvid"])
    changes = [c.change(method, "tail") for c in compared for method in ("PAT", "Focal")]
    low, high, cut = chapter._limits(compared, "tail")
    assert not cut and "reaches the edge" not in chapter.caption(compared)
    highest = 100 * max(change.high for change in changes)
    assert low < 0 < highest < high < highest + 2
    widest = max(changes, key=lambda change: change.high - change.low)
    others = [c for c in changes if c is not widest]
    median = np.median([c.high - c.low for c in changes])
    second = max(c.high - c.low for c in others)
    monkeypatch.setattr(chapter, "WIDE", second / median)  # the widest alone is wider
    low, high, cut = chapter._limits(compared, "tail")
    rest = 100 * max([c.high for c in others] + [widest.mean])
    assert cut and rest < high < rest + 2
    assert "reaches the edge of its panel" in chapter.caption(compared)


def test_where_the_pooled_scatter_decides_is_said(study, monkeypatch):
    monkeypatch.setitem(chapter.MARGINS, "tail", 1e-6)
    three = {"CE": 0.0, "Focal": 0.0}
    clear = study({**three, "PAT": 0.3}, seeds=range(4))
    assert "alone" not in chapter.how_sure(clear)
    # With two seeds, two losses alone leave one degree of freedom: Student's t is 12.7.
    (compared,) = study({**three, "PAT": 0.008}, seeds=[0, 1])
    alone = compared.judged.alone("tail")
    assert compared.decided("tail") == "higher" and alone.low < 0
    said = chapter.how_sure([compared])
    ends = f"({100 * alone.low:.1f} to +{100 * alone.high:.1f})".replace("-", "−")
    assert "alone, it changes these verdicts: the tail with net synthetic on" in said
    assert f"is not distinguishable {ends}" in said


def test_whether_the_learning_rate_changes_a_verdict_is_said(study):
    compared = study({"CE": 0.0, "PAT": 0.3})
    assert "learning rate" not in chapter.how_sure(compared)
    assert chapter.how_sure(compared, []).endswith("these verdicts on PAT are different: none.")
    said = chapter.how_sure(compared, ["mIoU on X, lower → higher"])
    assert said.endswith("are different: mIoU on X, lower → higher.")


def test_more_losses_than_can_be_named_are_counted():
    assert chapter._also(["a", "b, c"]) == " (may also be the best: a; b, c)"
    assert chapter._also(list("abcde")) == " (may also be the best: five others)"
    assert chapter._also([]) == ""


def test_rows_of_a_table_fit_its_header():
    assert chapter.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    with pytest.raises(ValueError, match="each row must have 2 cells"):
        chapter.markdown(["a", "b"], [["1"]])


def test_nothing_was_run(study):
    assert chapter.sentences(study({}))[0].startswith("Not decided yet")
    assert chapter.choices(study({})) == []
