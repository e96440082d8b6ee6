"""Training: from a configuration to a record, in one straight line."""

import csv
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.fabric import Fabric
from torch import Tensor, nn
from tqdm import tqdm

from patlib.config import RunConfig
from patlib.data import DecodedSplit, SegmentationDataset, build_dataset, count_classes, load_arrays
from patlib.losses import build_loss
from patlib.metrics import SegmentationMetrics, count_per_image
from patlib.models import build_model
from patlib.prediction import read_checkpoint
from patlib.records import (
    CHECKPOINT,
    IMAGES,
    LOG,
    RECORD,
    RESULTS_VERSION,
    RunRecord,
    different_settings,
    provenance,
    remove_unfinished,
    run_and_data,
    write_text,
    write_whole,
)

NUM_PREDICTIONS = 8  # label maps of test images that a run keeps
LOCK = ".lock"
LOCK_SECONDS = 2.0  # how long train waits for another process in the same folder


def train(config: RunConfig, progress: bool = True) -> RunRecord:
    """Train a network and score it: ``record = train(RunConfig(dataset="synthetic"))``.

    Adam, learning rate on a cosine to 0 over all steps, horizontal flips, float32 or mixed
    precision, channels_last. Scored is the network of the last epoch. In ``config.output_dir``
    are written, each atomically: ``last.ckpt`` and ``log.csv`` after every epoch, at the end
    ``test_images.npz`` and ``record.json``. Called again with the same configuration and folder, it
    goes on from the last epoch, or returns the record if nothing is left to do (after a look at the
    data: a run of the same settings on other data is another run).

    ``test_images.npz`` holds ``counts`` and ``validation_counts``, int32 (N, 3, L), the pixels of
    each class in each image of the split (see :func:`patlib.metrics.count_per_image`); ``shown``,
    the numbers of at most ``NUM_PREDICTIONS`` test images spread evenly; and ``labels``, uint8
    (len(shown), H, W), their predicted label maps.

    The caller's random numbers and cuDNN settings stay as they are.

    Args:
        config: the run.
        progress: show progress bars.

    Raises:
        ValueError, FileNotFoundError: this machine cannot make the run, ``output_dir`` cannot be
            written to, the data do not fit (see SegmentationDataset), or the folder holds another
            run. Before any training.
        RuntimeError: another process trains in the same folder.
        FloatingPointError: the training loss became infinite or NaN; the last good checkpoint
            stays.
        OSError: a file cannot be written, such as on a full disk; the message has its path.
    """
    check_machine(config)
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="ddp_spawn" if config.devices > 1 else "auto",
        precision=config.precision,
    )
    with output_folder(config.output_dir) as folder:
        # As a dict: Lightning does not hand a frozen dataclass to the processes it starts.
        fabric.launch(_train, config.to_dict(), progress)
        return RunRecord.load(folder / RECORD)


def check_machine(config: RunConfig) -> None:
    """Refuse a run that this machine cannot make.

    Raises:
        ValueError: there are fewer CUDA devices than the configuration asks for, or its precision
            needs one.
    """
    if config.device == "cuda" and torch.cuda.device_count() < config.devices:
        raise ValueError(
            f"devices must be at most the {torch.cuda.device_count()} CUDA devices of this machine "
            f"for device='cuda', got {config.devices}"
        )
    if config.precision == "16-mixed" and config.accelerator == "cpu":
        raise ValueError("precision must be '32-true' or 'bf16-mixed' on a CPU, got '16-mixed'")


@contextmanager
def output_folder(path: str | Path) -> Iterator[Path]:
    """The folder of a run, made if it is missing, for this process alone.

    What killed processes left half-written is removed.

    Raises:
        ValueError: it cannot be made or written to.
        RuntimeError: another process has it.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise ValueError(
            f"output_dir must be a folder that can be written to, got {str(path)!r} ({error})"
        ) from error
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise RuntimeError(
            "output_dir must be a folder that no other run uses at the same time, got "
            f"{str(path)!r}"
        ) from None
    try:
        for name in (CHECKPOINT, LOG, RECORD, IMAGES):
            remove_unfinished(folder / name)
        yield folder
    finally:
        lock.release()


@contextmanager
def fastest_convolutions() -> Iterator[None]:
    """cuDNN tries its algorithms once for each size; every batch has the same one."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@fastest_convolutions()
def _train(fabric: Fabric, settings: dict[str, Any], progress: bool) -> None:
    config = RunConfig(**settings)
    clock = Clock()
    folder = Path(config.output_dir).expanduser()
    quiet = not (progress and fabric.is_global_zero)
    bar = partial(tqdm, leave=False, mininterval=0.5, disable=quiet)

    datasets = {split: open_split(config, split) for split in ("train", "validation", "test")}
    arrays = {split: load_arrays(dataset, progress=bar) for split, dataset in datasets.items()}
    fingerprints = {split: part.fingerprint for split, part in arrays.items()}
    run = run_and_data(config.settings(), fingerprints)
    if (folder / RECORD).is_file():
        _check_same_run(folder, run, RunRecord.load(folder / RECORD).run())
        return
    checkpoint = None
    if (folder / CHECKPOINT).is_file():
        checkpoint = read_checkpoint(folder / CHECKPOINT)
        _check_same_run(folder, run, checkpoint["run"])
    num_classes = datasets["train"].num_classes
    class_counts = count_classes(arrays["train"], num_classes)
    splits = {split: SplitTensors(part, fabric.device) for split, part in arrays.items()}
    clock.add("data")

    learner = Learner(fabric, config, splits["train"], num_classes, class_counts, checkpoint)
    curves = []
    if checkpoint:
        curves = checkpoint["curves"]
        clock.resume(checkpoint["seconds"])

    def score(split: str, shown: Sequence[int] = ()) -> Evaluation:
        learner.share_statistics()
        metrics = SegmentationMetrics(num_classes, class_counts).to(fabric.device)
        with fabric.autocast():
            return evaluate(learner.network, splits[split], config.batch_size, metrics, shown)

    validation = None
    for epoch in range(len(curves), config.epochs):
        clock.restart()
        train_loss = learner.train_epoch(epoch, bar)
        clock.add("training")
        validation = score("validation")
        curves.append(
            {
                "epoch": epoch + 1,
                "train_loss": train_loss,
                "validation_miou": validation.scores["miou"],
                "validation_pixel_accuracy": validation.scores["pixel_accuracy"],
            }
        )
        if fabric.is_global_zero:
            content = {
                "config": config.to_dict(),
                "run": run,
                "class_names": datasets["train"].class_names,
                "image_size": datasets["train"].image_size,
                "curves": curves,
                "seconds": clock.seconds(),
                "model": learner.network.state_dict(),
                "optimizer": learner.optimizer.state_dict(),
            }
            save_checkpoint(folder / CHECKPOINT, content)
            _write_log(folder / LOG, curves)

    if validation is None:  # it was interrupted after the last epoch
        validation = score("validation")
    num_test = len(splits["test"])
    shown = np.unique(np.linspace(0, num_test - 1, NUM_PREDICTIONS).round().astype(int))
    test = score("test", shown.tolist())
    if not fabric.is_global_zero:
        return
    steps = len(splits["train"]) // config.batch_size
    seconds = clock.seconds()
    record = RunRecord(
        config=config.settings(),
        result={
            "test": test.scores,
            "validation": validation.scores,
            "curves": {name: [row[name] for row in curves] for name in curves[0]},
            "class_names": list(datasets["train"].class_names),
            "class_counts": class_counts.tolist(),
            "results_version": RESULTS_VERSION,
        },
        provenance={
            "seed": config.seed,
            **provenance(fabric.device),
            "devices": config.devices,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": seconds,
            "train_images_per_second": (
                config.epochs * steps * config.batch_size / seconds["training"]
            ),
            "data": fingerprints,
            "num_images": {split: len(part) for split, part in splits.items()},
        },
    )
    with write_whole(folder / IMAGES) as file:
        np.savez_compressed(
            file,
            counts=test.counts,
            validation_counts=validation.counts,
            shown=shown,
            labels=test.labels,
        )
    record.save(folder / RECORD)  # last: where it is, everything is


class Learner:
    """Network, optimiser and loss of a run: what training changes from epoch to epoch.

    Args:
        fabric: places and wraps them.
        config: the run.
        images: its training images.
        num_classes: L.
        class_counts: pixels of each class in the training images, (L,).
        checkpoint: the state of an earlier epoch; None starts with drawn weights.

    Raises:
        ValueError: there are fewer images than fill a batch.

    Attributes:
        network: the network itself, not wrapped for several devices.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: RunConfig,
        images: "SplitTensors",
        num_classes: int,
        class_counts: Tensor,
        checkpoint: dict[str, Any] | None = None,
    ):
        if config.batch_size > len(images):
            raise ValueError(
                f"batch_size must be at most the {len(images)} images of the training split of "
                f"{config.dataset!r}, got {config.batch_size}"
            )
        self.fabric, self.config, self.images = fabric, config, images
        with seeded(config.seed):
            model = build_model(config.model, num_classes, **config.model_params)
        model = model.to(memory_format=torch.channels_last)
        optimizer = torch.optim.Adam(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        if checkpoint:
            model.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.network: nn.Module = self.model.module
        self.loss = build_loss(
            config.loss, num_classes, class_counts=class_counts, **config.loss_params
        ).to(fabric.device)

    def train_epoch(self, epoch: int, bar: Callable = lambda items, **_: items) -> float:
        """Train on all images once; return the mean training loss.

        Args:
            epoch: its number, from 0; with the seed it sets the order, the flips and the noise.
            bar: wraps the iteration over the batches, for a progress bar.

        Raises:
            FloatingPointError: the training loss became infinite or NaN.
        """
        config, fabric, rank = self.config, self.fabric, self.fabric.global_rank
        steps = len(self.images) // config.batch_size
        total = torch.zeros((), device=fabric.device)
        batches = self.images.shuffled_batches(config, epoch, rank)
        batches = bar(batches, total=steps, desc=f"epoch {epoch + 1}/{config.epochs}")
        self.model.train()
        with seeded(mix_seed(config.seed, epoch, rank)):
            for i, (image, target) in enumerate(batches):
                rate = cosine(epoch * steps + i, steps * config.epochs) * config.learning_rate
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                loss = self.loss(self.model(image), target)
                self.optimizer.zero_grad(set_to_none=True)
                fabric.backward(loss)
                self.optimizer.step()
                total += loss.detach()  # stays on the device: no synchronisation per step
            train_loss = float(fabric.all_reduce(total, reduce_op="mean")) / steps
        if not math.isfinite(train_loss):
            raise FloatingPointError(
                f"the training loss became {train_loss} in epoch {epoch + 1} with loss="
                f"{config.loss!r} and learning_rate={config.learning_rate}"
            )
        return train_loss

    def share_statistics(self) -> None:
        """Give all processes the batch statistics of the first one: each has seen its own part."""
        if self.fabric.world_size > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, 0)


class SplitTensors:
    """A split as uint8 tensors, on the device if they fit in half of its free memory."""

    def __init__(self, arrays: DecodedSplit, device: torch.device):
        self.device = device
        images, masks = (torch.from_numpy(a) for a in (arrays.images, arrays.masks))
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if images.nbytes + masks.nbytes < free / 2:
                images, masks = images.to(device), masks.to(device)
        self.images, self.masks = images, masks

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Image float (B, 3, H, W) in channels_last, and target int64 (B, H, W), on the device."""
        index = index.to(self.images.device)
        image = self.images[index].to(self.device, non_blocking=True)
        target = self.masks[index].to(self.device, non_blocking=True)
        # (B, H, W, 3) seen as (B, 3, H, W) *is* channels_last.
        return image.permute(0, 3, 1, 2).float().div_(255), target.long()

    def shuffled_batches(
        self, config: RunConfig, epoch: int, rank: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, each image flipped or not.

        Order and flips depend on (seed, epoch, index) only. Images that do not fill a batch are
        left out of this epoch.
        """
        generator = torch.Generator().manual_seed(mix_seed(config.seed, epoch))
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


class Evaluation(NamedTuple):
    """What one pass over a split of N images gives.

    Attributes:
        scores: see :meth:`SegmentationMetrics.compute`.
        counts: int32 (N, 3, L), see :func:`patlib.metrics.count_per_image`.
        labels: predicted labels of the images asked for, uint8 (K, H, W).
    """

    scores: dict[str, Any]
    counts: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: SplitTensors,
    batch_size: int,
    metrics: SegmentationMetrics,
    shown: Sequence[int] = (),
) -> Evaluation:
    """Score a network on a split, in one pass.

    Where several processes take part, each labels its share of the batches, and all return the
    same.

    Args:
        model: the network itself, not wrapped for several devices. Its mode is kept.
        images: the split.
        batch_size: images at a time.
        metrics: what counts; on the device of the model.
        shown: numbers of the images whose predicted labels are returned, in increasing order.
    """
    distributed = torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if distributed else 0
    ranks = torch.distributed.get_world_size() if distributed else 1
    counts, labels = {}, {}  # by the number of the image
    was_training = model.training
    model.eval()
    for index in torch.arange(len(images)).split(batch_size)[rank::ranks]:
        image, target = images.batch(index)
        predicted = model(image).argmax(1)
        metrics.update(predicted, target)
        numbers = index.tolist()
        counted = count_per_image(predicted, target, metrics.num_classes, metrics.ignore_index)
        counts.update(zip(numbers, counted.int().cpu().numpy(), strict=True))
        for i in set(shown).intersection(numbers):
            labels[i] = predicted[i - numbers[0]].to("cpu", torch.uint8).numpy()
    model.train(was_training)
    if distributed:
        parts = [None] * ranks
        torch.distributed.all_gather_object(parts, (counts, labels))
        counts, labels = ({k: v for part in parts for k, v in part[i].items()} for i in (0, 1))
    height, width = images.masks.shape[1:]
    kept = np.stack([labels[i] for i in shown]) if len(shown) else np.empty((0, height, width))
    return Evaluation(
        metrics.compute(),
        np.stack([counts[i] for i in range(len(images))]),
        kept.astype(np.uint8),
    )


class Clock:
    """Seconds of the parts of a run, added up over its interruptions."""

    def __init__(self) -> None:
        self.parts = {"data": 0.0, "training": 0.0, "all": 0.0}
        self.started = self.last = time.perf_counter()

    def restart(self) -> None:
        self.last = time.perf_counter()

    def add(self, part: str) -> None:
        """Add what went by since the last call (of this or ``restart``) to a part."""
        before, self.last = self.last, time.perf_counter()
        self.parts[part] += self.last - before

    def resume(self, earlier: dict[str, float]) -> None:
        """Add the seconds of the run before its interruption."""
        self.parts = {part: seconds + earlier[part] for part, seconds in self.parts.items()}

    def seconds(self) -> dict[str, float]:
        return {**self.parts, "all": self.parts["all"] + time.perf_counter() - self.started}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from this seed inside; the caller's generators, on all devices, stay as they are."""
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def mix_seed(*numbers: int) -> int:
    """One seed from several numbers; those of neighbouring numbers are independent."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def cosine(step: int, total_steps: int) -> float:
    """Factor of the learning rate before step 0, 1, ..., total_steps - 1: from 1 towards 0."""
    return 0.5 * (1 + math.cos(math.pi * step / total_steps))


def open_split(config: RunConfig, split: str) -> SegmentationDataset:
    """A split of the run's data set: ``"train"``, ``"validation"`` or ``"test"``."""
    return build_dataset(
        config.dataset,
        config.data_root,
        split,
        config.image_size,
        config.split_scheme,
        config.void,
        **config.data_params,
    )


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all."""
    # In memory first: an error of the disk is then one of write_whole, with the path.
    file = io.BytesIO()
    torch.save(content, file)
    with write_whole(path) as whole:
        whole.write(file.getbuffer())


def _check_same_run(folder: Path, here: dict[str, Any], there: dict[str, Any]) -> None:
    if different := different_settings(here, there):
        raise ValueError(
            f"output_dir={str(folder)!r} holds another run: it differs in {different}. Choose "
            "another folder or remove that one."
        )


def _write_log(path: Path, curves: list[dict[str, float]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=curves[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(curves)
    write_text(path, text.getvalue())
