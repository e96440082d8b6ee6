"""Checkpoints: the state of a run after its last epoch, and after the one before."""

import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from patlib.files import check_seal, seal_zip, write_whole

#: the files in the folder of a run
CHECKPOINT, PREVIOUS = "last.ckpt", "previous.ckpt"

# What a checkpoint holds. "run" and "priors" came in 0.2.0, "checksum" in 0.3.
_CONTENT = {
    "config",
    "run",
    "class_names",
    "image_size",
    "curves",
    "seconds",
    "model",
    "optimizer",
}


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint, whole or not at all; the one of before stays, as ``previous.ckpt``.

    The file ends in the SHA-256 of its content, and says inside that it does.
    """
    file = io.BytesIO()
    torch.save({**content, "checksum": "sha256"}, file)
    with write_whole(path, keep=path.with_name(PREVIOUS)) as whole:
        whole.write(seal_zip(file.getvalue()))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, of this version or of 0.2.0. Nothing that it holds is executed.

    The SHA-256 at its end is checked. A checkpoint made by 0.2.0 has none: of it the CRC-32 of each
    tensor is checked.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not a checkpoint; the message names the file and what to do.
    """
    data = path.read_bytes()
    try:
        sealed = check_seal(data)
        if not sealed:  # torch.load does not look at the sums of a ZIP file
            with zipfile.ZipFile(io.BytesIO(data)) as file:
                if damaged := file.testzip():
                    raise ValueError(f"the part {damaged} is damaged")
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if content.get("checksum") and not sealed:
            raise ValueError("the SHA-256 at its end is missing")
        if missing := _CONTENT - set(content):
            raise ValueError(f"{min(missing)} is missing, as in those made before 0.2.0")
    except Exception as error:  # zip, pickle and torch each have their own
        raise ValueError(
            f"{path} is not a checkpoint, or a damaged one ({error}). To go on, remove it, and "
            f"record.json if that is there, and train again: from {PREVIOUS} beside it, or "
            "without that from the first epoch"
        ) from error
    return content


def fall_back(folder: Path) -> None:
    """Where the last checkpoint of a folder is damaged or missing, put the one before in its place.

    A warning says so. The run then repeats one epoch.

    Raises:
        ValueError: both are damaged, or the only one; the message names the last.
    """
    last, previous = folder / CHECKPOINT, folder / PREVIOUS
    if not last.exists() and not previous.exists():
        return
    try:
        read_checkpoint(last)
        return
    except FileNotFoundError:
        read_checkpoint(previous)
    except ValueError as error:
        try:
            read_checkpoint(previous)
        except (FileNotFoundError, ValueError):
            raise error from None
        warnings.warn(f"{error}. Training goes on from {PREVIOUS} now", stacklevel=3)
    os.replace(previous, last)
