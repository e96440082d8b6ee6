"""Time, memory and device use of training with each loss: the quantities of the paper's Fig. 6.

    python benchmarks/figure6.py [--device cpu|cuda] [--quick]

SegNet at the image sizes and numbers of classes of the paper's three data sets (void is a class
there), on images and labels drawn at random: what a step costs hardly depends on what is in them.
Beside the paper's eight losses stand `F.cross_entropy`, and cross-entropy and PAT written as in the
paper, on one-hot tensors, so that what a formula costs can be told from what its implementation
costs.

In each repetition every loss makes one training step (forward, backward, Adam), in an order drawn
anew, with the same network. The learning rate is 0: the arithmetic of a step, and the same weights
for all. Measured are

1. `epoch_seconds`: the median step times the steps of an epoch, which has 80 % of the images that
   the paper says the data set has;
2. `peak_bytes`: the most that PyTorch has allocated at once in a step, weights and Adam's moments
   included; `held_bytes` of them (weights, moments, the batch) are there all the time;
3. `device_use`: on a CPU its time in this process by the clock's time and the cores; on a GPU
   samples of `torch.cuda.utilization` (none without the package nvidia-ml-py).

A batch is 16 images on a GPU. On a CPU it is 2, and all takes about five minutes on two cores.
Prints a table and writes benchmarks/records/figure6-<device>.json.
"""

import argparse
import os
import random
import time

import torch
from common import (
    BASELINE,
    PAPER,
    TEXTBOOK_CE,
    TEXTBOOK_PAT,
    add_device,
    build,
    peak_bytes,
    positive,
    save,
    seconds,
    sizes_of,
    spread,
    textbook_ce,
    textbook_pat,
)

from patlib.models import build_model

# (H, W), classes with void, and images, as the paper's Section 5 gives them: 37 breeds of about
# 200 images; "roughly 1500"; "roughly 1000".
DATA_SETS = {
    "Oxford-IIIT Pet": ((256, 256), 3, 37 * 200),
    "Cityscapes": ((256, 512), 20, 1500),
    "NYUv2": ((256, 340), 14, 1000),
}
TRAINING_SHARE = 0.8
BATCH = {"cpu": 2, "cuda": 16}
WARM_UP = 2  # rounds: compilation, the first memory from the system
SAMPLED = 4.0  # seconds of samples of a GPU's utilisation
DEVICE_USE = {
    "cpu": "CPU time of the process / wall time / cores",
    "cuda": "share of time with a kernel on the GPU, by NVML's samples",
}


class Step:
    """A training step of one network with any loss."""

    def __init__(self, image_size, num_classes, batch_size, width, device):
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(batch_size, 3, *image_size, generator=generator)
        target = torch.randint(num_classes, (batch_size, *image_size), generator=generator)
        self.sizes = sizes_of(target, num_classes)
        self.image = image.to(device, memory_format=torch.channels_last)
        self.target = target.to(device)
        torch.manual_seed(0)
        model = build_model("segnet", num_classes, width=width)
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0)

    def __call__(self, loss):
        self.optimizer.zero_grad(set_to_none=True)
        loss(self.model(self.image), self.target).backward()
        self.optimizer.step()

    def held_bytes(self) -> int:
        """What is there all the time: weights, Adam's moments, the batch."""
        moments = [m for state in self.optimizer.state.values() for m in state.values()]
        network = [*self.model.parameters(), *self.model.buffers()]
        return sum(tensor.nbytes for tensor in [*network, *moments, self.image, self.target])


def sample_utilization(step, device) -> list[float]:
    """The GPU's utilisation, 0 to 1, while the step is repeated; [] where it cannot be asked."""
    samples, started = [], time.monotonic()
    while (elapsed := time.monotonic() - started) < 1 + SAMPLED:  # the first second fills the GPU
        step()
        if elapsed > 1 + 0.2 * len(samples):
            try:
                samples.append(torch.cuda.utilization(device) / 100)
            except (ModuleNotFoundError, RuntimeError):
                break
    torch.cuda.synchronize()
    return samples


def measure(image_size, num_classes, batch_size, width, repetitions, device):
    """One row a loss: seconds and ratios of a step, bytes, device use."""
    step = Step(image_size, num_classes, batch_size, width, device)
    losses = {name: build(name, step.sizes).to(device) for name in PAPER}
    losses |= {
        BASELINE: torch.nn.CrossEntropyLoss(ignore_index=255),
        TEXTBOOK_CE: textbook_ce,
        TEXTBOOK_PAT: textbook_pat,
    }
    times, use = ({name: [] for name in losses} for _ in range(2))
    for repetition in range(-WARM_UP, repetitions):
        for name in random.Random(repetition).sample(list(losses), len(losses)):
            started = time.process_time()
            taken = seconds(lambda name=name: step(losses[name]), device)
            busy = time.process_time() - started
            if repetition >= 0:
                times[name].append(taken)
                use[name].append(busy / taken / os.cpu_count())
    rows = []
    for name, loss in losses.items():
        if device.type == "cuda":
            use[name] = sample_utilization(lambda loss=loss: step(loss), device)
        # Outside of what is measured: the profiler does not see old gradients go.
        step.optimizer.zero_grad(set_to_none=True)
        extra = peak_bytes(lambda loss=loss: step(loss), device)
        held = step.held_bytes()
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else held + extra
        row = {"loss": name, "step_seconds": spread(times[name])}
        for other in (BASELINE, "ce", TEXTBOOK_CE):
            pairs = zip(times[name], times[other], strict=True)
            row[f"ratio_to_{other}"] = spread([a / b for a, b in pairs])
        row |= {"held_bytes": held, "peak_bytes": peak}
        row["device_use"] = spread(use[name]) if use[name] else None
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_device(parser)
    parser.add_argument("--repetitions", type=positive, default=9)
    parser.add_argument("--batch-size", type=positive, help="16 on a GPU, 2 on a CPU")
    parser.add_argument("--width", type=positive, default=32, help="of SegNet")
    parser.add_argument("--quick", action="store_true", help="small images, two repetitions")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = True  # as in patlib.train
    batch_size, width = options.batch_size or BATCH[device.type], options.width
    repetitions = options.repetitions
    if options.quick:
        width, repetitions = 2, 2

    setting = {"model": "segnet", "width": width, "batch_size": batch_size}
    setting |= {"training_share": TRAINING_SHARE, "device_use": DEVICE_USE[device.type]}
    content = {"setting": setting, "results": []}
    for data_set, (image_size, num_classes, num_images) in DATA_SETS.items():
        size = (32, 40) if options.quick else image_size
        steps = int(TRAINING_SHARE * num_images) // batch_size
        print(f"\n{data_set}: {size[0]}x{size[1]}, {num_classes} classes, {steps} steps an epoch")
        print(f"{'':16} {'s/epoch':>8}   to {BASELINE} (quartiles)   peak MB   use")
        for row in measure(size, num_classes, batch_size, width, repetitions, device):
            epoch = {k: v * (1 if k == "n" else steps) for k, v in row["step_seconds"].items()}
            row = {
                "data_set": data_set,
                "image_size": list(size),
                "num_classes": num_classes,
                "steps_per_epoch": steps,
                "epoch_seconds": epoch,
                **row,
            }
            content["results"].append(row)
            ratio, use = row[f"ratio_to_{BASELINE}"], row["device_use"]
            quartiles = f"{ratio['median']:8.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"
            print(
                f"{row['loss']:16} {epoch['median']:8.1f} {quartiles:>34}"
                f" {row['peak_bytes'] / 1e6:9.1f} "
                + (f"{use['median']:5.0%}" if use else "not measured"),
                flush=True,
            )
    print("\n", save("figure6", device, options.quick, **content), sep="")


if __name__ == "__main__":
    main()
