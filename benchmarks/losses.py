"""Time and memory of the losses, forward and backward, beside `F.cross_entropy`.

    python benchmarks/losses.py [--device cpu|cuda] [--quick] [--shapes 8x13x72x96 ...]

Timed are all losses of `patlib.losses.LOSSES` and a few of their variants (`common.VARIANTS`); on
two quiet cores of a CPU that takes three to four minutes. In each repetition every loss runs once,
one after the other, so that whatever else the machine does meets them all; a ratio is the median of
the ratios within a repetition. What takes much longer than cross-entropy (PAT on one-hot tensors,
the losses on regions) has three repetitions at most, and the losses on regions are left out of the
largest shape. Memory is the peak of what is allocated above the logits and the target, the gradient
included. Prints a table and writes benchmarks/records/losses-<device>.json; only the table with
--shapes.
"""

import argparse

import torch
from common import (
    BASELINE,
    TEXTBOOK_PAT,
    add_device,
    build_all,
    peak_bytes,
    positive,
    save,
    seconds,
    sizes_of,
    spread,
    textbook_pat,
)

# (B, L, H, W): of training on small images, where the fixed costs of a call show, and on large.
SHAPES = [(8, 11, 96, 128), (4, 3, 256, 256), (8, 20, 256, 512), (2, 150, 512, 512)]
LARGE = 2**23  # logits, above which a third of the repetitions is enough
HUGE = 2**25  # logits, above which a loss on regions takes too long
REGIONS = ("dice", "jaccard", "tversky", "lovasz", "mix")
SLOW = (TEXTBOOK_PAT, *REGIONS)
QUICK_SHAPES = [(2, 5, 16, 24)]
IGNORED = 0.1  # share of the pixels


def make_batch(shape, dtype, device):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator).to(device, dtype).requires_grad_()
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    target[torch.rand(target.shape, generator=generator) < IGNORED] = 255
    return logits, target.to(device)


def measure(shape, dtype, device, repetitions):
    """One row a loss: seconds, ratios, bytes."""
    logits, target = make_batch(shape, dtype, device)
    sizes = sizes_of(target, shape[1])
    losses = {
        BASELINE: torch.nn.CrossEntropyLoss(ignore_index=255),
        **{name: loss.to(device) for name, loss in build_all(sizes).items()},
        TEXTBOOK_PAT: textbook_pat,
    }
    if logits.numel() > HUGE:
        losses = {name: loss for name, loss in losses.items() if name not in REGIONS}

    def step(loss):
        logits.grad = None
        loss(logits, target).backward()

    times = {name: [] for name in losses}
    if logits.numel() > LARGE:
        repetitions = -(-repetitions // 3)
    for repetition in range(repetitions + 2):
        for name, loss in losses.items():
            # These take long, and are here for their order of magnitude.
            if name in SLOW and repetition >= 5:
                continue
            taken = seconds(lambda loss=loss: step(loss), device)
            if repetition >= 2:  # before that: compilation, the first memory from the system
                times[name].append(taken)
    rows = []
    for name, loss in losses.items():
        logits.grad = None
        row = {
            "shape": list(shape),
            "dtype": str(dtype).removeprefix("torch."),
            "loss": name,
            "seconds": spread(times[name]),
            "peak_bytes": peak_bytes(lambda loss=loss: step(loss), device),
        }
        for other in (BASELINE, "ce"):
            pairs = zip(times[name], times[other], strict=False)
            row[f"ratio_to_{other}"] = spread([a / b for a, b in pairs])
        if device.type == "cuda":
            # What has to be moved: the logits read twice, their gradient written.
            moved = 3 * logits.nbytes + 2 * target.nbytes
            row["bytes_per_second"] = moved / row["seconds"]["median"]
        rows.append(row)
    return rows


def copy_bytes_per_second(device) -> float:
    """Bytes read and written a second by a copy of 1 GiB."""
    source = torch.empty(2**28, device=device)
    copy = torch.empty_like(source)
    copy.copy_(source)
    taken = spread([seconds(lambda: copy.copy_(source), device) for _ in range(20)])
    return 2 * source.nbytes / taken["median"]


def batch_shape(text):
    """An option such as 2x20x64x64."""
    sizes = text.split("x")
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"must be BxLxHxW, such as 2x20x64x64, got {text!r}")
    return tuple(map(positive, sizes))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_device(parser)
    parser.add_argument("--repetitions", type=positive, default=15)
    parser.add_argument(
        "--shapes",
        type=batch_shape,
        nargs="+",
        metavar="BxLxHxW",
        help="only these, and write no record",
    )
    parser.add_argument("--quick", action="store_true", help="a small batch, few repetitions")
    options = parser.parse_args()
    device = torch.device(options.device)
    shapes, repetitions = SHAPES, options.repetitions
    if options.quick:
        shapes, repetitions = QUICK_SHAPES, 2
    if options.shapes:
        shapes = options.shapes

    content = {"ignored": IGNORED, "results": []}
    copied = None
    if device.type == "cuda":
        copied = content["copy_bytes_per_second"] = copy_bytes_per_second(device)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in shapes:
            rows = measure(shape, dtype, device, repetitions)
            print(f"\n{'x'.join(map(str, shape))} {rows[0]['dtype']}")
            print(f"{'':20} {'ms':>9}   to {BASELINE} (quartiles)   to ce     peak MB")
            for row in rows:
                if copied:
                    row["share_of_copy_bandwidth"] = row["bytes_per_second"] / copied
                ratio = row[f"ratio_to_{BASELINE}"]
                quartiles = f"{ratio['median']:8.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
                print(
                    f"{row['loss']:20} {1e3 * row['seconds']['median']:9.2f} {quartiles:>34}"
                    f" {row['ratio_to_ce']['median']:7.2f} {row['peak_bytes'] / 1e6:11.1f}"
                    + (f" {row['share_of_copy_bandwidth']:6.0%}" if copied else ""),
                    flush=True,
                )
            content["results"] += rows
    if not options.shapes:
        print("\n", save("losses", device, options.quick, **content), sep="")


if __name__ == "__main__":
    main()
