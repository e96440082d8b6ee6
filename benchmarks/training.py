"""Time of training: the loop, the losses' share of a step, an epoch of every network and loss.

    python benchmarks/training.py [--device cpu|cuda] [--quick]

The setting is CamVid's, small: 11 classes, images of 96x128, drawn; batches of 8, SegNet of width
16. Measured are

1. `loop`: images a second in the training epochs of `patlib.train`, beside bare steps (forward,
   backward, Adam) of the same network on one batch that is always the same;
2. `losses`: a loss alone, forward and backward on the network's logits, beside the whole step;
3. `epochs`: the median step on the loop's own batches, times the steps of an epoch.

On two cores of a CPU all takes about three minutes. Prints tables and writes
benchmarks/records/training-<device>.json.
"""

import argparse
import tempfile
from dataclasses import replace

import torch
from common import add_device, build, save, seconds, spread

from patlib import RunConfig, train
from patlib.batches import SplitTensors
from patlib.data import build_dataset, class_sizes, load_arrays
from patlib.losses import LOSSES
from patlib.models import MODELS, build_model

NUM_CLASSES, BATCH = 11, 8
MODEL_PARAMS = {"segnet": {"width": 16}, "attention_unet": {"width": 16}}


def make_config(device, image_size, **changes) -> RunConfig:
    settings = {
        "dataset": "synthetic",
        "data_params": {"num_classes": NUM_CLASSES},
        "image_size": image_size,
        "model_params": MODEL_PARAMS["segnet"],
        "epochs": 2,
        "batch_size": BATCH,
        "device": device.type,
    }
    return RunConfig(**(settings | changes))


class Steps:
    """Training steps of one network and loss, without anything around them."""

    def __init__(self, model, loss, sizes, device):
        torch.manual_seed(0)
        model = build_model(model, NUM_CLASSES, **MODEL_PARAMS.get(model, {}))
        self.model = model.to(device, memory_format=torch.channels_last).train()
        self.loss = build(loss, sizes).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def __call__(self, image, target):
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.model(image), target).backward()
        self.optimizer.step()


def measure_loop(config, images, sizes, repetitions, device) -> dict:
    """Images a second of `train` and of bare steps, by turns."""
    steps = Steps("segnet", "pat", sizes, device)
    batch = next(images.shuffled_batches(config, 0, 0, sizes))
    per_run = config.epochs * (len(images) // config.batch_size)
    looped, bare = [], []
    for repetition in range(repetitions + 1):
        with tempfile.TemporaryDirectory() as folder:
            run = replace(config, output_dir=folder)
            rate = train(run, progress=False).provenance["train_images_per_second"]
        taken = sum(seconds(lambda: steps(*batch), device) for _ in range(per_run))
        if repetition:  # the first one warms up
            looped.append(rate)
            bare.append(per_run * config.batch_size / taken)
    return {
        "train_images_per_second": spread(looped),
        "bare_images_per_second": spread(bare),
        "efficiency": spread([a / b for a, b in zip(looped, bare, strict=True)]),
    }


def measure_losses(config, images, sizes, repetitions, device) -> list[dict]:
    """Each loss alone, and its share of a SegNet's step."""
    image, target = next(images.shuffled_batches(config, 0, 0, sizes))
    steps = {loss: Steps("segnet", loss, sizes, device) for loss in LOSSES}
    logits = steps["ce"].model(image).detach().requires_grad_()
    alone, whole = ({loss: [] for loss in LOSSES} for _ in range(2))

    def backward(loss):
        logits.grad = None
        loss(logits, target).backward()

    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            times = (
                seconds(lambda step=step: backward(step.loss), device),
                seconds(lambda step=step: step(image, target), device),
            )
            if repetition:
                alone[name].append(times[0])
                whole[name].append(times[1])
    return [
        {
            "loss": name,
            "loss_seconds": spread(alone[name]),
            "step_seconds": spread(whole[name]),
            "share": spread([a / b for a, b in zip(alone[name], whole[name], strict=True)]),
        }
        for name in LOSSES
    ]


def measure_epochs(config, images, sizes, repetitions, device) -> list[dict]:
    """Seconds of an epoch: every loss with SegNet, every network with PAT.

    An epoch must have a batch for each of these pairs.
    """
    pairs = [("segnet", loss) for loss in LOSSES]
    pairs += [(model, "pat") for model in MODELS if model != "segnet"]
    steps = {pair: Steps(*pair, sizes, device) for pair in pairs}
    times = {pair: [] for pair in pairs}
    for repetition in range(repetitions + 1):
        batches = images.shuffled_batches(config, repetition, 0, sizes)
        for pair, step in steps.items():
            taken = seconds(lambda step=step, batches=batches: step(*next(batches)), device)
            if repetition:
                times[pair].append(taken)
    per_epoch = len(images) // config.batch_size
    return [
        {"model": model, "loss": loss, "seconds": spread([per_epoch * t for t in times])}
        for (model, loss), times in times.items()
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="small images, one repetition")
    options = parser.parse_args()
    device = torch.device(options.device)
    image_size, runs, repetitions = ((32, 32), 1, 1) if options.quick else ((96, 128), 3, 9)

    config = make_config(device, image_size)
    dataset = build_dataset(
        "synthetic", split="train", image_size=image_size, num_classes=NUM_CLASSES
    )
    arrays = load_arrays(dataset)
    sizes = class_sizes(arrays, NUM_CLASSES)
    images = SplitTensors(arrays, device)
    losses = measure_losses(config, images, sizes, repetitions, device)
    print(f"{'':16} {'loss, ms':>9} {'step, ms':>9} {'share':>7}")
    for row in losses:
        print(
            f"{row['loss']:16} {1e3 * row['loss_seconds']['median']:9.2f}"
            f" {1e3 * row['step_seconds']['median']:9.1f} {row['share']['median']:7.1%}"
        )
    epochs = measure_epochs(config, images, sizes, repetitions, device)
    print(f"\nseconds an epoch of {len(images)} images")
    for row in epochs:
        print(f"{row['model']:16} {row['loss']:9} {row['seconds']['median']:7.2f}")
    loop = measure_loop(config, images, sizes, runs, device)
    print(
        f"\npatlib.train: {loop['train_images_per_second']['median']:.1f} images/s, bare steps: "
        f"{loop['bare_images_per_second']['median']:.1f} images/s, "
        f"efficiency {loop['efficiency']['median']:.3f} "
        f"({loop['efficiency']['q1']:.3f} to {loop['efficiency']['q3']:.3f})"
    )
    setting = {"image_size": image_size, "batch_size": BATCH, "num_classes": NUM_CLASSES}
    setting |= {"num_images": len(images), "model_params": MODEL_PARAMS}
    content = {"setting": setting, "loop": loop, "losses": losses, "epochs": epochs}
    print(f"\n{save('training', device, options.quick, **content)}")


if __name__ == "__main__":
    main()
