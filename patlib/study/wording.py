"""Scores and numbers of seeds in words, as several chapters print them."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import pandas as pd

from patlib.study.runs import Run


def signed(score: float) -> str:
    """A difference in percentage points: ``+1.2``, ``−0.3`` (with a minus sign)."""
    text = f"{100 * score:+.1f}"
    return ("0.0" if text in ("+0.0", "-0.0") else text).replace("-", "−")


def signed_end(score: float) -> str:
    """An end of an interval: as :func:`signed`, with two decimals if one rounds to 0.0."""
    text = f"{100 * score:+.2f}".replace("-", "−")
    return text if signed(score) == "0.0" and text[1:] != "0.00" else signed(score)


def listing(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


def mean_and_std(table: pd.DataFrame) -> dict[str, str]:
    """Method -> ``37.1 ± 0.4``, ``37.1`` or ``not run``, in percent.

    The spaces do not break. How many seeds they are made of: :func:`seeds_note`.

    Args:
        table: of :func:`patlib.study.runs.summarize`.
    """

    def text(row):
        if not row.n:
            return "not run"
        deviation = "" if math.isnan(row.std) else f"\u00a0±\u00a0{100 * row.std:.1f}"
        return f"{100 * row.mean:.1f}{deviation}"

    return {row.Index: text(row) for row in table.itertuples()}


def seeds_note(tables: Mapping[str, pd.DataFrame]) -> str:
    """Below a table: ``Seeds done, of those planned: CamVid 1 of 5 (PAT 2 of 5); NYUv2 3 of 3.``

    Args:
        tables: title -> table of :func:`patlib.study.runs.summarize`. Methods without a run do not
            count.
    """
    parts = []
    for title, table in tables.items():
        methods = defaultdict(list)
        for row in table[table.n > 0].itertuples():
            methods[f"{row.n} of {row.planned}"].append(row.Index)
        # The most frequent number stands for all; the exceptions are named.
        (number, _), *others = sorted(methods.items(), key=lambda item: -len(item[1])) or [
            ("none", [])
        ]
        named = ", ".join(f"{listing(names)} {number}" for number, names in others)
        parts.append(f"{title} {number}{f' ({named})' if named else ''}")
    return f"Seeds done, of those planned: {'; '.join(parts)}."


def seed_count(runs: Iterable[Run], marks: str = "") -> str:
    """How many seeds the methods have, of those with any: ``one seed``, ``1 to 3 seeds``.

    Args:
        runs: of any benchmarks.
        marks: for a caption: how single seeds are drawn; added if a method has several.
    """
    # Two grids may have the same method on the same data, with runs of another length.
    numbers = set(
        Counter(
            (run.benchmark, run.method, run.planned.settings.get("epochs"))
            for run in runs
            if run.record
        ).values()
    )
    if numbers <= {1}:
        return "one seed" if numbers else "no seed yet"
    low, high = min(numbers), max(numbers)
    return f"{f'{low} to ' if low < high else ''}{high} seeds{marks and f' ({marks})'}"
