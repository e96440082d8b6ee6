"""Simultaneous intervals: against Dunnett's test, a mixed model, and simulated coverage."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize, stats

from patlib.study.runs import load_runs
from patlib.study.simultaneous import Contrast, MethodScores, group_weights, score_methods


def drawn(rng, methods=4, seeds=3, std=0.01, of_seeds=0.02, means=0.0):
    """Scores of methods with equal or given means, and the effect of each seed on all of them."""
    y = 0.5 + means * np.ones(methods)[:, None] + rng.normal(0, of_seeds, seeds)
    y = y + rng.normal(0, std, (methods, seeds))
    return {f"m{i}": dict(enumerate(row)) for i, row in enumerate(y)}


def without_images(scores):
    return MethodScores(scores, {m: np.zeros(5) for m in scores}, groups=50)


def test_without_image_error_it_is_dunnetts_test():
    """The quantile is that of the largest |t| of a multivariate t with correlation 1/2."""
    scores = drawn(np.random.default_rng(0), methods=6, seeds=3)
    fitted = without_images(scores)
    y = np.array([list(row.values()) for row in scores.values()])
    residual = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
    assert fitted.residual_dof == 10
    assert fitted.residual_std == pytest.approx(np.sqrt((residual**2).sum() / 10))

    t = stats.multivariate_t(shape=0.5 + 0.5 * np.eye(5), df=10, seed=0)
    covered = lambda q: t.cdf(np.full(5, q), lower_limit=np.full(5, -q)) - 0.95  # noqa: E731
    quantile = optimize.brentq(covered, 2, 5, xtol=1e-3)
    for contrast in fitted.against("m0"):
        i = int(contrast.method[1])
        assert contrast.mean == pytest.approx(y[i].mean() - y[0].mean())
        half = (contrast.high - contrast.low) / 2
        expected = quantile * fitted.residual_std * np.sqrt(2 / 3)
        assert half == pytest.approx(expected, rel=0.02)  # the simulation's own error

    alone = fitted.against("m0", ["m3"])[0]
    single = stats.t.ppf(0.975, 10) * fitted.residual_std * np.sqrt(2 / 3)
    assert (alone.high - alone.low) / 2 == pytest.approx(single, rel=0.02)


def test_image_error_alone_is_a_t_interval_of_the_bootstrap():
    rng = np.random.default_rng(0)
    scores = {"a": {0: 0.5, 1: 0.6}, "b": {0: 0.4, 1: 0.5}}  # no residual: additive
    images = {"a": rng.normal(0.55, 0.02, 4000), "b": rng.normal(0.45, 0.01, 4000)}
    (contrast,) = MethodScores(scores, images, groups=31).against("a")
    std = np.std(images["a"] - images["b"], ddof=1) * np.sqrt(31 / 30)
    half = stats.t.ppf(0.975, 30) * std
    assert contrast.mean == pytest.approx(-0.1)
    assert (contrast.high - contrast.low) / 2 == pytest.approx(half, rel=0.02)
    # What all methods share does not count.
    same = MethodScores(scores, {m: images["a"] for m in scores}, 31).against("a")[0]
    assert same.high - same.low == pytest.approx(0, abs=1e-6)


def test_missing_seeds_are_adjusted_for():
    """A method without the good seed is not called lower for it: least squares, by hand."""
    scores = {"a": {0: 0.1, 1: 0.5}, "b": {0: 0.2, 1: 0.6}, "c": {0: 0.1}}
    fitted = without_images(scores)
    assert fitted.residual_std == pytest.approx(0, abs=1e-12)
    assert [c.mean for c in fitted.against("a")] == pytest.approx([0.1, 0.0])


def test_intervals_hold_together_in_19_of_20_studies():
    """Coverage of the whole family, and of the set of the best, with both sources of error."""
    rng = np.random.default_rng(0)
    means = np.array([0.0, 0.0, 0.01, -0.02, 0.02])
    covered = kept = 0
    studies, groups = 200, 12
    for _ in range(studies):
        scores = drawn(rng, methods=5, seeds=3, means=means[:, None])
        of_groups = rng.normal(0, 0.03, (groups, 5))  # to each method
        for i, by_seed in enumerate(scores.values()):
            for seed in by_seed:
                by_seed[seed] += of_groups[:, i].mean()
        parts = rng.multinomial(groups, np.full(groups, 1 / groups), size=300) @ of_groups / groups
        fitted = MethodScores(scores, dict(zip(scores, parts.T, strict=True)), groups)
        truth = means[1:] - means[0]
        contrasts = fitted.against("m0")
        covered += all(c.low <= t <= c.high for c, t in zip(contrasts, truth, strict=True))
        kept += "m4" in fitted.may_be_best()
    assert covered / studies > 0.90 and kept / studies > 0.92  # 95 % less three standard errors


def test_the_best_methods():
    rng = np.random.default_rng(0)
    scores = drawn(rng, methods=4, seeds=5, means=np.array([[0], [0.2], [0.201], [0.1]]))
    assert without_images(scores).may_be_best() == ["m1", "m2"]


def test_verdicts():
    contrast = Contrast("a", "b", 0.02, 0.01, 0.03, 2, 2)
    assert contrast.verdict() == "higher" and contrast.verdict(margin=0.04) == "equal"
    lower = dataclasses.replace(contrast, low=-0.03, high=-0.01)
    assert lower.verdict() == "lower" and lower.verdict(0.03) == "lower"
    assert dataclasses.replace(contrast, low=-0.01).verdict() == "not distinguishable"
    with pytest.raises(ValueError, match="margin must be .* >= 0, got -1"):
        contrast.verdict(-1)


def test_wins_are_counted_within_the_seeds_of_both():
    scores = {"a": {0: 0.1, 1: 0.2}, "b": {0: 0.2, 1: 0.2, 2: 0.1}}
    (b,) = without_images(scores).against("a")
    assert (b.wins, b.seeds) == (1.5, 2)


def test_groups_are_drawn_whole_or_in_blocks():
    sizes = [3, 1, 2] * 10
    weights, number = group_weights(sizes, 50)
    assert number == 30 and weights.shape == (50, 60)
    ends = np.cumsum(sizes)
    for end, size in zip(ends, sizes, strict=True):
        assert (weights[:, end - size : end] == weights[:, [end - 1]]).all()
    assert (weights[:, ends - 1].sum(1) == 30).all()

    weights, number = group_weights([62, 171], 50)  # drives: too few to draw
    assert number == 4 + 9
    assert (weights[:, :62].sum(1) == 62).all() and (weights[:, 62:].sum(1) == 171).all()


def test_refusals():
    scores = {"a": {0: 0.1}, "b": {0: 0.2}}
    fitted = without_images(scores)
    for call in (lambda: fitted.against("a"), fitted.may_be_best):
        with pytest.raises(ValueError, match="two seeds or more"):
            call()
    with pytest.raises(ValueError, match="reference must be one of 'a', 'b', got 'c'"):
        fitted.against("c")
    with pytest.raises(ValueError, match="methods must be one of 'b', got 'a'"):
        fitted.against("a", ["a"])
    with pytest.raises(ValueError, match="two methods or more"):
        MethodScores({"a": {0: 0.1}}, {"a": np.zeros(3)}, 5)
    with pytest.raises(ValueError, match="image_scores must be of the methods"):
        MethodScores(scores, {"a": np.zeros(3)}, 5)
    with pytest.raises(ValueError, match="seeds that connect"):
        without_images({"a": {0: 0.1, 1: 0.2}, "b": {2: 0.2, 3: 0.1}})


def test_recorded_runs():
    """Of the records: the same means as the table of scores, and CE's own counts give its score."""
    from test_statistics import GRIDS, RECORDS

    runs = [r for r in load_runs(GRIDS / "small/table1.yaml", RECORDS) if r.method != "LDAM"]
    runs = [r for r in runs if r.benchmark.dataset == "nyuv2"]
    assert sum(runs[0].test_groups) == 654
    for metric in ("miou", "tail", "pixel_accuracy"):
        fitted = score_methods(runs, metric, resamples=100)
        for run in runs:
            assert fitted.scores[run.method][run.seed] == pytest.approx(run.score(metric), abs=1e-9)
        for contrast in fitted.against("CE"):
            assert contrast.low < contrast.mean < contrast.high
    with pytest.raises(ValueError, match="several data sets"):
        score_methods(load_runs(GRIDS / "small/table1.yaml", RECORDS))
