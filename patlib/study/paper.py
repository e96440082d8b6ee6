"""The paper's own numbers (``study/paper.yaml``), and whether its statements agree with them.

A number has an address, such as ``table1.pat.nyuv2.miou``; ``paper`` is the content of the file.
"""

from collections.abc import Iterable, Mapping

from patlib.data import DATASETS
from patlib.losses import LOSSES
from patlib.models import MODELS

METRICS = {"miou": "mIoU", "pixel_accuracy": "pixel accuracy", "dice_error": "Dice error"}


def paper_number(paper: Mapping, address: str) -> float:
    """A number of the paper by its address."""
    return _descend(paper, address.split("."))


def describe_address(address: str) -> str:
    """An address in words: ``mIoU of PAT on NYUv2``."""
    _, *which, dataset, metric = address.split(".")
    names = {name: kind.label for name, kind in (LOSSES | MODELS).items()}
    which = [names.get(key, f"T = {key}") for key in which]
    return f"{METRICS[metric]} of {', '.join(reversed(which))} on {DATASETS[dataset].label}"


def check_statement(paper: Mapping, statement: Mapping) -> tuple[list[float], bool]:
    """What the paper's tables give for what it says about them (an entry of ``statements``).

    Returns:
        The differences between the numbers that the statement is about (the smallest and the
        largest, where it gives a range), and whether they round to the printed numbers.
    """
    printed = statement["printed"]
    differences = [paper_number(paper, a) - paper_number(paper, b) for a, b in statement["tables"]]
    ends = [min(differences), max(differences)][: len(printed)]
    agrees = all(
        # A little more than half of the last digit: for what floating point does to a difference.
        abs(end - float(text)) <= 0.5001 * 10.0 ** -len(text.partition(".")[2])
        for end, text in zip(ends, printed, strict=True)
    )
    return ends, agrees


def check_bold(paper: Mapping) -> list[tuple[str, str]]:
    """Numbers that the paper marks as best though another in their column is better.

    Returns:
        (address of the marked number, address of the best one).
    """
    wrong = []
    for address in paper["bold"]:
        *before, _, dataset, metric = address.split(".")
        rows = [".".join([*before, loss, dataset, metric]) for loss in _descend(paper, before)]
        choose = min if metric == "dice_error" else max
        best = choose(rows, key=lambda row: paper_number(paper, row))
        if paper_number(paper, best) != paper_number(paper, address):
            wrong.append((address, best))
    return wrong


def _descend(node, keys: Iterable[str]):
    for key in keys:
        node = node[int(key) if key.isdigit() else key]
    return node
