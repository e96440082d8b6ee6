"""Oxford-IIIT Pet (Parkhi et al. 2012): body, background and boundary of cats and dogs."""

from pathlib import Path
from typing import ClassVar

from torchvision.datasets import OxfordIIITPet

from patlib.data.dataset import Sample, SegmentationDataset


class OxfordPet(SegmentationDataset):
    """Photographs of 37 breeds, 3680 / 3669 images, 3 classes by the trimaps, no void.

    Source: Parkhi, Vedaldi, Zisserman and Jawahar, "Cats and Dogs", CVPR 2012.
    """

    name = "oxford_pet"
    default_size = (256, 256)
    class_names = ("body", "background", "boundary")
    labels: ClassVar = {1: 0, 2: 1, 3: 2}
    layout = (
        "Oxford-IIIT Pet comes from the Visual Geometry Group, Oxford "
        "(torchvision.datasets.OxfordIIITPet(root, download=True) fetches it). data_root is "
        "the folder oxford-iiit-pet, or the one that holds it. Expected in oxford-iiit-pet:\n"
        "  images/*.jpg\n"
        "  annotations/trainval.txt  annotations/test.txt  annotations/trimaps/*.png"
    )

    def official_splits(self) -> dict[str, list[Sample]]:
        return {"train": self._part("trainval"), "test": self._part("test")}

    def _part(self, part: str) -> list[Sample]:
        # torchvision wants the parent of a folder of this very name.
        base = self.root.absolute() / "oxford-iiit-pet"
        if not base.is_dir():
            base = base.parent
        if base.name != "oxford-iiit-pet":
            raise self._incomplete("it neither is nor holds a folder oxford-iiit-pet")
        for wanted in ("images", "annotations/trimaps", f"annotations/{part}.txt"):
            if not (base / wanted).exists():
                raise self._incomplete(f"there is no {wanted}")
        reader = OxfordIIITPet(base.parent, split=part, target_types="segmentation")
        return [
            Sample(Path(image).stem, Path(image), Path(mask))
            for image, mask in zip(reader._images, reader._segs, strict=True)
        ]
