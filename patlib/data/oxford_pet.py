"""Oxford-IIIT Pet (Parkhi et al. 2012): body, background and boundary of cats and dogs."""

from typing import ClassVar

from patlib.data.dataset import Sample, SegmentationDataset


class OxfordPet(SegmentationDataset):
    """Photographs of 37 breeds, 3680 / 3669 images, 3 classes by the trimaps, no void.

    Source: Parkhi, Vedaldi, Zisserman and Jawahar, "Cats and Dogs", CVPR 2012.
    """

    name = "oxford_pet"
    label = "Oxford-IIIT Pet"
    has_void = False
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
        base = self.root / "oxford-iiit-pet"
        base = base if base.is_dir() else self.root
        images, masks = base / "images", base / "annotations" / "trimaps"
        names = base / "annotations" / f"{part}.txt"
        for wanted in (images, masks, names):
            if not wanted.exists():
                raise self._incomplete(f"there is no {wanted.relative_to(base)}")
        lines = names.read_text().splitlines()
        ids = [line.split()[0] for line in lines if line.strip()]
        return [Sample(i, images / f"{i}.jpg", masks / f"{i}.png") for i in ids]
