"""Read and resize images and masks. Training and prediction read images by the same function."""

from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

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
    if not isinstance(source, str | Path | Image.Image):
        raise ValueError(f"image must be a file or an image of PIL, got {type(source).__name__}")
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


def resize(
    image: Image.Image, mask: np.ndarray, image_size: tuple[int, int]
) -> tuple[Image.Image, np.ndarray]:
    """Resize an image (bilinear, antialiased) and its mask (nearest neighbour) to (H, W)."""
    height, width = image_size
    # Nearest neighbour: the pixel under the centre of each new one, in whole numbers.
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image, mask[np.ix_(rows, columns)]


def check_image_size(image_size: Any) -> tuple[int, int]:
    """Return ``image_size`` as a tuple if it is (H, W), two integers >= 32."""
    size = tuple(image_size) if isinstance(image_size, Sequence) else ()
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in size)
    if len(size) != 2 or not whole or min(size) < 32:
        raise ValueError(f"image_size must be (H, W), two integers >= 32, got {image_size!r}")
    return int(size[0]), int(size[1])


def _decode(source: str | Path | Image.Image) -> Image.Image:
    """A copy of an image in memory, EXIF orientation applied."""
    try:
        if isinstance(source, Image.Image):
            return ImageOps.exif_transpose(source)
        with Image.open(Path(source).expanduser()) as image:
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, ... for broken files
        what = "image" if isinstance(source, Image.Image) else source
        raise ValueError(f"{what}: the image file cannot be read ({error})") from error
