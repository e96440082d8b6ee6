"""Use a trained network: from a checkpoint to label maps."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from patlib.models import build_model


def read_checkpoint(path: Path) -> dict:
    """What a checkpoint holds; ValueError that names the file if it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # zip, pickle and torch each have their own
        raise ValueError(
            f"{path} is not a checkpoint, or a damaged one: remove it to start anew ({error})"
        ) from error


def load_model(checkpoint: str | Path) -> tuple[nn.Module, dict]:
    """The network of a checkpoint, in evaluation mode, and what else the file holds.

    Args:
        checkpoint: a ``last.ckpt`` written by :func:`patlib.train`, or its folder.

    Returns:
        The model on the CPU, and a dict with ``config``, ``class_names``, ``image_size`` (H, W)
        and ``curves``.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the file is damaged, or something else.
    """
    path = Path(checkpoint).expanduser()
    path = path / "last.ckpt" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {str(path)!r}: it takes the last.ckpt of a run, or its folder"
        )
    content = read_checkpoint(path)
    config = content["config"]
    # The weights come from the checkpoint: nothing is downloaded to be overwritten.
    params = {k: v for k, v in config["model_params"].items() if k != "encoder_weights"}
    model = build_model(config["model"], len(content["class_names"]), **params)
    model.load_state_dict(content.pop("model"))
    return model.eval().to(memory_format=torch.channels_last), content


@torch.no_grad()
def predict(checkpoint: str | Path, image: str | Path | Image.Image) -> np.ndarray:
    """The class of every pixel of an image: ``labels = predict("runs/default", "street.jpg")``.

    The image is resized to the size that the network was trained at; the logits are resized
    (bilinearly) back to the image's own size.

    Args:
        checkpoint: a ``last.ckpt`` written by :func:`patlib.train`, or its folder.
        image: a file, or an image of PIL.

    Returns:
        uint8 (H, W) of class numbers; ``load_model(checkpoint)[1]["class_names"]`` names them.
    """
    model, content = load_model(checkpoint)
    if isinstance(image, str | Path):
        image = Image.open(Path(image).expanduser())
    elif not isinstance(image, Image.Image):
        raise ValueError(
            f"image of {type(image)} is not allowed: it takes a file or an image of PIL"
        )
    image = image.convert("RGB")
    height, width = content["image_size"]
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(resized.copy()).permute(2, 0, 1)[None].float() / 255
    logits = F.interpolate(model(pixels), size=(image.height, image.width), mode="bilinear")
    return logits.argmax(1)[0].to(torch.uint8).numpy()
