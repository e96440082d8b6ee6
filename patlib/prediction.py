"""Use a trained network: from a checkpoint to label maps."""

import copy
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from patlib.checkpoints import CHECKPOINT, read_checkpoint
from patlib.checks import check_choice, check_integer
from patlib.config import DEVICES
from patlib.data.images import open_image
from patlib.models import build_model
from patlib.own import CUSTOM, own_name
from patlib.priors import ClassPriors
from patlib.records import CHOSEN, RECORD, RunRecord, different_settings


def load_model(run: str | Path, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run, in evaluation mode, and what else its checkpoint holds.

    Args:
        run: the ``output_dir`` of :func:`patlib.train`, or its ``last.ckpt``.
        model: for a run with a network of your own: one of the same class and arguments. It stays
            as it is.

    Returns:
        The network on the CPU, and a dict with ``config``, ``class_names``, ``image_size`` (H, W),
        ``curves``; ``mask_values``, see :class:`patlib.data.SegmentationDataset` (None also in
        checkpoints made before 0.3.0); and ``priors``, a :class:`patlib.priors.ClassPriors` (None
        in checkpoints made before 0.2.0).

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the file is damaged, or something else, or the record beside it is that of
            another run; ``model`` is missing, or does not fit.
    """
    path = Path(run).expanduser()
    path = path / CHECKPOINT if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"run must be a folder with a {CHECKPOINT}, or the file itself, got {str(run)!r}"
        )
    content = read_checkpoint(path)
    if path.name == CHECKPOINT and path.with_name(RECORD).is_file():
        recorded = RunRecord.load(path.with_name(RECORD)).run()
        if different := different_settings(content["run"], recorded):
            raise ValueError(
                f"{path} and {RECORD} beside it must be of one run, got others: {different}"
            )
    config = content["config"]
    content.setdefault("mask_values", None)
    content["priors"] = ClassPriors(**content["priors"]) if "priors" in content else None
    if config["model"].startswith(CUSTOM):
        network = _own_model(config["model"], model)
    else:
        # The weights come from the checkpoint: nothing is downloaded to be overwritten.
        params = {k: v for k, v in config["model_params"].items() if k != "encoder_weights"}
        network = build_model(config["model"], len(content["class_names"]), **params)
    try:
        network.load_state_dict(content.pop("model"))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the network {config['model']}: {error}") from error
    return network.eval().to(memory_format=torch.channels_last), content


def _own_model(name: str, model: nn.Module | None) -> nn.Module:
    """A copy of the user's network, which must be of the class that was trained."""
    if model is None or own_name(model) != name:
        given = "none" if model is None else own_name(model)
        raise ValueError(
            f"model must be the network that was trained, of class {name.removeprefix(CUSTOM)}, "
            f"got {given.removeprefix(CUSTOM)}"
        )
    return copy.deepcopy(model)


def chosen_shift(run: str | Path) -> dict[str, float] | None:
    """The prior shift that validation chose: of a comparison's ``best/`` the one of its report.

    Args:
        run: the ``output_dir`` of :func:`patlib.train`, or its ``last.ckpt``.

    Returns:
        ``{"tau": τ}`` or ``{"kappa": κ}``; None for no shift.

    Raises:
        FileNotFoundError: the run has no record to choose from.
    """
    folder = Path(run).expanduser()
    folder = folder if folder.is_dir() else folder.parent
    if (folder / CHOSEN).is_file():
        shift = json.loads((folder / CHOSEN).read_text())["prior_shift"]
    elif (folder / RECORD).is_file():
        shift = RunRecord.load(folder / RECORD).result["shifted"]["any"]["prior_shift"]
    else:
        raise FileNotFoundError(
            f"prior_shift='chosen' needs the record of the run, {folder / RECORD}"
        )
    return shift if any(shift.values()) else None


def shift_of(
    run: str | Path, priors: ClassPriors | None, prior_shift: Mapping[str, float]
) -> Tensor:
    """What a shift subtracts from the logits, float32 (L, 1, 1).

    Args:
        run, prior_shift: see :class:`Predictor`.
        priors: of the run, from :func:`load_model`.

    Raises:
        ValueError: the run has no priors, or the shift is not one of these.
    """
    if priors is None:
        raise ValueError(
            f"prior_shift must be None for {str(run)!r}, made before 0.2.0 without class "
            f"priors, got {prior_shift!r}"
        )
    return priors.shift(prior_shift).float()[:, None, None]


class Predictor:
    """Labels images with a trained network, which is loaded once::

        predictor = Predictor("runs/camvid-pat")
        for file, labels in zip(files, predictor(files)):
            ...

    Each image is resized to the size that the network was trained at; the logits are resized
    (bilinearly) back to the size of the image. Its EXIF orientation is applied first.

    Args:
        run: the ``output_dir`` of :func:`patlib.train`, or its ``last.ckpt``.
        device: ``"auto"`` (CUDA if there is one), ``"cpu"`` or ``"cuda"``.
        batch_size: images at a time. As many results are in memory, however many images there are.
        prior_shift: ``{"tau": τ}`` or ``{"kappa": κ}``: label under another class prior than the
            one trained under, see :mod:`patlib.priors`; None for none; ``"chosen"`` for the one
            that validation chose (of a comparison's ``best/`` the one that its report recommends).
        model: see :func:`load_model`.

    Attributes:
        class_names: names of the classes 0 ... L-1.
        mask_values: of each class the value, or colour, in the masks; None for class numbers.
        image_size: (H, W) that images are resized to.
        shift: what is subtracted from the logits, (L, 1, 1); None for nothing.

    Raises:
        FileNotFoundError, ValueError: see :func:`load_model`; or an argument is not allowed.
    """

    def __init__(
        self,
        run: str | Path,
        device: str = "auto",
        batch_size: int = 8,
        prior_shift: Mapping[str, float] | str | None = None,
        model: nn.Module | None = None,
    ):
        check_choice("device", device, DEVICES)
        self.batch_size = check_integer("batch_size", batch_size, minimum=1)
        cuda = torch.cuda.is_available()
        if device == "cuda" and not cuda:
            raise ValueError("device must be one that this machine has, got 'cuda'")
        self.device = torch.device("cuda" if cuda and device != "cpu" else "cpu")
        network, content = load_model(run, model)
        self.model = network.to(self.device)
        self.shift: Tensor | None = None
        if prior_shift == "chosen":
            prior_shift = chosen_shift(run)
        if prior_shift is not None:
            self.shift = shift_of(run, content["priors"], prior_shift).to(self.device)
        self.class_names: tuple[str, ...] = tuple(content["class_names"])
        values = content["mask_values"]
        self.mask_values = None if values is None else tuple(values)
        self.image_size: tuple[int, int] = tuple(content["image_size"])

    def __call__(self, images: Iterable[str | Path | Image.Image]) -> Iterator[np.ndarray]:
        """Label images, in their order, each when its batch is asked for.

        Args:
            images: files, or images of PIL, of any sizes.

        Returns:
            An iterator over uint8 (H, W) arrays of class numbers, each of its image's own size.

        Raises:
            ValueError: an image cannot be read, or is something else.
            FileNotFoundError: there is no such file.
        """
        if isinstance(images, str | Path | Image.Image):
            raise ValueError(f"images must be an iterable of images, got one: {images!r}")
        return self.label(map(open_image, images))

    def label(self, images: Iterator[Image.Image]) -> Iterator[np.ndarray]:
        """Label images that are open: RGB, without EXIF orientation, see calling the predictor."""
        while batch := list(itertools.islice(images, self.batch_size)):
            yield from self._label_batch(batch)

    @torch.no_grad()
    def _label_batch(self, images: list[Image.Image]) -> list[np.ndarray]:
        height, width = self.image_size
        small = [i.resize((width, height), Image.Resampling.BILINEAR) for i in images]
        pixels = torch.from_numpy(np.stack([np.asarray(i) for i in small])).to(self.device)
        # (B, H, W, 3) seen as (B, 3, H, W) *is* channels_last.
        logits = self.model(pixels.permute(0, 3, 1, 2).float() / 255)
        if self.shift is not None:
            logits = logits - self.shift
        labels: list[np.ndarray] = []
        # Neighbours of one size together: slices stay channels_last, in which argmax is fast.
        for size, group in itertools.groupby((image.height, image.width) for image in images):
            part = logits[len(labels) : len(labels) + len(list(group))]
            large = F.interpolate(part, size=size, mode="bilinear")
            labels += [*large.argmax(1).to("cpu", torch.uint8).numpy()]
        return labels


def predict(
    run: str | Path,
    image: str | Path | Image.Image,
    prior_shift: Mapping[str, float] | str | None = None,
) -> np.ndarray:
    """The class of every pixel of an image: ``labels = predict("runs/default", "street.jpg")``.

    For several images make a :class:`Predictor`, which loads the network once.

    Args:
        run: the ``output_dir`` of :func:`patlib.train`, or its ``last.ckpt``.
        image: a file, or an image of PIL.
        prior_shift: see :class:`Predictor`.

    Returns:
        uint8 (H, W) of class numbers; ``load_model(run)[1]["class_names"]`` names them.

    Raises:
        FileNotFoundError, ValueError: see :class:`Predictor`.
    """
    return next(Predictor(run, batch_size=1, prior_shift=prior_shift)([image]))
