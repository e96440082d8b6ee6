"""A small folder of drawn images, for a comparison without data of one's own."""

from pathlib import Path

import yaml
from PIL import Image

from patlib.data import Synthetic
from patlib.data.cache import whole_folder

IMAGES = 96


def write_folder(folder: str | Path, images: int = IMAGES) -> Path:
    """Draw scenes into ``images/`` and ``masks/``, with a ``classes.yaml``; done once.

    Returns:
        The folder.
    """
    folder = Path(folder).expanduser()
    if folder.is_dir():
        return folder
    drawn = Synthetic(image_size=(64, 96), num_classes=6, imbalance=30, rare_size=60)
    with whole_folder(folder) as beside:
        for kind in ("images", "masks"):
            (beside / kind).mkdir()
        for i in range(images):
            image, mask = drawn.arrays(i)
            Image.fromarray(image).save(beside / "images" / f"{i:03d}.png")
            Image.fromarray(mask).save(beside / "masks" / f"{i:03d}.png")
        content = {"classes": list(drawn.class_names), "void": [255], "image_size": [64, 96]}
        (beside / "classes.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder
