"""Training: from a configuration to a record, in one straight line."""

import copy
import csv
import dataclasses
import io
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.fabric import Fabric
from lightning.fabric.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from patlib.batches import SplitTensors
from patlib.checkpoints import CHECKPOINT, fall_back, read_checkpoint, save_checkpoint
from patlib.config import RunConfig
from patlib.data import SegmentationDataset, build_dataset, class_sizes, load_arrays
from patlib.data.dataset import SPLITS
from patlib.evaluation import Evaluation, choose_shifts, evaluate, smallest_unsigned
from patlib.files import make_folder, remove_unfinished, write_text
from patlib.losses import SegmentationLoss
from patlib.metrics import SegmentationMetrics, score_groups
from patlib.models import build_model
from patlib.own import check_logits, check_own, decode_datasets, fingerprint_model, own_name
from patlib.priors import ClassPriors
from patlib.records import (
    IMAGES,
    LOG,
    RECORD,
    RESULTS_VERSION,
    RunRecord,
    different_settings,
    provenance,
    run_and_data,
    save_images,
)
from patlib.released import build_run_loss
from patlib.seeds import mix_seed, seeded

NUM_PREDICTIONS = 8  # label maps of test images that a run keeps
LOCK = ".lock"
LOCK_SECONDS = 2.0  # how long train waits for another process in the same folder
MOMENTUM = 0.9  # of SGD


def train(
    config: RunConfig,
    progress: bool = True,
    *,
    model: nn.Module | None = None,
    datasets: Mapping[str, Dataset] | None = None,
    logger: Logger | None = None,
) -> RunRecord:
    """Train a network and score it: ``record = train(RunConfig(dataset="synthetic"))``.

    Learning rate on a cosine to 0 over all steps, channels_last. Scored is the network of the last
    epoch, as it is and under the shifts of :mod:`patlib.priors`. In ``config.output_dir``
    are written, each atomically: ``last.ckpt`` (of the epoch before: ``previous.ckpt``) and
    ``log.csv`` after every epoch, at the end ``test_images.npz`` and ``record.json``. Called again
    with the same configuration and folder, it goes on from the last epoch, or returns the record if
    nothing is left to do (after a look at the data: a run of the same settings on other data is
    another run). Where ``last.ckpt`` is damaged it warns, and goes on from ``previous.ckpt``.

    ``test_images.npz`` holds

    - ``counts`` and ``validation_counts``, int32 (N, 3, L): the pixels of each class in each image
      of the split (see :func:`patlib.metrics.count_per_image`);
    - ``shift_kinds`` and ``shift_strengths``, (K,): the shifts of the logits,
      ``{kind: strength}``, see :mod:`patlib.priors`; ``shifted_tp`` and ``shifted_predicted``,
      unsigned (K, N, L): the true positives and the predicted pixels of each class in each test
      image under each of them (the true pixels are in ``counts``); and
      ``validation_shifted_tp`` and ``validation_shifted_predicted``;
    - ``boundary_counts``, unsigned (N, 3, L): of the test images, see
      :func:`patlib.metrics.boundary_counts`;
    - ``shown``, the numbers of at most ``NUM_PREDICTIONS`` test images spread evenly, and
      ``labels``, uint8 (len(shown), H, W), their predicted label maps.

    The caller's random numbers and cuDNN settings stay as they are. On a CPU the same configuration
    gives the same result. On CUDA it does with the environment variable ``PATLIB_DETERMINISTIC=1``,
    which takes time, as far as PyTorch has deterministic operations: it warns of those that it has
    not.

    A network or data of your own take the place of those that the configuration names. The record
    then has the name of their class, such as ``"own:mymodule.MyNet"``, for ``model`` and
    ``dataset``, and the SHA-256 of the initial parameters in ``model_params``; that of the data is
    in every record. So a folder goes on with the same network and data only.

    Args:
        config: the run.
        progress: show progress bars.
        model: a network of your own, from images (B, 3, H, W) in [0, 1] to logits (B, L, H, W).
            Its parameters are where training starts; it stays as it is, a copy is trained.
            :func:`patlib.load_model` needs it again, as ``model``.
        datasets: data of your own, ``"train"``, ``"validation"`` and ``"test"``, each a data set
            of PyTorch that gives ``image, target``, see :func:`patlib.own.decode_datasets`.
        logger: of Lightning Fabric, such as ``TensorBoardLogger``; it gets the rows of ``log.csv``
            as they are made, by epoch.

    Raises:
        ValueError, FileNotFoundError: this machine cannot make the run, ``output_dir`` cannot be
            written to, the data do not fit (see SegmentationDataset), or the folder holds another
            run, or a damaged checkpoint and none before it. Before any training.
        RuntimeError: another process trains in the same folder.
        FloatingPointError: the training loss became infinite or NaN; the message names the step,
            its learning rate and the last good checkpoint, which stays.
        OSError: a file cannot be written, such as on a full disk; the message has its path.
    """
    check_machine(config)
    check_own(model, datasets, config.dataset, config.data_params, config.model_params)
    if logger is not None and not isinstance(logger, Logger):
        raise ValueError(f"logger must be a Logger of Lightning Fabric, got {logger!r}")
    config = dataclasses.replace(config, precision=resolve_precision(config))
    fabric = Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        strategy="ddp_spawn" if config.devices > 1 else "auto",
        precision=config.precision,
        loggers=logger,
    )
    with output_folder(config.output_dir) as folder:
        if not (folder / RECORD).is_file():
            fall_back(folder)
        # As a dict: Lightning does not hand a frozen dataclass to the processes it starts.
        fabric.launch(_train, config.to_dict(), progress, model, datasets)
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


def resolve_precision(config: RunConfig) -> str:
    """What ``precision="auto"`` is on this machine; another precision is itself.

    ``"bf16-mixed"`` where the GPU, or the processor (the instructions AVX512-BF16 or AMX),
    computes in bfloat16; else ``"32-true"``.
    """
    if config.precision != "auto":
        return config.precision
    if config.accelerator == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if fast else "32-true"


@contextmanager
def output_folder(path: str | Path) -> Iterator[Path]:
    """The folder of a run, made if it is missing, for this process alone.

    What killed processes left half-written is removed. So is the folder, if it was made here and an
    error ends the run before there is anything in it.

    Raises:
        ValueError: it cannot be made or written to.
        RuntimeError: another process has it.
    """
    folder = Path(path).expanduser()
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        make_folder(folder)
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
        if made and all(entry.name == LOCK for entry in folder.iterdir()):
            (folder / LOCK).unlink()
            with suppress(OSError):  # another process has put something beside it
                for part in made:
                    part.rmdir()
        lock.release()


@contextmanager
def convolutions(accelerator: str) -> Iterator[None]:
    """The fastest convolutions, or, where ``PATLIB_DETERMINISTIC=1``, what is repeatable on CUDA.

    The environment variable is about where a run computes, as ``device`` is, and not part of its
    configuration: on a CPU it changes nothing, because results there are repeatable anyway. An
    operation that PyTorch has no deterministic form of warns.
    """
    deterministic = accelerator == "cuda" and os.environ.get("PATLIB_DETERMINISTIC") == "1"
    benchmark = torch.backends.cudnn.benchmark
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    # cuDNN tries its algorithms once for each size; every batch has the same one.
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _train(fabric: Fabric, settings: dict[str, Any], *options: Any) -> None:
    with convolutions(fabric.device.type):
        _train_and_score(fabric, settings, *options)


def _train_and_score(
    fabric: Fabric,
    settings: dict[str, Any],
    progress: bool,
    model: nn.Module | None,
    datasets: Mapping[str, Dataset] | None,
) -> None:
    config = RunConfig(**settings)
    clock = Clock()
    folder = Path(config.output_dir).expanduser()
    quiet = not (progress and fabric.is_global_zero)
    bar = partial(tqdm, leave=False, mininterval=0.5, disable=quiet)

    # What another run has in the folder is seen before anything is read, but for its data.
    there = checkpoint = None
    if (folder / RECORD).is_file():
        there = RunRecord.load(folder / RECORD).run()
    elif (folder / CHECKPOINT).is_file():
        checkpoint = read_checkpoint(folder / CHECKPOINT)
        there = checkpoint["run"]
    if there is not None:
        unknown = {"dataset", "data_params", "image_size"} if datasets is not None else set()
        unknown |= {"model", "model_params"} if model is not None else set()
        known = {k: v for k, v in config.settings().items() if k not in unknown}
        _check_same_run(folder, {**there, **known}, there)

    own = {}  # settings that say what the user brought
    if datasets is None:
        opened = {split: open_split(config, split) for split in SPLITS}
        arrays = {split: load_arrays(dataset, progress=bar) for split, dataset in opened.items()}
        class_names, mask_values = opened["train"].class_names, opened["train"].mask_values
    else:
        arrays, class_names = decode_datasets(datasets, config.image_size, bar)
        mask_values = None
        own |= {"dataset": own_name(datasets["train"]), "data_params": {}}
        own |= {"image_size": list(arrays["train"].images.shape[1:3])}
    num_classes, image_size = len(class_names), tuple(arrays["train"].images.shape[1:3])
    if model is not None:
        check_logits(model, num_classes, image_size)
        initial = fingerprint_model(model)
        own |= {"model": own_name(model), "model_params": {"initial_sha256": initial}}
    settings = {**config.settings(), **own}
    fingerprints = {split: part.fingerprint for split, part in arrays.items()}
    run = run_and_data(settings, fingerprints)
    if there is not None:
        _check_same_run(folder, run, there)
    if there is not None and checkpoint is None:
        return  # it has a record
    sizes = class_sizes(arrays["train"], num_classes)
    class_counts, class_images = sizes.sum(0), (sizes > 0).sum(0)
    splits = {split: SplitTensors(part, fabric.device) for split, part in arrays.items()}
    clock.add("data")

    learner = Learner(fabric, config, splits["train"], sizes, checkpoint, model)
    priors = ClassPriors.of(learner.loss, sizes)
    grid = priors.grid()
    shifts = torch.stack([priors.shift(prior_shift) for prior_shift in grid])
    curves = []
    if checkpoint:
        curves = checkpoint["curves"]
        clock.resume(checkpoint["seconds"])

    def score(split: str, **options: Any) -> Evaluation:
        learner.share_statistics()
        metrics = SegmentationMetrics(num_classes, class_counts, class_images).to(fabric.device)
        with fabric.autocast():
            return evaluate(learner.network, splits[split], config.batch_size, metrics, **options)

    validation = None
    for epoch in range(len(curves), config.epochs):
        clock.restart()
        train_loss = learner.train_epoch(epoch, bar)
        clock.add("training")
        last = epoch + 1 == config.epochs
        validation = score("validation", shifts=shifts if last else None)
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
                "config": {**config.to_dict(), **own},
                "run": run,
                "class_names": class_names,
                "mask_values": mask_values,
                "image_size": image_size,
                "curves": curves,
                "seconds": clock.seconds(),
                "model": learner.network.state_dict(),
                "optimizer": learner.optimizer.state_dict(),
                "priors": priors._asdict(),
            }
            save_checkpoint(folder / CHECKPOINT, content)
            _write_log(folder / LOG, curves)
            fabric.log_dict(curves[-1], step=epoch + 1)

    if validation is None:  # it was interrupted after the last epoch
        validation = score("validation", shifts=shifts)
    num_test = len(splits["test"])
    shown = np.unique(np.linspace(0, num_test - 1, NUM_PREDICTIONS).round().astype(int))
    test = score("test", shown=shown.tolist(), shifts=shifts, boundaries=True)
    if not fabric.is_global_zero:
        return
    steps = len(splits["train"]) // config.batch_size
    seconds = clock.seconds()
    images_sha256 = save_images(
        folder / IMAGES,
        {
            "counts": test.counts,
            "validation_counts": validation.counts,
            "shift_kinds": np.array([kind for shift in grid for kind in shift]),
            "shift_strengths": np.array([s for shift in grid for s in shift.values()]),
            "shifted_tp": smallest_unsigned(test.shifted[:, :, 0]),
            "shifted_predicted": smallest_unsigned(test.shifted[:, :, 1]),
            "validation_shifted_tp": smallest_unsigned(validation.shifted[:, :, 0]),
            "validation_shifted_predicted": smallest_unsigned(validation.shifted[:, :, 1]),
            "boundary_counts": smallest_unsigned(test.boundaries),
            "shown": shown,
            "labels": test.labels,
        },
    )
    record = RunRecord(
        config=settings,
        result={
            "test": test.scores,
            "validation": validation.scores,
            "shifted": choose_shifts(
                grid, validation, test, score_groups(class_counts, class_images)
            ),
            "curves": {name: [row[name] for row in curves] for name in curves[0]},
            "class_names": list(class_names),
            "class_counts": class_counts.tolist(),
            "class_images": class_images.tolist(),
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
            "images_sha256": images_sha256,
            "num_images": {split: len(part) for split, part in splits.items()},
            "encoder_weights": getattr(learner.network, "weights_source", None),
        },
    )
    for logger in fabric.loggers:
        logger.save()
    record.save(folder / RECORD)  # last: where it is, everything is


class Learner:
    """Network, optimiser and loss of a run: what training changes from epoch to epoch.

    Args:
        fabric: places and wraps them.
        config: the run.
        images: its training images.
        sizes: valid pixels of each class in each of them, (N, L), see
            :func:`patlib.data.class_sizes`.
        checkpoint: the state of an earlier epoch; None starts with drawn weights.
        model: a network to copy; None builds the one that the configuration names.

    Raises:
        ValueError: there are fewer images than fill a batch, or none has a valid pixel.

    Attributes:
        network: the network itself, not wrapped for several devices.
        loss: what is minimised.
    """

    def __init__(
        self,
        fabric: Fabric,
        config: RunConfig,
        images: "SplitTensors",
        sizes: Tensor,
        checkpoint: dict[str, Any] | None = None,
        model: nn.Module | None = None,
    ):
        if config.batch_size > len(images):
            raise ValueError(
                f"batch_size must be at most the {len(images)} images of the training split of "
                f"{config.dataset!r}, got {config.batch_size}"
            )
        if not sizes.any():
            raise ValueError(
                f"the training masks of {config.dataset!r} in the folder {config.data_root!r} must "
                "have a pixel of a class, got void only"
            )
        self.fabric, self.config, self.images, self.sizes = fabric, config, images, sizes
        self.loss = loss_of_run(config, sizes).to(fabric.device)
        if model is not None:
            model = copy.deepcopy(model)
        else:
            with seeded(config.seed):
                model = build_model(config.model, sizes.shape[1], **config.model_params)
        model = model.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(config, model)
        if checkpoint:
            model.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
        self.model, self.optimizer = fabric.setup(model, optimizer)
        self.network: nn.Module = self.model.module

    def train_epoch(self, epoch: int, bar: Callable = lambda items, **_: items) -> float:
        """Train on all images once; return the mean training loss.

        Args:
            epoch: its number, from 0; with the seed it sets the order, the augmentation and the
                noise.
            bar: wraps the iteration over the batches, for a progress bar.

        Raises:
            FloatingPointError: the training loss became infinite or NaN.
        """
        config, fabric, rank = self.config, self.fabric, self.fabric.global_rank
        steps = len(self.images) // config.batch_size
        total = torch.zeros((), device=fabric.device)
        losses, rates = [], []
        batches = self.images.shuffled_batches(config, epoch, rank, self.sizes)
        batches = bar(batches, total=steps, desc=f"epoch {epoch + 1}/{config.epochs}")
        set_progress(self.loss, epoch / config.epochs)
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
                losses.append(loss.detach())
                rates.append(rate)
            train_loss = float(fabric.all_reduce(total, reduce_op="mean")) / steps
        if not math.isfinite(train_loss):
            means = fabric.all_reduce(torch.stack(losses), reduce_op="mean")  # of all processes
            finite = means.isfinite().tolist()
            step = finite.index(False) if False in finite else steps - 1  # or only their sum is not
            good = Path(config.output_dir, CHECKPOINT)
            raise FloatingPointError(
                f"the training loss became {train_loss} in epoch {epoch + 1}: at step {step + 1} "
                f"of {steps} it was {means[step].item():g}, with a learning rate of "
                f"{rates[step]:g}, loss={config.loss!r} and learning_rate={config.learning_rate}. "
                f"The last good checkpoint is {f'{good}, of epoch {epoch}' if epoch else 'none'}"
            )
        return train_loss

    def share_statistics(self) -> None:
        """Give all processes the batch statistics of the first one: each has seen its own part."""
        if self.fabric.world_size > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, 0)


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a run; without Nesterov's form SGD is that of DeepLab and most others."""
    options = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=MOMENTUM, **options)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return optimizer(model.parameters(), **options)


def loss_of_run(config: RunConfig, sizes: Tensor, **options: Any) -> SegmentationLoss:
    """The loss of a run.

    Args:
        config: the run.
        sizes: valid pixels of each class in each training image, (N, L).
        options: such as ``reduction``.
    """
    return build_run_loss(
        config.loss,
        num_classes=sizes.shape[1],
        class_counts=sizes.sum(0),
        class_images=(sizes > 0).sum(0),
        num_images=len(sizes),
        **options,
        **config.loss_params,
    )


def set_progress(loss: nn.Module, progress: float) -> None:
    """Tell a loss, and those it consists of, what share of the training is done."""
    for part in loss.modules():
        if hasattr(part, "progress"):
            part.progress = progress


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
