"""What the benchmarks share: where they ran, the spread of repetitions, the record."""

import argparse
import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports each start and stop

import torch
import torch.nn.functional as F

from patlib.files import write_text
from patlib.losses import LOSSES, SegmentationLoss, build_loss
from patlib.records import provenance

RECORDS = Path(__file__).parent / "records"

# The losses that the paper compares.
PAPER = ("ce", "focal", "cb", "cb_focal", "bms", "ldam", "blv", "pat")
# Of one loss with other work to do: name of the row -> loss, parameters.
VARIANTS = {
    "ce, class weights": ("ce", {"class_weights": "inverse"}),
    "pat, data set sizes": ("pat", {"sizes": "dataset", "presence_exponent": 1.0}),
    "pat, normalised": ("pat", {"normalize": "weights"}),
}

# F.cross_entropy, and the two formulas on one-hot tensors below.
BASELINE, TEXTBOOK_CE, TEXTBOOK_PAT = "F.cross_entropy", "ce, one-hot", "pat, one-hot"


def add_device(parser):
    """The option ``--device``: of those that this machine has."""
    gpu = torch.cuda.is_available()
    choices = ("cpu", "cuda") if gpu else ("cpu",)
    parser.add_argument("--device", choices=choices, default=choices[-1])


def positive(text):
    """An option that is an integer >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text!r}")
    return int(text)


def textbook_ce(logits, target):
    """Cross-entropy as the paper writes it, Eq. (1), over the valid pixels."""
    x, one_hot = in_full(logits), one_hot_labels(target, logits.shape[1])
    ce = -one_hot * x.log_softmax(1)
    return ce.sum() / one_hot.sum().clamp_min(1)


def textbook_pat(logits, target, temperature=20.0):
    """PAT as the paper writes it, Eq. (4) and (5), with epsilon = 0."""
    x, one_hot = in_full(logits), one_hot_labels(target, logits.shape[1])
    p = x.softmax(1)
    ce = -one_hot * x.log_softmax(1)
    beta = 1 / torch.exp((p - 1) / temperature)  # of all classes
    size = one_hot.sum((2, 3), keepdim=True).clamp_min(1)
    return (beta * ce / size).sum() / len(logits)


def in_full(logits):
    """float64 stays; half and bfloat16 become float32."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def one_hot_labels(target, num_classes):
    """(B, H, W) to (B, L, H, W), int64; no class at the pixels that are 255."""
    valid = target != 255
    one_hot = F.one_hot(target.where(valid, 0), num_classes).movedim(-1, 1)
    return one_hot * valid.unsqueeze(1)


def build(name: str, sizes: torch.Tensor, /, **params) -> SegmentationLoss:
    """A loss of `LOSSES` with what it needs of the training set.

    Args:
        sizes: valid pixels of each class in each training image, int64 (N, L).
    """
    return build_loss(
        name,
        num_classes=sizes.shape[1],
        class_counts=sizes.sum(0),
        class_images=(sizes > 0).sum(0),
        num_images=len(sizes),
        **params,
    )


def build_all(sizes: torch.Tensor) -> dict[str, SegmentationLoss]:
    """All losses with their defaults, then the variants."""
    losses = {name: build(name, sizes) for name in LOSSES}
    return losses | {row: build(name, sizes, **more) for row, (name, more) in VARIANTS.items()}


def sizes_of(target: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Valid pixels of each class in each image of a batch (B, H, W): int64 (B, L), on the CPU."""
    return one_hot_labels(target, num_classes).sum((2, 3)).cpu()


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def spread(values: list[float]) -> dict:
    """Median and quartiles, and of how many."""
    if len(values) > 1:
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    else:
        q1 = median = q3 = values[0]
    return {"median": median, "q1": q1, "q3": q3, "n": len(values)}


def seconds(function, device: torch.device) -> float:
    """How long a call takes: by the clock on a CPU, by events on a GPU."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak_bytes(step, device) -> int:
    """Most bytes allocated at once during a call, above those before it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    peak = now = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        peak = max(peak, now)
    return peak


def save(name: str, device: torch.device, quick: bool, **content) -> Path:
    """Write `records/<name>-<device>.json`, whole or not at all; return its path."""
    record = {
        "benchmark": name,
        "quick": quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **provenance(device),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else "not measured on a GPU",
        **content,
    }
    name = f"{name}-{device.type}{'-quick' if quick else ''}.json"
    return write_text(RECORDS / name, json.dumps(record, indent=1) + "\n")
