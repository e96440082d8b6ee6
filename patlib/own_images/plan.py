"""Which runs fit into the time that there is: losses, seeds and epochs, from measured seconds."""

import importlib.util
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from patlib.batches import SplitTensors
from patlib.checkpoints import CHECKPOINT
from patlib.checks import check_choice, check_integer, check_number
from patlib.config import RunConfig
from patlib.data import DecodedSplit, class_sizes, load_arrays
from patlib.data.dataset import SPLITS
from patlib.evaluation import evaluate
from patlib.files import write_text
from patlib.label_maps import Legend, write_label_map
from patlib.losses import LOSSES
from patlib.metrics import SegmentationMetrics
from patlib.models.encoder_unet import PACKAGED
from patlib.prediction import Predictor
from patlib.priors import ClassPriors
from patlib.training import Learner, open_split, resolve_precision, save_checkpoint

#: what is compared if nothing else is asked for: label -> settings of the run
CANDIDATES: dict[str, dict[str, Any]] = {
    "CE": {"loss": "ce"},
    "CE, median frequency": {"loss": "ce", "loss_params": {"class_weights": "median_frequency"}},
    "BMS": {"loss": "bms"},
    "CE + Jaccard": {"loss": "mix", "loss_params": {"losses": {"ce": 0.25, "jaccard": 0.75}}},
    "PAT": {"loss": "pat"},
    # The best of the study as far as it is, as study/grids/small/unet.yaml names it. In its records
    # (CamVid at 96x128, SegNet, three seeds) tail IoU is higher than with cross-entropy and mIoU no
    # lower; PAT gains more in the tail and loses mIoU.
    "1/√S": {
        "loss": "pat",
        "loss_params": {"weight": "none", "size_exponent": 0.5, "normalize": "weights"},
    },
}
#: seeds, and the steps that each run must have for so many
SEEDS = ((5, 2000), (3, 400), (2, 200), (1, 0))
MAX_EPOCHS = 200
BATCH_SIZE = 8
MEASURED, MEASURED_SECONDS = 0.005, 2.0  # of the time, and at most, for one kind of work
OVERRUN = 0.05  # of the time: a plan may be longer by so much if that is nearer than a shorter one
CLOSE = 0.1  # of the time: a plan that ends so far from it says so
# What is not measured: the start of the command, with imports of its own, takes so many times the
# seconds of those of the notebook; figures and intervals take so many seconds.
STARTS, REPORT_SECONDS = 1.2, 8.0
FEW_SEEDS, MANY_SEEDS = 3, 20  # that are named as what would decide: at least, and at most
PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """The runs of a comparison.

    Attributes:
        methods: label -> settings of :class:`patlib.RunConfig` that are the method's own.
        settings: those that all runs share, with ``epochs``.
        seeds: of each method.
        data: fingerprint of each split.
        steps: of an epoch.
        fixed_seconds: how long a run of each method should take beside its epochs.
        epoch_seconds: how long an epoch of each method should take.
        training_seconds: how long all runs together may take.
        other_seconds: what else takes time: looking, measuring, the report.
        more_seeds: whether seeds may be added if time is left.
        revised: whether the true speed of the first run is in it, see :func:`revise`.
    """

    methods: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    seeds: list[int]
    data: dict[str, str]
    steps: int
    fixed_seconds: dict[str, float]
    epoch_seconds: dict[str, float]
    training_seconds: float
    other_seconds: float
    more_seeds: bool = False
    revised: bool = False

    def run_seconds(self, method: str) -> float:
        """How long a run of a method should take."""
        return self.fixed_seconds[method] + self.settings["epochs"] * self.epoch_seconds[method]

    @property
    def planned_seconds(self) -> float:
        """How long all runs together should take."""
        return len(self.seeds) * sum(map(self.run_seconds, self.methods))

    @property
    def all_seconds(self) -> float:
        """How long everything should take."""
        return self.planned_seconds + self.other_seconds

    def config(self, method: str, seed: int, output_dir: str | Path) -> RunConfig:
        """The configuration of a run, in a folder of its own in ``output_dir``."""
        folder = Path(output_dir) / "runs" / f"{list(self.methods).index(method)}-seed{seed}"
        own = self.methods[method]
        return RunConfig(**{**self.settings, **own, "seed": seed, "output_dir": str(folder)})

    def what(self) -> dict[str, Any]:
        """What tells this comparison from another in the same folder."""
        placement = ("data_root", "epochs", "device")
        shared = {k: v for k, v in self.settings.items() if k not in placement}
        return {"methods": self.methods, "settings": shared, "data": self.data}

    def __str__(self) -> str:
        settings = self.settings
        params = ", ".join(f"{k}={v}" for k, v in settings["model_params"].items())
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        epochs = "1 epoch" if settings["epochs"] == 1 else f"{settings['epochs']} epochs"
        return (
            f"{len(self.methods)} losses ({', '.join(self.methods)}), {seeds}, {epochs} each; "
            f"{settings['model']}{f' ({params})' if params else ''} on images of "
            f"{settings['image_size'][0]}x{settings['image_size'][1]} (H x W), batches of "
            f"{settings['batch_size']}"
        )

    @property
    def caution(self) -> str:
        """What one seed cannot do, and how long it would take to do it; empty with more seeds."""
        if len(self.seeds) > 1:
            return ""
        minutes = (self.other_seconds + FEW_SEEDS * self.planned_seconds) / 60
        return (
            "With one seed, chance and loss cannot be told apart. "
            f"{FEW_SEEDS} seeds of this length take about {minutes:.1f} minutes: --seeds "
            f"{FEW_SEEDS} --budget {math.ceil(minutes)}, or later, in the same folder, --seeds "
            f"{FEW_SEEDS}, which adds them."
        )

    def left_seconds(self, finished: int) -> float:
        """How long it should take from now on, with so many finished runs."""
        share = 1 - finished / (len(self.seeds) * len(self.methods))
        return share * self.planned_seconds + REPORT_SECONDS

    @property
    def duration(self) -> str:
        """How long everything should take, in words."""
        budget = self.training_seconds + self.other_seconds
        text = f"about {self.all_seconds / 60:.1f} minutes in all"
        if abs(self.all_seconds - budget) > CLOSE * budget:
            text += (
                f" (the budget is {budget / 60:.1f}; epochs are whole, and {MAX_EPOCHS} at most)"
            )
        return text


def check_losses(losses: Any) -> dict[str, dict[str, Any]]:
    """Methods by label, from None, names of losses, or labels with settings.

    Raises:
        ValueError: it is something else, or fewer than two.
    """
    if losses is None:
        return dict(CANDIDATES)
    if isinstance(losses, Mapping):
        for label, settings in losses.items():
            if not isinstance(settings, Mapping):
                raise ValueError(f"losses[{label!r}] must be settings, got {settings!r}")
        methods = {str(label): dict(settings) for label, settings in losses.items()}
    elif isinstance(losses, Sequence) and not isinstance(losses, str):
        methods = {}
        for name in losses:
            if isinstance(name, str) and name in CANDIDATES:
                methods[name] = CANDIDATES[name]
            else:
                check_choice("a name in losses", name, (*LOSSES, *CANDIDATES))
                methods[LOSSES[name].label] = {"loss": name}
    else:
        raise ValueError(f"losses must be names, or labels with settings, got {losses!r}")
    if len(methods) < 2:
        raise ValueError(f"losses must be two or more to be compared, got {list(methods)}")
    allowed = {"loss", "loss_params", "sampler", "learning_rate", "optimizer", "weight_decay"}
    for label, settings in methods.items():
        if "loss" not in settings or (unknown := settings.keys() - allowed):
            raise ValueError(
                f"losses[{label!r}] must be settings with a loss, of {sorted(allowed)}, got "
                f"{settings if 'loss' not in settings else sorted(unknown)}"
            )
    return methods


def choose_model(model: str | None, params: Mapping[str, Any] | None) -> tuple[str, dict]:
    """The network: the one that is named, else the pretrained U-Net if its weights are installed,
    else SegNet of width 16."""
    if model is not None:
        return model, dict(params or {})
    (encoder, weights), *_ = PACKAGED.items()
    if importlib.util.find_spec(weights.module) and importlib.util.find_spec(
        "segmentation_models_pytorch"
    ):
        return "unet", {"encoder": encoder, "encoder_weights": "imagenet", **(params or {})}
    return "segnet", {"width": 16, "stages": 4, **(params or {})}


def shared_settings(
    root: str | Path,
    image_size: tuple[int, int],
    images: int,
    model: str | None = None,
    model_params: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """The settings that all runs of a comparison share, but for ``epochs``.

    Args:
        root: the folder of images and masks.
        image_size: (H, W).
        images: of the training split; batches are not larger.
        model, model_params: see :func:`choose_model`.
        device: see :class:`patlib.RunConfig`.
    """
    name, params = choose_model(model, model_params)
    settings = {
        "dataset": "folder",
        "data_root": str(root),
        "image_size": list(image_size),
        "model": name,
        "model_params": params,
        "batch_size": min(BATCH_SIZE, images),
        "device": device,
    }
    config = RunConfig(**settings, precision="auto")
    # On a CPU the result does not depend on which one it is.
    precision = resolve_precision(config) if config.accelerator == "cuda" else "32-true"
    return {**settings, "precision": precision}


def make_plan(
    methods: Mapping[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
    output_dir: str | Path,
    budget_minutes: float,
    seeds: int | None = None,
    started: float | None = None,
    imports: float = 5.0,
) -> Plan:
    """Measure this machine, and plan what fits; or go on with the plan that is in the folder.

    Of a plan that is there the budget stays what it was. It has as many seeds as are asked for:
    more are added, whatever the budget; fewer are compared without the others, which stay.

    Seeds come before epochs as long as each run has hundreds of steps (see ``SEEDS``): with one
    seed no difference between losses can be told from chance.

    Args:
        methods: label -> settings of :class:`patlib.RunConfig` that are the method's own.
        settings: those that all runs share, but for ``epochs``.
        output_dir: the folder of the comparison.
        budget_minutes: for everything, the report included.
        seeds: how many; None plans them.
        started: ``time.perf_counter()`` when the time began to count; None for now.
        imports: seconds that it took to import this package; the start of the command, before
            ``started``, took about as long.

    Raises:
        ValueError: not one epoch fits, or the folder holds another comparison.
    """
    started = time.perf_counter() if started is None else started
    check_number("budget_minutes", budget_minutes, above=0)
    if seeds is not None:
        check_integer("seeds", seeds, minimum=1)
    folder = Path(output_dir).expanduser()
    first = RunConfig(**settings)
    before = time.perf_counter()
    arrays = {split: load_arrays(open_split(first, split)) for split in SPLITS}
    reading = time.perf_counter() - before
    data = {split: part.fingerprint for split, part in arrays.items()}
    if (folder / PLAN).is_file():
        here = Plan(dict(methods), dict(settings), [], data, 0, {}, {}, 0.0, 0.0)
        return _planned(folder, here, seeds)

    folder.mkdir(parents=True, exist_ok=True)
    configs = {label: RunConfig(**{**settings, **own}) for label, own in methods.items()}
    budget = 60 * budget_minutes
    speeds = measure(configs, arrays, folder, min(MEASURED * budget, MEASURED_SECONDS))
    images = {split: len(part.images) for split, part in arrays.items()}
    steps = images["train"] // settings["batch_size"]
    epoch = {
        label: steps * speed["step"] + images["validation"] * speed["image"] + speed["save"]
        for label, speed in speeds.items()
    }
    fixed = {
        label: reading + (images["validation"] + images["test"]) * speed["scored_image"]
        for label, speed in speeds.items()
    }
    labels = images["test"] * next(iter(speeds.values()))["label"]
    other = time.perf_counter() - started + STARTS * imports + REPORT_SECONDS + labels
    left, fixed_sum, epoch_sum = budget - other, sum(fixed.values()), sum(epoch.values())
    number, epochs = fit(left, fixed_sum, epoch_sum, steps, seeds)
    if epochs < 1:
        least = other + (1 - OVERRUN) * number * (fixed_sum + epoch_sum)
        raise ValueError(
            f"budget_minutes must be at least {math.ceil(10 * least / 60) / 10:g} for one epoch of "
            f"{len(methods)} losses on this machine, got {budget_minutes:g}. Fewer losses, smaller "
            "images (image_size) or a smaller network take less."
        )
    plan = Plan(
        dict(methods),
        {**settings, "epochs": epochs},
        list(range(number)),
        data,
        steps,
        fixed,
        epoch,
        left,
        other,
        more_seeds=seeds is None,
    )
    save_plan(plan, folder)
    return plan


def fit(
    seconds: float, fixed: float, epoch: float, steps: int, seeds: int | None = None
) -> tuple[int, int]:
    """How many seeds, and how many epochs for each, fit into so many seconds.

    Whole epochs come below the time, or above it where that is nearer and not by more than
    ``OVERRUN``.

    Args:
        seconds: that there are.
        fixed: seconds of one run of each method that do not depend on the epochs.
        epoch: seconds of one epoch of each method.
        steps: of an epoch.
        seeds: how many; None chooses.

    Returns:
        Seeds and epochs; 0 epochs if none fits.
    """
    for number, wanted in SEEDS if seeds is None else ((seeds, 0),):
        exact = (seconds / number - fixed) / epoch
        over = number * (round(exact) - exact) * epoch
        epochs = round(exact) if over <= OVERRUN * seconds else math.floor(exact)
        epochs = min(MAX_EPOCHS, max(0, epochs))
        if epochs * steps >= wanted or epochs == MAX_EPOCHS:
            break
    return number, epochs


def revise(plan: Plan, slowness: float, spent: float) -> Plan:
    """The plan anew, if all runs take ``slowness`` times as long as was measured.

    Args:
        plan: of which no run is finished.
        slowness: true seconds over measured ones.
        spent: seconds that are lost.
    """
    fixed, epoch = (
        {label: slowness * seconds for label, seconds in measured.items()}
        for measured in (plan.fixed_seconds, plan.epoch_seconds)
    )
    left = plan.training_seconds - spent
    seeds = None if plan.more_seeds else len(plan.seeds)
    number, epochs = fit(left, sum(fixed.values()), sum(epoch.values()), plan.steps, seeds)
    return replace(
        plan,
        settings={**plan.settings, "epochs": max(1, epochs)},
        seeds=list(range(number)),
        fixed_seconds=fixed,
        epoch_seconds=epoch,
        training_seconds=left,
        other_seconds=plan.other_seconds + spent,
        revised=True,
    )


def measure(
    configs: Mapping[str, RunConfig],
    arrays: Mapping[str, DecodedSplit],
    folder: Path,
    seconds: float = MEASURED_SECONDS,
) -> dict[str, dict[str, float]]:
    """Seconds of a step, of scoring and labelling an image, and of saving, on this machine.

    Only the loss differs between the methods: the first is timed in all of it, after a step that is
    not timed; of the others, steps alone. A time is a median.

    Args:
        configs: label -> a run of the method.
        arrays: of the three splits.
        folder: where checkpoints will be saved.
        seconds: in which a step, and the scoring of a batch, are repeated; done at least once.

    Returns:
        label -> ``step``; ``image``, scored as after an epoch; ``scored_image``, as after the last,
        with all shifts and boundaries; ``save``, a checkpoint; ``label``, an image file labelled.
    """
    config = next(iter(configs.values()))
    num_classes = open_split(config, "train").num_classes
    fabric = Fabric(accelerator=config.accelerator, devices=1, precision=config.precision)
    sizes = class_sizes(arrays["train"], num_classes)
    batch = SplitTensors(_first(arrays["train"], config.batch_size), fabric.device)
    scored = SplitTensors(_first(arrays["validation"], config.batch_size), fabric.device)
    speeds: dict[str, dict[str, float]] = {}
    for label, own in configs.items():
        learner = Learner(fabric, own, batch, sizes)  # the loss knows the sizes of all images
        learner.sizes = sizes[: config.batch_size]
        if speeds:
            step = _median_seconds(lambda learner=learner: learner.train_epoch(1), seconds)
            speeds[label] = {**speeds[next(iter(speeds))], "step": step}
        else:
            learner.train_epoch(0)
            step = _median_seconds(lambda learner=learner: learner.train_epoch(1), seconds)
            speeds[label] = {"step": step, **_measure_rest(learner, scored, sizes, folder, seconds)}
    return speeds


def _measure_rest(
    learner: Learner, images: SplitTensors, sizes: torch.Tensor, folder: Path, seconds: float
) -> dict[str, float]:
    """What :func:`measure` gives beside the step."""
    priors = ClassPriors.of(learner.loss, sizes)
    shifts = torch.stack([priors.shift(prior_shift) for prior_shift in priors.grid()])

    def score(**options: Any) -> None:
        metrics = SegmentationMetrics(sizes.shape[1]).to(learner.fabric.device)
        with learner.fabric.autocast():
            evaluate(learner.network, images, learner.config.batch_size, metrics, **options)

    image = _median_seconds(score, seconds) / len(images)
    scored_image = _seconds(lambda: score(shifts=shifts, boundaries=True)) / len(images)
    split = open_split(learner.config, "test")
    files = [sample.image for sample in split.samples[: learner.config.batch_size]]
    content = {
        "config": learner.config.to_dict(),
        "run": {},
        "class_names": split.class_names,
        "mask_values": split.mask_values,
        "image_size": split.image_size,
        "curves": [],
        "seconds": {},
        "model": learner.network.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "priors": priors._asdict(),
    }
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        checkpoint = Path(scratch) / CHECKPOINT
        save = _seconds(lambda: save_checkpoint(checkpoint, content))
        predictor = Predictor(checkpoint, learner.config.device)
        legend = Legend(predictor.class_names, predictor.mask_values)

        def label() -> None:
            for i, labels in enumerate(predictor(files)):
                write_label_map(Path(scratch) / f"{i}.png", labels, legend)

        label_image = _seconds(label) / len(files)
    return {
        "image": image,
        "scored_image": scored_image,
        "save": save,
        "label": label_image,
    }


def _first(split: DecodedSplit, number: int) -> DecodedSplit:
    return split._replace(images=split.images[:number], masks=split.masks[:number])


def _median_seconds(function: Callable[[], Any], seconds: float) -> float:
    """Seconds of a call: the median of as many as fit into ``seconds``, at least one."""
    taken: list[float] = []
    while sum(taken) < seconds:
        taken.append(_seconds(function))
    return statistics.median(taken)


def _seconds(function: Callable[[], Any]) -> float:
    before = time.perf_counter()
    function()
    return time.perf_counter() - before


def save_plan(plan: Plan, folder: Path) -> None:
    write_text(folder / PLAN, json.dumps(asdict(plan), indent=1) + "\n")


def _planned(folder: Path, here: Plan, seeds: int | None) -> Plan:
    """The plan in a folder, if it is one of the same losses, network and data, with these seeds."""
    try:
        there = Plan(**json.loads((folder / PLAN).read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / PLAN} is not a plan: remove it to start anew") from error
    for name, value in json.loads(json.dumps(here.what())).items():
        stored = there.what()[name]
        other = [k for k in {**stored, **value} if stored.get(k) != value.get(k)]
        if other:
            said = "; ".join(f"{k} is {stored.get(k)} there, {value.get(k)} here" for k in other)
            raise ValueError(
                f"output_dir={str(folder)!r} holds a comparison of other {name} ({said}): choose "
                "another folder"
            )
    # The data may lie elsewhere now.
    plan = replace(there, settings={**there.settings, **_place(here.settings)})
    if seeds is None or seeds == len(plan.seeds):
        return plan
    plan = replace(
        plan,
        seeds=list(range(seeds)),
        training_seconds=plan.training_seconds * seeds / len(plan.seeds),
        more_seeds=False,
    )
    save_plan(plan, folder)
    return plan


def _place(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in ("data_root", "device")}
