"""What holds: every verdict follows from records by the rule of its claim."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from chapters import ROOT, Chapter
from fake_runs import fake_record, grid_file
from figures import judging, load_paper
from figures import what_holds as chapter
from figures.judging import Judged

from patlib.study.grids import load_grid
from patlib.study.runs import load_runs

CLAIMS = chapter.load_claims(ROOT / "study" / "claims.yaml")
LOSSES = json.loads((ROOT / "benchmarks" / "records" / "losses-cpu.json").read_text())
GRADIENTS = json.loads((ROOT / "study" / "records" / "gradients.json").read_text())["datasets"]
METHODS = {name: {"loss": name.lower()} for name in ("CE", "Focal", "BMS", "BLV", "PAT")}


@pytest.fixture
def study(tmp_path):
    """A function: evidence from runs in which methods are better than CE by a bonus."""

    def make(bonus, seeds=(0, 1, 2), titles=("here",), **other):
        panels = {}
        for title in titles:
            folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            grid = grid_file(folder, METHODS, seeds=seeds, **other)
            of_title = bonus[title] if title in bonus else bonus
            for planned in load_grid(grid):
                fake_record(planned, folder, of_title.get(planned.method, 0.0), images=40)
            panels[title] = load_runs(grid, folder)
        judged = {t: Judged(runs, resamples=100) for t, runs in panels.items()}
        return chapter.Evidence(panels, judged, LOSSES, load_paper(), gradients=GRADIENTS)

    return make


def words(evidence):
    return {claim["id"]: chapter.judge(claim["id"], evidence).word for claim in CLAIMS}


def test_every_claim_has_a_rule_and_says_what_it_needs():
    assert {claim["id"] for claim in CLAIMS} == set(chapter.RULES) and len(CLAIMS) >= 12
    for claim in CLAIMS:
        assert set(claim) - {"note"} == {"id", "where", "says", "counts", "change", "see"}
        assert (ROOT / "notebooks" / f"{claim['see']}.ipynb").is_file()


def test_flipped_records_flip_the_verdicts(study):
    better, worse = study({"PAT": 0.1}), study({"PAT": -0.1, "BMS": -0.35})
    about_scores = ["best_miou", "best_pixel_accuracy", "rare_classes", "rare_classes_best"]
    about_scores += ["not_forgotten"]
    for claim in about_scores:
        assert words(better)[claim] == chapter.HOLDS, claim
        assert words(worse)[claim] == chapter.FAILS, claim
    assert words(better)["bms_collapses"] == chapter.FAILS
    assert words(worse)["bms_collapses"] == chapter.HOLDS
    assert chapter.answer(CLAIMS, better) != chapter.answer(CLAIMS, worse)
    both = study({"here": {"PAT": 0.1}, "there": {"PAT": -0.1}}, titles=("here", "there"))
    assert {words(both)[claim] for claim in about_scores} == {chapter.IN_PART}
    beaten = study({"PAT": 0.1, "BLV": 0.2})  # PAT is better than CE, but not the best
    assert words(beaten)["best_miou"] == chapter.FAILS
    assert words(beaten)["rare_classes"] == chapter.HOLDS
    tally = {evidence: chapter.judge("best_miou", evidence).tally for evidence in (both, beaten)}
    assert tally == {both: "1 of 2", beaten: "0 of 1"}
    (row,) = chapter.rows([CLAIMS[0]], both, beaten)
    assert row[1:3] == [f"{chapter.IN_PART} (1 of 2)", f"{chapter.FAILS} (0 of 1)"]
    assert ", 3 seeds" in chapter.judge("rare_classes", both).found


def test_benchmarks_with_data_of_the_paper_are_counted_once_more(study):
    here, there = (
        study({"PAT": bonus}, titles=(dataset,), dataset=dataset, image_size=[32, 40])
        for dataset, bonus in (("camvid", 0.1), ("nyuv2", -0.1))
    )
    both = chapter.Evidence(
        here.panels | there.panels, here.judged | there.judged, LOSSES, load_paper()
    )
    found = [chapter.judge("rare_classes", of) for of in (both, here, there)]
    assert [(v.tally, v.of_paper) for v in found] == [
        ("1 of 2", "0 of 1"),
        ("1 of 1", ""),
        ("0 of 1", ""),
    ]
    rows = chapter.rows([c for c in CLAIMS if c["id"] == "rare_classes"], both, here)
    assert rows[0][1] == "holds in part (1 of 2; on the paper's data 0 of 1)"


def test_one_seed_decides_nothing(study):
    found = words(study({"PAT": 0.1}, seeds=[0]))
    assert {found[c] for c in ("best_miou", "rare_classes", "bms_collapses", "stability")} == {
        chapter.OPEN
    }


def test_a_claim_needs_seeds_of_the_methods_that_it_compares(study):
    evidence = study({"PAT": 0.1})

    def without(*methods):
        runs = [
            dataclasses.replace(run, record=None) if run.method in methods and run.seed else run
            for run in evidence.panels["here"]
        ]
        judged = {"here": Judged(runs, resamples=100)}
        return words(chapter.Evidence({"here": runs}, judged, LOSSES, load_paper()))

    found = without("BLV", "BMS")
    assert found["rare_classes"] == found["not_forgotten"] == chapter.HOLDS
    for claim in ("best_miou", "rare_classes_best", "bms_collapses"):
        assert found[claim] == chapter.OPEN, claim
    assert without("CE")["rare_classes"] == chapter.OPEN


def test_the_printed_gain_must_lie_in_the_interval_or_below_it(study):
    nyuv2 = dict(dataset="nyuv2", model="segnet", image_size=[32, 40])
    assert words(study({"PAT": 0.1}, **nyuv2))["size_of_gain"] == chapter.HOLDS
    assert words(study({"PAT": 0.0}, **nyuv2))["size_of_gain"] == chapter.FAILS
    assert words(study({"PAT": 0.1}))["size_of_gain"] == chapter.OPEN  # other data


def test_stability_compares_variances(study):
    evidence = study({}, seeds=range(6))
    runs = evidence.panels["here"]

    def scatter(pat, focal):
        for run in runs:
            half = {"PAT": pat, "Focal": focal}.get(run.method, 0.01)
            run.record.result["test"]["miou"] = 0.3 + half * (-1) ** run.seed
        return words(evidence)["stability"]

    assert scatter(0.001, 0.02) == chapter.HOLDS
    assert scatter(0.02, 0.001) == chapter.FAILS
    assert scatter(0.011, 0.01) == chapter.UNDECIDED


def test_temperature_matters_if_the_range_is_more_than_chance(study, tmp_path, monkeypatch):
    evidence = study({})
    methods = {f"T = {t}": {"loss": "pat", "loss_params": {"temperature": t}} for t in (5.0, 50.0)}
    grid = grid_file(tmp_path, methods, seeds=[0, 1, 2])
    for planned in load_grid(grid):
        fake_record(planned, tmp_path)
    evidence.temperatures = load_runs(grid, tmp_path)

    def spread(by):
        for run in evidence.temperatures:
            high = run.method == "T = 50.0"
            scatter = (0.002, -0.002, 0.0)[run.seed] * (-1 if high else 1)  # of mean 0
            run.record.result["test"]["miou"] = 0.3 + by * high + scatter
        return words(evidence)["temperature_matters"]

    assert spread(0.05) == chapter.HOLDS and spread(0.0) == chapter.FAILS
    with monkeypatch.context() as patch:  # no interval lies within this margin
        patch.setitem(judging.MARGINS, "miou", 0.0)
        assert spread(0.05) == chapter.HOLDS and spread(0.0) == chapter.UNDECIDED
    std = evidence.judged["here"].scores("miou").residual_std
    by_all = 100 * 2 / np.sqrt(np.pi) * std / np.sqrt(3)  # the range of two draws, of three seeds
    said = chapter.judge("temperature_matters", evidence).found
    assert f", or {by_all:.2f} with the scatter of all losses" in said
    complete = evidence.temperatures
    evidence.temperatures = [
        dataclasses.replace(run, record=None if run.method == "T = 5.0" else run.record)
        for run in complete
    ]
    assert words(evidence)["temperature_matters"] == chapter.OPEN
    evidence.temperatures = [run for run in complete if run.seed < 2]
    assert spread(0.05) == chapter.OPEN


def test_memory_and_gradients_follow_their_records(study):
    evidence = study({})
    losses, gradients = copy.deepcopy(LOSSES), copy.deepcopy(GRADIENTS)
    for row in losses["results"]:
        row["peak_bytes"] = {"pat": 10, "F.cross_entropy": 5, "ldam": 20, "blv": 20}.get(
            row["loss"], 1
        )
    for measured in gradients.values():
        for state in measured["methods"]["PAT"]["states"].values():
            state["network"]["exponent"][0] = 0.02
    evidence.losses, evidence.gradients = losses, gradients
    found = words(evidence)
    assert found["memory_of_others"] == found["memory_of_ce"] == chapter.HOLDS
    assert found["homogenised_gradients"] == chapter.HOLDS
    for measured in gradients.values():
        for state in measured["methods"]["PAT"]["states"].values():
            state["network"]["exponent"][0] = -0.9
    assert words(evidence)["homogenised_gradients"] == chapter.FAILS
    evidence.gradients = {}  # those of the short runs are no evidence of the study
    assert words(evidence)["homogenised_gradients"] == chapter.OPEN
    for row in losses["results"]:
        row["peak_bytes"] = {"pat": 5, "pat, one-hot": 20}.get(row["loss"], 5)
    assert words(evidence)["memory_of_ce"] == chapter.FAILS
    assert chapter.judge("memory_of_ce", evidence).tally.endswith("types; at 0 PAT needs less")
    found = chapter.judge("memory_of_ce", evidence).found
    assert found.endswith("as the paper writes it: 4.0 to 4.0 times")
    half = next(row for row in losses["results"] if row["dtype"] == "bfloat16")
    (pat,) = (
        row
        for row in losses["results"]
        if (row["shape"], row["dtype"], row["loss"]) == (half["shape"], "bfloat16", "pat")
    )
    pat["peak_bytes"] = 4
    assert chapter.judge("memory_of_ce", evidence).tally.endswith("types; at 1 PAT needs less")
    pat["peak_bytes"] = 7  # one shape in one type is enough, by the rule
    assert words(evidence)["memory_of_ce"] == chapter.HOLDS


def test_segnet_is_no_other_architecture(study, tmp_path):
    evidence = study({"PAT": 0.1}, model="segnet")
    assert words(evidence)["architectures"] == chapter.OPEN
    assert words(study({"PAT": 0.1}, model="unet"))["architectures"] == chapter.HOLDS


def test_printed_gains_stand_beside_ours(study):
    """On the data and network of the paper's Table 1; other data are named as such."""
    nyuv2 = study({"PAT": 0.1}, dataset="nyuv2", model="segnet", image_size=[32, 40])
    assert ", printed +3.36)" in chapter.judge("best_miou", nyuv2).found
    camvid = study({"PAT": 0.1}, dataset="camvid", model="segnet", image_size=[32, 40])
    assert ", data not in the paper)" in chapter.judge("best_miou", camvid).found


def test_arithmetic_claims(study):
    """β = exp((1 - p) / T) lies between 1 and exp(1 / T)."""
    evidence = study({})
    explosion = chapter.judge("explosion", evidence)
    assert explosion.word == chapter.FAILS and f"{np.e:.2f}" in explosion.found
    confident = chapter.judge("confident_pixels", evidence)
    assert confident.word == chapter.IN_PART and f"{np.exp(1 / 20):.3f}" in confident.found
    paper = load_paper()
    agree = chapter.judge("numbers_of_the_abstract", evidence)
    assert agree.found.startswith("11 of 23 statements agree with the tables (20 in 10 ")
    paper["table1"]["pat"]["nyuv2"]["miou"] += 0.41  # 1.82 becomes 2.23
    evidence.paper = paper
    assert chapter.judge("numbers_of_the_abstract", evidence).found != agree.found


def test_chapter_without_records_and_with_names_that_are_no_html(tmp_path):
    page = Chapter("what_holds", records=str(tmp_path))
    assert page.glued["what-holds-answer"].startswith(
        f"By the runs of the study, arithmetic and benchmarks: of {len(CLAIMS)} claims "
    )
    rows = page.tables["what-holds-ledger"]
    assert len(rows) == len(CLAIMS)
    assert {row["verdict"] for row in rows.values()} >= {chapter.OPEN, chapter.FAILS}
    html = chapter.details(
        [{**CLAIMS[0], "says": "<script>x</script>"}], *[page.space["study"]] * 2
    )
    assert "<script>" not in html.data and "&lt;script&gt;" in html.data
