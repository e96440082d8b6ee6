"""Cityscapes (Cordts et al. 2016): streets of 50 cities with 19 classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from torchvision.datasets import Cityscapes as Torchvision

from patlib.data.dataset import IGNORE_INDEX, Sample, SegmentationDataset, by_name

_TRAINED = sorted(
    (c for c in Torchvision.classes if 0 <= c.train_id < IGNORE_INDEX), key=lambda c: c.train_id
)


class Cityscapes(SegmentationDataset):
    """Streets of German and Swiss cities: 2975 / 500 frames of 1024x2048, 19 classes and void.

    The fine annotations. Of the 34 label ids in the mask files, 19 are classes and the others are
    void (``torchvision.datasets.Cityscapes.classes``). The labels of the official test part are
    not public: its masks are void throughout, and it is never read. As is common,
    ``split="test"`` is therefore the official val part (500), and ``"validation"`` are 10 % of the
    official train part, held out with seed 0 (2677 / 298). ``split_scheme="paper"`` cuts train and
    val together (3475).

    Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding",
    CVPR 2016.
    """

    name = "cityscapes"
    label = "Cityscapes"
    default_size = (256, 512)
    class_names = tuple(c.name for c in _TRAINED)
    labels: ClassVar = {
        **{c.id: IGNORE_INDEX for c in Torchvision.classes if c.id >= 0},
        **{c.id: c.train_id for c in _TRAINED},
    }
    layout = (
        "Cityscapes comes from www.cityscapes-dataset.com (after registration: "
        "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip). Expected in data_root:\n"
        "  leftImg8bit/{train,val}/CITY/*_leftImg8bit.png\n"
        "  gtFine/{train,val}/CITY/*_gtFine_labelIds.png    2975 frames in train, 500 in val"
    )

    def official_splits(self) -> dict[str, list[Sample]]:
        return {"train": self._part("train"), "test": self._part("val")}

    def groups(self, samples: Sequence[Sample]) -> list[str]:
        """The cities: 18 in the official train part, of which two are held out."""
        return [sample.id.split("/")[0] for sample in samples]

    def _part(self, part: str) -> list[Sample]:
        # Not by torchvision's reader: it takes the order of the file system, fails on stray
        # files, and unpacks archives that it finds in the folder.
        images = self._find(f"leftImg8bit/{part}", "_leftImg8bit.png")
        masks = self._find(f"gtFine/{part}", "_gtFine_labelIds.png")
        return self._pair(images, masks, f"leftImg8bit/{part}/ and gtFine/{part}/")

    def _find(self, folder: str, ending: str) -> dict[str, Path]:
        """Frame, such as ulm/ulm_000000_000019 -> its file."""
        files = self._folder(folder).glob(f"*/*{ending}")
        return by_name(files, lambda f: f"{f.parent.name}/{f.name.removesuffix(ending)}")
