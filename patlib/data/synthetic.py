"""The embedded data set."""

from pathlib import Path

import numpy as np
from PIL import Image

from patlib.data.dataset import IGNORE_INDEX, Sample, SegmentationDataset
from patlib.data.scenes import SceneGenerator

NUM_IMAGES = {"train": 240, "validation": 60, "test": 120}


class Synthetic(SegmentationDataset):
    """Street-like scenes with a long tail, drawn from (scene_seed, index): no files, no download.

    240 / 60 / 120 images. What the classes are and how they are drawn:
    :class:`patlib.data.scenes.SceneGenerator`, which takes these parameters.

    Args:
        num_classes: classes, void not counted.
        imbalance: ratio of the pixel shares of the commonest and the rarest class.
        rare_size: typical pixels of one object of a rare class.
        scene_seed: another seed draws another data set.
    """

    name = "synthetic"
    label = "embedded"
    drawn = True
    default_size = (96, 128)
    layout = "It is drawn: data_root must be left out."

    def __init__(
        self,
        root: None = None,
        split: str = "train",
        image_size: tuple[int, int] | None = None,
        split_scheme: str = "official",
        void: str = "ignore",
        num_classes: int = 8,
        imbalance: float = 100.0,
        rare_size: float = 40,
        scene_seed: int = 0,
    ):
        size = self.default_size if image_size is None else image_size
        self._scenes = SceneGenerator(scene_seed, size, num_classes, imbalance, rare_size)
        self.class_names = self._scenes.class_names
        self.labels = {**{c: c for c in range(num_classes)}, IGNORE_INDEX: IGNORE_INDEX}
        super().__init__(root, split, size, split_scheme, void)

    def official_splits(self) -> dict[str, list[Sample]]:
        numbers = iter(range(sum(NUM_IMAGES.values())))
        return {
            split: [Sample(f"{next(numbers):04d}", None, None) for _ in range(n)]
            for split, n in NUM_IMAGES.items()
        }

    def read(self, sample: Sample) -> tuple[Image.Image, np.ndarray]:
        image, mask = self._scenes.draw(int(sample.id))
        return Image.fromarray(image), mask

    def _find_root(self, root: str | Path | None) -> None:
        if root is not None:
            raise ValueError(
                f"data_root must be None for 'synthetic', which is drawn, got {str(root)!r}"
            )
