"""The configuration of a training run, and the identity that its record is found by.

The settings of a run are all fields of :class:`RunConfig` but those of ``PLACEMENT``, with the
parameters of data set, loss and model spelled out. Its identity (:func:`identity`) holds only the
settings that differ from the defaults in ``schema_1.json``. These defaults stay as they are, so
that the identity of a run, and the name of its record, outlast new fields, new parameters and
changed defaults:

- A new field or parameter is entered in ``schema_1.json`` with the value that gives the results of
  before. Until then its default in the code counts.
- If a default in the code changes, the default in ``schema_1.json`` does not.
"""

import dataclasses
import inspect
import json
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from patlib.checks import check_choice, check_integer, check_number
from patlib.data import DATASETS, SAMPLERS, SegmentationDataset, Synthetic, check_data_params
from patlib.data.dataset import SPLIT_SCHEMES, VOID_MODES
from patlib.data.images import check_image_size
from patlib.losses import LOSSES
from patlib.models import MODELS, build_model
from patlib.released import RELEASED_LOSSES, build_run_loss

OPTIMIZERS = ("adam", "adamw", "sgd")
AUGMENTATIONS = ("flip", "flip_scale_crop")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "auto")
DEVICES = ("auto", "cpu", "cuda")

# A view, so that a loss that is added to LOSSES is one of a run, too.
RUN_LOSSES = ChainMap(LOSSES, RELEASED_LOSSES)

# What training gives to every loss itself.
GIVEN_TO_LOSSES = (
    "num_classes",
    "class_counts",
    "class_images",
    "num_images",
    "ignore_index",
    "reduction",
)

#: the folders that a run reads from and writes to
PATHS = ("data_root", "output_dir")
#: the fields that do not make a run another run: where it reads, writes and computes
PLACEMENT = (*PATHS, "device", "devices")

#: the number of the schema, which stands in records and in the hash of their names
SCHEMA = 1
#: its defaults: of the fields, and of the parameters of each data set, loss and model
SCHEMA_DEFAULTS: dict[str, dict] = json.loads(
    Path(__file__).with_name(f"schema_{SCHEMA}.json").read_text()
)


@dataclass(frozen=True)
class RunConfig:
    """All settings of one training run. Wrong names and values are refused when it is made.

    Whether this machine can run it is asked by :func:`patlib.train`, so that a run made on a GPU
    can be described anywhere.

    Args:
        dataset: ``"synthetic"``, ``"oxford_pet"``, ``"cityscapes"``, ``"nyuv2"``, ``"camvid"`` or
            ``"folder"``.
        data_root: folder of the data set (``"nyuv2"``: or its file); None for ``"synthetic"``.
        data_params: parameters of the data set itself (``synthetic``: ``num_classes``,
            ``imbalance``, ``rare_size``, ``scene_seed``).
        split_scheme: ``"official"``, ``"grouped"`` (its training part is cut so that the validation
            part shares no room or drive with what is trained on), or ``"paper"`` (80 / 10 / 10 % of
            everything, seed 0).
        void: ``"ignore"`` unlabelled pixels, or make them the last ``"class"`` as the paper does.
        image_size: (H, W) in pixels; None takes the paper's size for the data set
            (``"folder"``: the one in its ``classes.yaml``).
        loss: ``"ce"``, ``"focal"``, ``"cb"``, ``"cb_focal"``, ``"bms"``, ``"ldam"``, ``"blv"``,
            ``"pat"``, ``"dice"``, ``"jaccard"``, ``"tversky"``, ``"lovasz"`` or ``"mix"``; or, to
            measure what the paper's released code does, one of
            ``patlib.released.RELEASED_LOSSES``.
        loss_params: parameters of the loss, such as ``{"temperature": 20.0}``.
        model: ``"segnet"``, ``"unet"``, ``"attention_unet"`` or ``"unetplusplus"``.
        model_params: parameters of the model, such as ``{"width": 32}``.
        epochs: passes over the training images.
        batch_size: images in one optimiser step, over all devices together.
        optimizer: ``"adam"``, ``"adamw"``, or ``"sgd"`` (momentum 0.9, without Nesterov's form).
        learning_rate: at the first step; follows a cosine to 0 over all steps.
        weight_decay: L2 penalty of Adam and SGD; of AdamW the decoupled decay.
        augment: ``"flip"``: every second image is mirrored on average; ``"flip_scale_crop"``: also
            scaled by a factor drawn from 0.5 to 2 and cut to ``image_size`` at a random place. What
            the scaled image does not cover is black, and ignored by loss and scores.
        sampler: which images an epoch shows: ``"uniform"``, each once; ``"repeat_factor"`` or
            ``"rare_class"``, those with rare classes more often (see
            :mod:`patlib.data.samplers`). An epoch has as many steps with each.
        precision: ``"32-true"``, ``"bf16-mixed"``, ``"16-mixed"`` (CUDA only), or ``"auto"``:
            ``"bf16-mixed"`` where the processor or the GPU computes in bfloat16, else
            ``"32-true"``. :func:`patlib.train` makes the choice, and the run is the one with the
            chosen precision; grids must name it.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"`` or ``"cuda"``.
        devices: how many of them.
        seed: of the initial weights, the order of the images, their augmentation, and noise.
        output_dir: folder for checkpoint, log and record. A run started again with the same
            configuration and folder goes on from its last epoch.

    Raises:
        ValueError: an argument is not allowed; the message names it, what was given and what is
            allowed.
    """

    dataset: str = "synthetic"
    data_root: str | None = None
    data_params: Mapping[str, Any] = field(default_factory=dict)
    split_scheme: str = "official"
    void: str = "ignore"
    image_size: tuple[int, int] | None = None
    loss: str = "pat"
    loss_params: Mapping[str, Any] = field(default_factory=dict)
    model: str = "segnet"
    model_params: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 100
    batch_size: int = 16
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    augment: str = "flip"
    sampler: str = "uniform"
    precision: str = "32-true"
    device: str = "auto"
    devices: int = 1
    seed: int = 0
    output_dir: str = "runs/default"

    def __post_init__(self) -> None:
        for name in ("data_params", "loss_params", "model_params"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
                raise ValueError(
                    f"{name} must be a mapping of parameter names to values, such as "
                    f"{{'temperature': 20.0}}, got {value!r}"
                )
            self._set(name, _plain(name, dict(value)))
        for name in PATHS:
            value = getattr(self, name)
            if isinstance(value, Path):
                self._set(name, str(value))
            elif not (
                (isinstance(value, str) and value and "\0" not in value)
                or (value is None and name == "data_root")
            ):
                raise ValueError(f"{name} must be the path of a folder, got {value!r}")

        if self.image_size is not None:
            self._set("image_size", check_image_size(self.image_size))
        check_data_params(self.dataset, self.data_params)
        if self.dataset == "synthetic":  # needs no files to check the values as well
            Synthetic(image_size=self.image_size, **self.data_params)
            if self.data_root is not None:
                raise ValueError(
                    "data_root must be None for the data set 'synthetic', which is drawn, got "
                    f"{self.data_root!r}"
                )
        elif self.data_root is None:
            raise ValueError(
                f"data_root must be the folder of the data set {self.dataset!r}, got None"
            )
        check_choice("split_scheme", self.split_scheme, SPLIT_SCHEMES)
        check_choice("void", self.void, VOID_MODES)
        check_choice("loss", self.loss, (*LOSSES, *RELEASED_LOSSES))
        check_choice("model", self.model, tuple(MODELS))
        for param in self.loss_params:
            if param in GIVEN_TO_LOSSES:
                raise ValueError(
                    f"loss_params must not have {param!r}, which training sets itself, got "
                    f"{self.loss_params!r}"
                )
        _check_loss_params(self.loss, self.loss_params)
        _check_model_params(self.model, self.model_params)

        for name in ("epochs", "batch_size", "devices"):
            self._set(name, check_integer(name, getattr(self, name), minimum=1))
        self._set("seed", check_integer("seed", self.seed, minimum=0))
        self._set("learning_rate", check_number("learning_rate", self.learning_rate, above=0))
        self._set("weight_decay", check_number("weight_decay", self.weight_decay, minimum=0))
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("augment", self.augment, AUGMENTATIONS)
        check_choice("sampler", self.sampler, tuple(SAMPLERS))
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("device", self.device, DEVICES)
        if self.batch_size % self.devices:
            raise ValueError(
                "batch_size, the total over all devices, must be divisible by devices="
                f"{self.devices}, got {self.batch_size}"
            )

    @property
    def accelerator(self) -> str:
        """What ``device`` means on this machine, ``"cuda"`` or ``"cpu"``."""
        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

    def to_dict(self) -> dict[str, Any]:
        """Values fit for JSON; ``RunConfig(**config.to_dict())`` gives the same again."""
        values = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def settings(self) -> dict[str, Any]:
        """The settings that the result depends on: all fields but those of ``PLACEMENT``.

        Parameters of data set, loss and model that were not given stand there with their defaults.
        """
        values = {k: v for k, v in self.to_dict().items() if k not in PLACEMENT}
        of_schema = default_settings(values)
        for part in _PARAMETERS:
            given, defaults = values[part], of_schema[part]
            # 2 for 2.0 is the same run. Lists are class weights of losses, or channels of models.
            floats = {
                k: _as_floats(v)
                for k, v in given.items()
                if isinstance(defaults.get(k), float)
                or (part == "loss_params" and isinstance(v, list | dict))
            }
            values[part] = {**parameter_defaults(part, values), **given, **floats}
        return values

    def identity(self) -> dict[str, Any]:
        """The settings that differ from the defaults of the schema, see :func:`identity`."""
        return identity(self.settings())

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def _plain(name: str, value: Any) -> Any:
    """Parameters as JSON gives them back: a tuple as a list."""
    try:
        return json.loads(json.dumps(value))
    except TypeError as error:
        raise ValueError(
            f"{name} must hold numbers, text, True, False, None, and lists and mappings of them, "
            f"got {value!r} ({error})"
        ) from error


def _as_floats(value: Any) -> Any:
    """The value with each integer in it, such as a class weight, as a float."""
    if isinstance(value, dict):
        return {k: _as_floats(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_as_floats(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _check_loss_params(loss: str, params: Mapping[str, Any]) -> None:
    """Refuse wrong names and values. The number of classes is not known yet, unless a list has it.

    A list of numbers is one for each class: ``class_weights``, of the loss or of one in a mix.
    """
    inner = params.get("params")
    groups = [params, *(inner.values() if isinstance(inner, dict) else ())]
    lengths = [
        len(value)
        for group in groups
        if isinstance(group, Mapping)
        for value in group.values()
        if isinstance(value, list)
    ]
    num_classes = max(lengths, default=0) or 2
    ones = torch.ones(num_classes)
    build_run_loss(loss, num_classes, class_counts=ones, class_images=ones, num_images=1, **params)


_checked_models: set[tuple[Callable, str]] = set()


def _check_model_params(model: str, params: Mapping[str, Any]) -> None:
    """Refuse wrong names and values; what was checked is known, because a grid has many runs."""
    key = (MODELS[model], repr(params))
    if key not in _checked_models:
        with torch.device("meta"):
            build_model(model, num_classes=2, **params)
        _checked_models.add(key)


# Field of parameters -> field that names what has them, what has them by name, and which of its
# arguments are no parameters of a run.
_PARAMETERS: dict[str, tuple[str, Mapping[str, Callable], tuple[str, ...]]] = {
    "data_params": ("dataset", DATASETS, tuple(inspect.signature(SegmentationDataset).parameters)),
    "loss_params": ("loss", RUN_LOSSES, GIVEN_TO_LOSSES),
    "model_params": ("model", MODELS, GIVEN_TO_LOSSES),
}


def identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run itself: those of its settings that differ from the defaults of the schema.

    A setting that the schema does not have is compared with its default in the code.

    Args:
        settings: of a run, all of them, as from :meth:`patlib.RunConfig.settings`.

    Returns:
        The settings that differ. ``data_params``, ``loss_params`` and ``model_params`` hold the
        parameters that differ, and are left out if none does.
    """
    defaults = default_settings(settings)
    different = {}
    for name, value in settings.items():
        if name in _PARAMETERS:
            value = {
                k: v for k, v in value.items() if k not in defaults[name] or v != defaults[name][k]
            }
            if value:
                different[name] = value
        elif name not in defaults or value != defaults[name]:
            different[name] = value
    return different


def complete_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a record, with those added that came into patlib after it was made."""
    defaults = default_settings(settings)
    return {
        **defaults,
        **settings,
        **{name: {**defaults[name], **settings.get(name, {})} for name in _PARAMETERS},
    }


def default_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of the schema, and of the code for what the schema does not have.

    Args:
        settings: name the data set, the loss and the model whose parameters are wanted.
    """
    in_code = {
        f.name: f.default_factory() if f.default is dataclasses.MISSING else f.default
        for f in dataclasses.fields(RunConfig)
        if f.name not in PLACEMENT
    }
    defaults = {**in_code, **SCHEMA_DEFAULTS["settings"]}
    for part, (kind, _, _) in _PARAMETERS.items():
        name = settings.get(kind, defaults[kind])
        defaults[part] = {
            **parameter_defaults(part, {kind: name}),
            **SCHEMA_DEFAULTS[part].get(name, {}),
        }
    return defaults


def parameter_defaults(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults in the code of the parameters of a run's data set, loss or model.

    Args:
        part: ``"data_params"``, ``"loss_params"`` or ``"model_params"``.
        settings: name the data set, the loss and the model. One that patlib does not have (any
            more) has no parameters.
    """
    kind, known, given_elsewhere = _PARAMETERS[part]
    if settings[kind] not in known:
        return {}
    return {
        name: parameter.default
        for name, parameter in inspect.signature(known[settings[kind]]).parameters.items()
        if parameter.default is not parameter.empty and name not in given_elsewhere
    }
