"""What a training run is: a checked set of values."""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from patlib.checks import check_choice
from patlib.data import DATASETS, SegmentationDataset, Synthetic, check_data_params
from patlib.data.dataset import SPLIT_SCHEMES, VOID_MODES
from patlib.data.images import check_image_size
from patlib.losses import LOSSES, build_loss
from patlib.models import MODELS, build_model

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
DEVICES = ("auto", "cpu", "cuda")

# What training gives to every loss itself.
GIVEN_TO_LOSSES = ("num_classes", "class_counts", "ignore_index", "reduction")

# Where a run reads and writes; it has no influence on the result and is not part of its identity.
PLACES = ("data_root", "output_dir")


@dataclass(frozen=True)
class RunConfig:
    """All settings of one training run. Wrong names and values are refused when it is made.

    Args:
        dataset: ``"synthetic"``, ``"oxford_pet"``, ``"cityscapes"``, ``"nyuv2"``, ``"camvid"`` or
            ``"folder"``.
        data_root: folder of the data set (``"nyuv2"``: or its file); None for ``"synthetic"``.
        data_params: parameters of the data set itself (``synthetic``: ``num_classes``,
            ``imbalance``, ``rare_size``, ``scene_seed``).
        split_scheme: ``"official"``, or ``"paper"`` (80 / 10 / 10 % of everything, seed 0).
        void: ``"ignore"`` unlabelled pixels, or make them the last ``"class"`` as the paper does.
        image_size: (H, W) in pixels; None takes the paper's size for the data set
            (``"folder"``: the one in its ``classes.yaml``).
        loss: ``"ce"``, ``"focal"``, ``"cb"``, ``"cb_focal"``, ``"bms"``, ``"ldam"``, ``"blv"`` or
            ``"pat"``.
        loss_params: parameters of the loss, such as ``{"temperature": 20.0}``.
        model: ``"segnet"``, ``"unet"``, ``"attention_unet"`` or ``"unetplusplus"``.
        model_params: parameters of the model, such as ``{"width": 32}``.
        epochs: passes over the training images.
        batch_size: images in one optimiser step, over all devices together.
        learning_rate: of Adam at the first step; follows a cosine to 0 over all steps.
        weight_decay: L2 penalty of Adam.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"`` (the last on CUDA only).
        device: ``"auto"`` (CUDA if there is one), ``"cpu"`` or ``"cuda"``.
        devices: how many of them.
        seed: of the initial weights, the order of the images, flips and noise.
        output_dir: folder for checkpoint, log and record. A run started again with the same
            configuration and folder goes on from its last epoch.

    Raises:
        ValueError: an argument is not allowed; the message names it, what was given and what is
            allowed.
    """

    dataset: str = "synthetic"
    data_root: str | None = None
    data_params: Mapping = field(default_factory=dict)
    split_scheme: str = "official"
    void: str = "ignore"
    image_size: tuple[int, int] | None = None
    loss: str = "pat"
    loss_params: Mapping = field(default_factory=dict)
    model: str = "segnet"
    model_params: Mapping = field(default_factory=dict)
    epochs: int = 100
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    precision: str = "32-true"
    device: str = "auto"
    devices: int = 1
    seed: int = 0
    output_dir: str = "runs/default"

    def __post_init__(self):
        for name in ("data_params", "loss_params", "model_params"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
                raise ValueError(
                    f"{name}={value!r} is not allowed: it takes a mapping of parameter names to "
                    "values, such as {'temperature': 20.0}"
                )
            object.__setattr__(self, name, dict(value))
        for name in PLACES:
            value = getattr(self, name)
            if isinstance(value, Path):
                object.__setattr__(self, name, str(value))
            elif not (
                (isinstance(value, str) and value) or (value is None and name == "data_root")
            ):
                raise ValueError(f"{name}={value!r} is not allowed: it takes the path of a folder")

        if self.image_size is not None:
            object.__setattr__(self, "image_size", check_image_size(self.image_size))
        check_data_params(self.dataset, self.data_params)
        if self.dataset == "synthetic":  # needs no files to check the values as well
            Synthetic(image_size=self.image_size, **self.data_params)
        if (self.data_root is None) != (self.dataset == "synthetic"):
            raise ValueError(
                f"data_root={self.data_root!r} is not allowed: "
                + (
                    "'synthetic' is drawn and has no folder, leave it out"
                    if self.dataset == "synthetic"
                    else f"the data set {self.dataset!r} is read from a folder, name it"
                )
            )
        check_choice("split_scheme", self.split_scheme, SPLIT_SCHEMES)
        check_choice("void", self.void, VOID_MODES)
        check_choice("loss", self.loss, tuple(LOSSES))
        check_choice("model", self.model, tuple(MODELS))
        for param in self.loss_params:
            if param in GIVEN_TO_LOSSES:
                raise ValueError(
                    f"loss_params={self.loss_params!r} is not allowed: training sets {param} itself"
                )
        # The numbers of classes are not known yet; names and values of parameters are checked.
        build_loss(self.loss, num_classes=2, class_counts=torch.ones(2), **self.loss_params)
        with torch.device("meta"):
            build_model(self.model, num_classes=2, **self.model_params)

        for name in ("epochs", "batch_size", "devices"):
            self._check_number(name, int, minimum=1)
        self._check_number("seed", int, minimum=0)
        self._check_number("learning_rate", float, minimum=0.0, exclusive=True)
        self._check_number("weight_decay", float, minimum=0.0)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("device", self.device, DEVICES)
        if self.device == "cuda" and torch.cuda.device_count() < self.devices:
            raise ValueError(
                f"device='cuda' with devices={self.devices} is not allowed here: this machine has "
                f"{torch.cuda.device_count()} CUDA device(s)"
            )
        if self.precision == "16-mixed" and self.accelerator == "cpu":
            raise ValueError("precision='16-mixed' is not allowed on a CPU: take 'bf16-mixed'")
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size={self.batch_size} is not allowed with devices={self.devices}: it is "
                "the total over all devices and must be divisible by their number"
            )

    @property
    def accelerator(self) -> str:
        """What ``device`` means on this machine, ``"cuda"`` or ``"cpu"``."""
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

    def to_dict(self) -> dict:
        """Values fit for JSON; ``RunConfig(**config.to_dict())`` gives the same again."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def identity(self) -> dict:
        """The settings that the result depends on: all but where it reads and writes.

        Parameters of data, loss and model that were not given stand there with their defaults;
        ``device`` is what it means on this machine, ``"cpu"`` or ``"cuda"``.
        """
        values = {k: v for k, v in self.to_dict().items() if k not in PLACES}
        of_all_data_sets = inspect.signature(SegmentationDataset).parameters
        for name, function, given_elsewhere in (
            ("data_params", DATASETS[self.dataset], of_all_data_sets),
            ("loss_params", LOSSES[self.loss], GIVEN_TO_LOSSES),
            ("model_params", MODELS[self.model], GIVEN_TO_LOSSES),
        ):
            values[name] = _complete(values[name], function, given_elsewhere)
        return {**values, "device": self.accelerator}

    def _check_number(self, name: str, kind: type, minimum, exclusive: bool = False) -> None:
        value = getattr(self, name)
        number = (int, float) if kind is float else int
        ok = isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
        if not ok or value < minimum or (exclusive and value == minimum):
            what = "a whole number" if kind is int else "a number"
            bound = "greater than" if exclusive else "of at least"
            raise ValueError(f"{name}={value!r} is not allowed: it takes {what} {bound} {minimum}")
        object.__setattr__(self, name, kind(value))


def _complete(given: dict, function, given_elsewhere) -> dict:
    """Parameters of a data set, loss or model, with the defaults of those that were not given."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty and name not in given_elsewhere
    }
    # 2 for 2.0 is the same run.
    floats = {k: float(v) for k, v in given.items() if isinstance(defaults.get(k), float)}
    return {**defaults, **given, **floats}
