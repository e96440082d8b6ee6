"""Read image and mask files. Training and prediction read images by the same function."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def open_image(source: str | Path | Image.Image) -> Image.Image:
    """Read an image as 8-bit RGB, in the orientation in which viewers show it.

    The EXIF orientation is applied to the pixels. Grey, palette, CMYK and other images of 8 bits
    or fewer a channel are converted to RGB; transparency is dropped.

    Args:
        source: an image file, or an image of PIL, which is left unchanged.

    Returns:
        A new image of mode ``"RGB"`` without EXIF orientation.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: ``source`` is something else, the file is damaged or not an image, or its pixels
            are wider than 8 bits (modes I, I;16 and F: PIL would clip them to white).
    """
    image = _decode(source)
    what = "image" if isinstance(source, Image.Image) else source
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"{what}: an image must have 8 bits a channel, got mode {image.mode!r}")
    try:
        return image.convert("RGB")
    except ValueError as error:  # a mode that PIL cannot convert, such as LAB
        raise ValueError(
            f"{what}: an image must be convertible to RGB, got mode {image.mode!r}"
        ) from error


def open_mask(file: str | Path) -> np.ndarray:
    """Read the values of a mask file (of a palette image: the indices), EXIF orientation applied.

    Returns:
        (H, W) of bool, uint8, uint16 or int32; (H, W, C) if the file has several channels.

    Raises:
        FileNotFoundError, ValueError: as in :func:`open_image`.
    """
    return np.asarray(_decode(file))


def _decode(source: str | Path | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return _orient(source, "image")
    if not isinstance(source, str | Path):
        raise ValueError(f"image must be a file or an image of PIL, got {type(source).__name__}")
    try:
        image = Image.open(Path(source).expanduser())
    except FileNotFoundError:
        raise
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, ... for broken files
        raise ValueError(f"{source}: the image file cannot be read ({error})") from error
    with image:
        return _orient(image, source)


def _orient(image: Image.Image, what: object) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)  # always a copy
    except Exception as error:
        raise ValueError(f"{what}: the image file cannot be read ({error})") from error
