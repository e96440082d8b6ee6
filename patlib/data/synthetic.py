"""The embedded data set."""

from PIL import Image

from patlib.data.dataset import IGNORE_INDEX, Sample, SegmentationDataset
from patlib.data.scenes import SceneGenerator, class_names

NUM_IMAGES = {"train": 240, "validation": 60, "test": 120}


class Synthetic(SegmentationDataset):
    """Street-like scenes with a long tail, drawn from (scene_seed, index): no files, no download.

    240 / 60 / 120 images. What the classes are and how they are drawn:
    :class:`patlib.data.scenes.SceneGenerator`.

    Args:
        num_classes: classes, void not counted.
        imbalance: ratio of the pixel shares of the commonest and the rarest class.
        rare_size: typical pixels of one object of a rare class.
        scene_seed: another seed draws another data set.
    """

    name = "synthetic"
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
        self.class_names = class_names(num_classes)
        self.labels = {**{c: c for c in range(num_classes)}, IGNORE_INDEX: IGNORE_INDEX}
        self._settings = dict(num_classes=num_classes, imbalance=imbalance, rare_size=rare_size)
        self._scene_seed = scene_seed
        super().__init__(root, split, image_size, split_scheme, void)
        self._scenes = SceneGenerator(scene_seed, self.image_size, **self._settings)

    def official_splits(self):
        samples, first = {}, 0
        for split, n in NUM_IMAGES.items():
            samples[split] = [Sample(f"{i:04d}", None, None) for i in range(first, first + n)]
            first += n
        return samples

    def read(self, sample):
        image, mask = self._scenes.draw(int(sample.id))
        return Image.fromarray(image), mask

    def files(self):
        return []

    def _find_root(self, root):
        if root is not None:
            raise ValueError(
                f"data_root={str(root)!r} is not allowed: 'synthetic' is drawn and has no folder"
            )

    def _check_files(self):
        pass
