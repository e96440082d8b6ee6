"""NYU Depth v2 (Silberman et al. 2012): indoor scenes with 13 classes."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
from PIL import Image

from patlib.data.dataset import IGNORE_INDEX, Sample, SegmentationDataset, by_name

MAT = "nyu_depth_v2_labeled.mat"
NUM_FRAMES = 1449

_TABLES = json.loads(Path(__file__).with_name("classes.json").read_text())
#: label id of the distribution (0-894) -> one of the 13 classes (1-13), or 0 for unlabelled
TO_13 = np.append(0, np.append(0, _TABLES["to13"])[_TABLES["to40"]]).astype(np.uint8)
#: the frames of the official test part, counted from 1; the others are for training
TEST_FRAMES = frozenset(_TABLES["test"])


class NYUv2(SegmentationDataset):
    """Rooms seen by a Kinect: 795 / 654 frames of 480x640, 13 classes and void.

    ``data_root`` is the official file ``nyu_depth_v2_labeled.mat``, a folder that holds it, or the
    folder of image files that ``python -m patlib.data.nyuv2`` makes of it. If a folder is both, the
    official file counts. Its 894 label ids become the 40 classes of Gupta et al. 2013, and
    these the 13 of Couprie et al. 2013; id 0 is void, about 17 % of the pixels. The white border
    of the frames (about 8 pixels, mostly void) is left as it is.

    A ``.mat`` of fewer than 1449 frames is taken as the first of them: the official split goes by
    the number of the frame.

    Sources: Silberman, Hoiem, Kohli and Fergus, "Indoor Segmentation and Support Inference from
    RGBD Images", ECCV 2012. Gupta, Arbelaez and Malik, "Perceptual Organization and Recognition of
    Indoor Scenes from RGB-D Images", CVPR 2013. Couprie, Farabet, Najman and LeCun, "Indoor
    Semantic Segmentation using Depth Information", ICLR 2013.
    """

    name = "nyuv2"
    label = "NYUv2"
    default_size = (256, 340)
    class_names = tuple(_TABLES["names13"])
    labels: ClassVar = {0: IGNORE_INDEX, **{c + 1: c for c in range(13)}}
    layout = (
        "NYU Depth v2 comes from cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html (the labelled "
        f"dataset, {MAT}, 2.8 GB). Expected as data_root: that file, a folder that holds it, or "
        f"the folder that `python -m patlib.data.nyuv2 {MAT} FOLDER` makes of it:\n"
        "  images/0001.png ... 1449.png     the frames (JPEG frames are read too)\n"
        "  labels13/0001.png ... 1449.png   their classes: 0 void, 1 bed ... 13 window\n"
        "  splits.csv                       index,split with the rows 1,test ... 1449,train"
    )

    def official_splits(self) -> dict[str, list[Sample]]:
        mat = self.root if self.root.is_file() else self.root / MAT
        self._mat = mat if mat.is_file() else None
        return self._mat_splits() if self._mat else self._prepared_splits()

    def groups(self, samples: Sequence[Sample]) -> list[int]:
        """The runs of consecutive frames, numbered: 123 in the official training part.

        Frames are in the order of the scenes, and the official parts are divided by scene. Between
        two runs lie frames of the other part, so that no two runs show the same room.
        """
        frames = np.array([int(sample.id) for sample in samples])
        return np.cumsum(np.diff(frames, prepend=frames[:1] - 1) > 1).tolist()

    def read(self, sample: Sample) -> tuple[Image.Image, np.ndarray]:
        if self._mat is None:
            return super().read(sample)
        index = int(sample.id) - 1
        # Opened for every frame (about a millisecond): nothing to share between threads, to pickle,
        # or to inherit by a fork.
        with self._open_mat() as file:
            try:
                image, ids = file["images"][index], file["labels"][index]
            except OSError as error:
                raise ValueError(
                    f"{self._mat}: frame {sample.id} cannot be read ({error})"
                ) from error
        if ids.max() >= len(TO_13):
            raise ValueError(
                f"{self._mat}: the label ids must be 0 to {len(TO_13) - 1}, got "
                f"{np.unique(ids[ids >= len(TO_13)])[:8].tolist()} in frame {sample.id}"
            )
        # MATLAB stores columns first: (3, W, H) and (W, H) here.
        return Image.fromarray(np.ascontiguousarray(image.transpose(2, 1, 0))), TO_13[ids.T]

    def _find_root(self, root: str | Path | None) -> Path:
        if root is not None and Path(root).expanduser().is_file():
            return Path(root).expanduser().absolute()
        return super()._find_root(root)

    # -- the official file -----------------------------------------------------------------------

    def _open_mat(self) -> h5py.File:
        try:
            return h5py.File(self._mat, "r")
        except OSError as error:
            raise ValueError(f"{self._mat}: not a whole HDF5 file ({error})") from error

    def _check_own(self, file: h5py.File) -> None:
        """Refuse arrays that lie in other files: HDF5 can name any file of the machine."""
        for name in ("images", "labels"):
            linked = name in file and not isinstance(file.get(name, getlink=True), h5py.HardLink)
            if (
                linked
                or getattr(file.get(name), "external", None)
                or (getattr(file.get(name), "is_virtual", False))
            ):
                raise ValueError(
                    f"{self._mat}: its {name} must lie in the file itself, got a link to another"
                )

    def _mat_splits(self) -> dict[str, list[Sample]]:
        with self._open_mat() as file:
            try:
                self._check_own(file)
                images, labels = (getattr(file.get(k), "shape", None) for k in ("images", "labels"))
            except (OSError, RuntimeError) as error:  # of HDF5, for damaged tables of contents
                raise ValueError(f"{self._mat}: not a whole HDF5 file ({error})") from error
        n, *size = labels or (0,)
        if images != (n, 3, *size) or len(size) != 2 or not 0 < n <= NUM_FRAMES:
            raise ValueError(
                f"{self._mat}: it must hold images (N, 3, W, H) and labels (N, W, H) of up to "
                f"{NUM_FRAMES} frames, got images {images} and labels {labels}\n{self.layout}"
            )
        splits = {"train": [], "test": []}
        for frame in range(1, n + 1):
            sample = Sample(f"{frame:04d}", self._mat, self._mat)
            splits["test" if frame in TEST_FRAMES else "train"].append(sample)
        return splits

    # -- the prepared folder ---------------------------------------------------------------------

    def _prepared_splits(self) -> dict[str, list[Sample]]:
        for wanted in ("images", "labels13", "splits.csv"):
            if not (self.root / wanted).exists():
                raise self._incomplete(f"there is neither {MAT} nor {wanted}")
        frames = (self.root / "images").iterdir()
        images = by_name(f for f in frames if f.suffix in (".png", ".jpg"))
        splits = {"train": [], "test": []}
        for frame, split in self._read_csv(self.root / "splits.csv").items():
            name = f"{frame:04d}"
            image = images.get(name, self.root / "images" / f"{name}.png")
            splits[split].append(Sample(name, image, self.root / "labels13" / f"{name}.png"))
        return splits

    @staticmethod
    def _read_csv(path: Path) -> dict[int, str]:
        """Frame -> "train" or "test", in ascending order."""
        header, *rows = path.read_text(encoding="utf-8").splitlines() or [""]
        splits = {}
        for line, row in enumerate(rows, start=2):
            match = re.fullmatch(r"(\d+),(train|test)", row)
            if header != "index,split" or not match or int(match[1]) in splits:
                raise ValueError(
                    f"{path}: the lines must be index,split and then, once for each frame, its "
                    f"number and train or test, got {row!r} in line {line}"
                )
            splits[int(match[1])] = match[2]
        return dict(sorted(splits.items()))
