"""Training: from a configuration to a record, in one straight line."""

import csv
import io
import math
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import nn
from tqdm import tqdm

from patlib.config import RunConfig
from patlib.data import Arrays, build_dataset, count_classes, load_arrays
from patlib.losses import build_loss
from patlib.metrics import SegmentationMetrics, count_per_image
from patlib.models import build_model
from patlib.prediction import read_checkpoint
from patlib.records import RESULTS_VERSION, RunRecord, provenance, write_text, write_whole

CHECKPOINT, LOG, RECORD, IMAGES = "last.ckpt", "log.csv", "record.json", "test_images.npz"
NUM_PREDICTIONS = 8  # label maps of test images that a run keeps


def train(config: RunConfig, progress: bool = True) -> RunRecord:
    """Train a network and score it: ``record = train(RunConfig(dataset="synthetic"))``.

    Adam, learning rate on a cosine to 0 over all steps, horizontal flips, float32 or mixed
    precision, channels_last. Scored is the network of the last epoch. In ``config.output_dir``
    are written, each atomically: ``last.ckpt`` and ``log.csv`` after every epoch, at the end
    ``test_images.npz`` (see :func:`~patlib.training.describe_images`) and ``record.json``. Called
    again with the same configuration and folder, it goes on from the last epoch, or returns the
    record if nothing is left to do (after a look at the data: a run of the same settings on other
    data is another run).

    Args:
        config: the run.
        progress: show progress bars.

    Raises:
        ValueError, FileNotFoundError: the data do not fit (see SegmentationDataset), or the folder
            holds another run. Before any training.
        FloatingPointError: the training loss became infinite or NaN; the last good checkpoint
            stays.
    """
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="ddp_spawn" if config.devices > 1 else "auto",
        precision=config.precision,
    )
    # As a dict: Lightning does not hand a frozen dataclass to the processes it starts.
    fabric.launch(_train, config.to_dict(), progress)
    return RunRecord.load(Path(config.output_dir).expanduser() / RECORD)


def _train(fabric: Fabric, settings: dict, progress: bool) -> None:
    config = RunConfig(**settings)
    started = time.perf_counter()
    output_dir = Path(config.output_dir).expanduser()
    bar = _bar if progress and fabric.is_global_zero else _no_bar

    datasets = {split: _dataset(config, split) for split in ("train", "validation", "test")}
    num_classes = datasets["train"].num_classes
    arrays = {split: load_arrays(dataset, progress=bar) for split, dataset in datasets.items()}
    fingerprints = {split: part.fingerprint for split, part in arrays.items()}
    identity = {
        **config.settings(),
        "results_version": RESULTS_VERSION,
        "data": fingerprints,
    }
    if _finished(output_dir, identity):
        return
    checkpoint = _load_checkpoint(output_dir, identity)
    class_counts = count_classes(arrays["train"], num_classes)
    images = {split: Images(part, fabric.device) for split, part in arrays.items()}
    if config.batch_size > len(images["train"]):
        raise ValueError(
            f"batch_size={config.batch_size} is not allowed: the training split of "
            f"{config.dataset!r} has {len(images['train'])} images"
        )
    data_seconds = time.perf_counter() - started

    torch.backends.cudnn.benchmark = True  # every batch has the same size
    torch.manual_seed(config.seed)
    model = build_model(config.model, num_classes, **config.model_params)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    loss_function = build_loss(
        config.loss, num_classes, class_counts=class_counts, **config.loss_params
    ).to(fabric.device)
    curves, train_seconds = [], 0.0
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        curves, train_seconds = checkpoint["curves"], checkpoint["train_seconds"]
    model, optimizer = fabric.setup(model, optimizer)

    def score(split: str) -> dict:
        if fabric.world_size > 1:  # batch statistics differ by process: the first one's count
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, 0)
        metrics = SegmentationMetrics(num_classes, class_counts).to(fabric.device)
        with fabric.autocast():
            return evaluate(model.module, images[split], config.batch_size, metrics)

    steps_per_epoch = len(images["train"]) // config.batch_size
    total_steps = steps_per_epoch * config.epochs
    for epoch in range(len(curves), config.epochs):
        epoch_started = time.perf_counter()
        model.train()
        # Noise drawn inside networks and losses depends on (seed, epoch) only.
        torch.manual_seed(_mix(config.seed, epoch, fabric.global_rank))
        total = torch.zeros((), device=fabric.device)
        batches = images["train"].shuffled_batches(config, epoch, fabric.global_rank)
        description = f"epoch {epoch + 1}/{config.epochs}"
        for i, (image, target) in enumerate(bar(batches, total=steps_per_epoch, desc=description)):
            step = epoch * steps_per_epoch + i
            for group in optimizer.param_groups:
                group["lr"] = cosine(step, total_steps) * config.learning_rate
            loss = loss_function(model(image), target)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            optimizer.step()
            total += loss.detach()  # stays on the device: no synchronisation per step
        train_loss = float(fabric.all_reduce(total, reduce_op="mean")) / steps_per_epoch
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"the training loss became {train_loss} in epoch {epoch + 1} with loss="
                f"{config.loss!r} and learning_rate={config.learning_rate}"
            )
        train_seconds += time.perf_counter() - epoch_started
        validation = score("validation")
        curves.append(
            {
                "epoch": epoch + 1,
                "train_loss": train_loss,
                "validation_miou": validation["miou"],
                "validation_pixel_accuracy": validation["pixel_accuracy"],
            }
        )
        if fabric.is_global_zero:
            _save_checkpoint(
                output_dir / CHECKPOINT,
                {
                    "config": config.to_dict(),
                    "identity": identity,
                    "class_names": datasets["train"].class_names,
                    "image_size": datasets["train"].image_size,
                    "curves": curves,
                    "train_seconds": train_seconds,
                    "model": model.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                },
            )
            _write_log(output_dir / LOG, curves)

    result = {
        "test": score("test"),
        "validation": score("validation"),
        "curves": {name: [row[name] for row in curves] for name in curves[0]},
        "class_names": list(datasets["train"].class_names),
        "class_counts": class_counts.tolist(),
        "results_version": RESULTS_VERSION,
    }
    record = RunRecord(
        config=config.settings(),
        result=result,
        provenance={
            "seed": config.seed,
            **provenance(fabric.device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": {
                "data": data_seconds,
                "training": train_seconds,
                "all": time.perf_counter() - started,
            },
            "train_images_per_second": (
                config.epochs * steps_per_epoch * config.batch_size / train_seconds
            ),
            "data": fingerprints,
            "num_images": {split: len(part) for split, part in images.items()},
        },
    )
    if fabric.is_global_zero:
        with fabric.autocast():
            described = describe_images(
                model.module, images["test"], config.batch_size, num_classes
            )
        _save_images(output_dir / IMAGES, described)
        record.save(output_dir / RECORD)  # last: where it is, everything is


class Images:
    """A split as uint8 tensors, on the device if they fit in half of its free memory."""

    def __init__(self, arrays: Arrays, device: torch.device):
        self.device = device
        images, masks = (torch.from_numpy(a) for a in (arrays.images, arrays.masks))
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if images.nbytes + masks.nbytes < free / 2:
                images, masks = images.to(device), masks.to(device)
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image float (B, 3, H, W) in channels_last, and target int64 (B, H, W), on the device."""
        image = self.images[index].to(self.device, non_blocking=True)
        target = self.masks[index].to(self.device, non_blocking=True)
        # (B, H, W, 3) seen as (B, 3, H, W) *is* channels_last.
        return image.permute(0, 3, 1, 2).float().div_(255), target.long()

    def shuffled_batches(self, config: RunConfig, epoch: int, rank: int):
        """The training batches of an epoch, each image flipped or not.

        Order and flips depend on (seed, epoch, index) only. Images that do not fill a batch are
        left out of this epoch.
        """
        generator = torch.Generator().manual_seed(_mix(config.seed, epoch))
        order = torch.randperm(len(self), generator=generator)
        flipped = torch.rand(len(self), generator=generator) < 0.5
        # Once an epoch, so that no step waits for a copy.
        order, flipped = order.to(self.images.device), flipped.to(self.images.device)
        share = config.batch_size // config.devices
        for start in range(0, len(self) - config.batch_size + 1, config.batch_size):
            index = order[start + rank * share : start + (rank + 1) * share]
            image, target = self.batch(index)
            flip = flipped[index].to(self.device, non_blocking=True)
            image = torch.where(flip[:, None, None, None], image.flip(-1), image)
            target = torch.where(flip[:, None, None], target.flip(-1), target)
            yield image.contiguous(memory_format=torch.channels_last), target

    def batches(self, batch_size: int, rank: int = 0, ranks: int = 1):
        """All images in order; of several processes, each gets every ranks-th batch."""
        index = torch.arange(len(self), device=self.images.device)
        for batch in index.split(batch_size)[rank::ranks]:
            yield self.batch(batch)


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Images, batch_size: int, metrics: SegmentationMetrics
) -> dict:
    """Score a network on a split: what :meth:`SegmentationMetrics.compute` gives.

    Where several processes take part, each scores its share of the same batches, and all return
    the same scores.

    Args:
        model: the network itself, not wrapped for several devices. Its mode is kept.
        images: the split.
        batch_size: images at a time.
        metrics: what counts; on the device of the model.
    """
    distributed = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    ranks = torch.distributed.get_world_size() if distributed else 1
    was_training = model.training
    model.eval()
    for image, target in images.batches(batch_size, rank, ranks):
        metrics.update(model(image), target)
    model.train(was_training)
    return metrics.compute()


@torch.no_grad()
def describe_images(
    model: nn.Module, images: Images, batch_size: int, num_classes: int
) -> dict[str, np.ndarray]:
    """What can be said later about the single images of a split without network and images.

    Returns:
        ``counts``, int32 (N, 3, L), pixels of each class found, true and predicted in each image
        (see :func:`patlib.metrics.count_per_image`); ``shown``, the numbers of at most
        ``NUM_PREDICTIONS`` images spread evenly over the split; ``labels``, uint8
        (len(shown), H, W), their predicted label maps.
    """
    shown = np.unique(np.linspace(0, len(images) - 1, NUM_PREDICTIONS).round().astype(int))
    was_training = model.training
    model.eval()
    counts, labels = [], []
    for image, target in images.batches(batch_size):
        predicted = model(image).argmax(1)
        counts.append(count_per_image(predicted, target, num_classes).int().cpu())
        first = sum(map(len, counts)) - len(target)
        kept = [i - first for i in shown if first <= i < first + len(target)]
        labels.append(predicted[kept].to(torch.uint8).cpu())
    model.train(was_training)
    return {
        "counts": torch.cat(counts).numpy(),
        "shown": shown,
        "labels": torch.cat(labels).numpy(),
    }


def cosine(step: int, total_steps: int) -> float:
    """Factor of the learning rate before step 0, 1, ..., total_steps - 1: from 1 towards 0."""
    return 0.5 * (1 + math.cos(math.pi * step / total_steps))


def _mix(*numbers: int) -> int:
    """One seed from several numbers, such that neighbours have nothing in common."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _dataset(config: RunConfig, split: str):
    return build_dataset(
        config.dataset,
        config.data_root,
        split,
        config.image_size,
        config.split_scheme,
        config.void,
        **config.data_params,
    )


def _finished(output_dir: Path, identity: dict) -> bool:
    """Whether the folder holds the record of this run; ValueError if it is another's."""
    if not (output_dir / RECORD).is_file():
        return False
    record = RunRecord.load(output_dir / RECORD)
    results_version = record.result["results_version"]
    data = record.provenance["data"]
    found = {**record.config, "results_version": results_version, "data": data}
    _check_same_run(output_dir, identity, found)
    return True


def _load_checkpoint(output_dir: Path, identity: dict) -> dict | None:
    """The checkpoint to go on from, if there is one; ValueError if it is another run's."""
    path = output_dir / CHECKPOINT
    if not path.is_file():
        return None
    checkpoint = read_checkpoint(path)
    _check_same_run(output_dir, identity, checkpoint["identity"])
    return checkpoint


def _check_same_run(output_dir: Path, wanted: dict, found: dict) -> None:
    different = [k for k in wanted if found.get(k) != wanted[k]]
    if different:
        raise ValueError(
            f"output_dir={str(output_dir)!r} holds another run: it differs in "
            + ", ".join(f"{k} ({found.get(k)!r} there, {wanted[k]!r} here)" for k in different)
            + ". Choose another folder or remove that one."
        )


def _save_checkpoint(path: Path, content: dict) -> None:
    with write_whole(path) as file:
        torch.save(content, file)


def _save_images(path: Path, content: dict[str, np.ndarray]) -> None:
    with write_whole(path) as file:
        np.savez_compressed(file, **content)


def _write_log(path: Path, curves: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=curves[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(curves)
    write_text(path, text.getvalue())


def _bar(items, total: int, desc: str):
    return tqdm(items, total=total, desc=desc, leave=False, mininterval=0.5)


def _no_bar(items, total: int, desc: str):
    return items
