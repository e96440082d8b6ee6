"""What the benchmarks share: where they ran, the spread of repetitions, the record."""

import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from patlib.records import provenance, write_text

RECORDS = Path(__file__).parent / "records"


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
