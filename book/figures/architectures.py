"""What PAT changes beside cross-entropy with each network."""

from collections.abc import Mapping, Sequence

from figures.judging import NAMES, Judged, verdict
from patlib.study.runs import Run, by_method
from patlib.study.wording import listing, signed


def gains_words(at: Mapping[str, Sequence[Run]], judged: Mapping[str, Judged]) -> str:
    """PAT minus cross-entropy in mIoU and in the tail, in points, network by network: a sentence.

    Networks with as many seeds and epochs stand together.

    Args:
        at: label of a network -> its runs.
        judged: the same, judged; a network without a run may be missing.
    """
    networks: dict[str, dict[str, list[str]]] = {}  # seeds and epochs -> network -> its changes
    for label, runs in at.items():
        if label not in judged or "PAT" not in judged[label].against("miou"):
            continue
        found = {metric: judged[label].against(metric)["PAT"] for metric in NAMES}
        done = by_method(run for run in runs if run.record)
        seeds = min(len(done[method]) for method in ("CE", "PAT"))
        epochs = done["PAT"][0].planned.settings["epochs"]
        scale = f"{f'{seeds} seeds' if seeds > 1 else 'one seed'} of {epochs} epochs"
        words = [verdict(contrast, metric) for metric, contrast in found.items()]
        changes = [signed(contrast.mean) for contrast in found.values()]
        if "not judged" in words:
            scale += ", not judged"
        else:
            changes = [f"{c} ({word})" for c, word in zip(changes, words, strict=True)]
        networks.setdefault(scale, {})[label] = changes
    parts = []
    for scale, changes in networks.items():
        miou, tail = map(listing, zip(*changes.values(), strict=True))
        parts.append(f"with {listing(changes)} ({scale}) {miou} in mIoU and {tail} in the tail")
    return f"{'; '.join(parts)}." if parts else "PAT and cross-entropy are still to run."
