"""What becomes of bad data: each case is one row of the table in book/bad_input.md.

``python tests/test_bad_input.py`` writes the table anew; read what changed.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import write_image
from patlib import RunConfig, train
from patlib.data import build_dataset, load_arrays

PAGE = Path(__file__).parents[1] / "book" / "bad_input.md"
SIZE = (40, 44)
CASES = {}


def case(name, dataset="folder", split="train"):
    """A case: the function spoils the data in a folder, or what it returns is to be read."""

    def add(spoil):
        assert name not in CASES
        CASES[name] = (dataset, split, spoil)
        return spoil

    return add


def write_folder(root):
    rng = np.random.default_rng(0)
    for split, n in {"train": 3, "validation": 1, "test": 2}.items():
        for i in range(n):
            image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            write_image(root / "images" / split / f"{i}.png", image)
            mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), SIZE)
            write_image(root / "masks" / split / f"{i}.png", mask)
    (root / "classes.yaml").write_text(
        "classes: [road, car, sign]\nvoid: [255]\nimage_size: [32, 32]\n"
    )


def write_mat(root):
    rng = np.random.default_rng(0)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = rng.integers(0, 256, (12, 3, *SIZE), dtype=np.uint8)
        file["labels"] = rng.integers(0, 895, (12, *SIZE), dtype=np.uint16)


def mat(root):
    return root / "nyu_depth_v2_labeled.mat"


def cut(file, share=0.5):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def image(root, number=1):
    return root / "images" / "train" / f"{number}.png"


def mask(root, number=1):
    return root / "masks" / "train" / f"{number}.png"


def changed_mask(root, values, **kind):
    with Image.open(mask(root)) as file:
        array = np.asarray(file)
    Image.fromarray(values(array)).save(mask(root), **kind)


# -- files ---------------------------------------------------------------------------------------


@case("an image that is cut off")
def _(root):
    cut(image(root))


@case("a mask that is cut off")
def _(root):
    cut(mask(root))


@case("an empty file")
def _(root):
    image(root).write_bytes(b"")


@case("a file that is no image, under the name of one")
def _(root):
    image(root).write_text("<html>Not found</html>")


@case("a file that may not be read")
def _(root):
    image(root).chmod(0)


@case("a link to a file that is not there")
def _(root):
    image(root).unlink()
    image(root).symlink_to(root / "nowhere.png")


@case("a link to a file outside of the folder: it is read", split="test")
def _(root):
    outside = root.parent / "outside.png"
    shutil.move(root / "images" / "test" / "0.png", outside)
    (root / "images" / "test" / "0.png").symlink_to(outside)


@case("an image of more than 178 megapixels")
def _(root):
    Image.new("1", (15_000, 15_000)).save(image(root))


# -- images --------------------------------------------------------------------------------------


@case("a grey, a palette or a transparent image: it is read as RGB")
def _(root):
    for number, mode in enumerate(("L", "P", "RGBA")):
        with Image.open(image(root, number)) as file:
            file.convert(mode).save(image(root, number))


@case("an image of 16 bits a channel")
def _(root):
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(image(root))


@case("an image of floating-point numbers, such as NaN")
def _(root):
    image(root).unlink()
    Image.fromarray(np.full(SIZE, np.nan, np.float32)).save(image(root).with_suffix(".tif"))


@case("an image of 1x1 pixel with its mask: it is resized as any other")
def _(root):
    write_image(image(root), np.zeros((1, 1, 3), np.uint8))
    write_image(mask(root), np.ones((1, 1), np.uint8))


@case("names with spaces, letters of any script and emoji: they are read")
def _(root):
    for folder in ("images", "masks"):
        for number, name in enumerate(("a b", "Straße-街-شارع", "🚗")):
            path = root / folder / "train" / f"{number}.png"
            path.rename(path.with_name(f"{name}.png"))


@case("the name of an image in composed, of its mask in decomposed Unicode: they are a pair")
def _(root):
    image(root).rename(image(root).with_name("caf\u00e9.png"))
    mask(root).rename(mask(root).with_name("cafe\u0301.png"))


# -- masks ---------------------------------------------------------------------------------------


@case("a mask of another size than its image")
def _(root):
    changed_mask(root, lambda array: array[:-1])


@case("a palette mask: its indices are the classes")
def _(root):
    with Image.open(mask(root)) as file:
        palette = Image.fromarray(np.asarray(file))
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    palette.save(mask(root))


@case("an RGB mask, where `classes.yaml` names no colours")
def _(root):
    changed_mask(root, lambda array: np.stack([array] * 3, 2))


@case("a 16-bit mask with values of classes: it is read as one of 8 bits")
def _(root):
    changed_mask(root, lambda array: array.astype(np.uint16))


@case("a 16-bit mask with larger values")
def _(root):
    changed_mask(root, lambda array: array.astype(np.uint16) + 256)


@case("a mask value that is no class")
def _(root):
    changed_mask(root, lambda array: np.where(array == 2, 7, array).astype(np.uint8))


@case("masks of void only, in every training image")
def _(root):
    for number in range(3):
        write_image(mask(root, number), np.full(SIZE, 255, np.uint8))


# -- folders -------------------------------------------------------------------------------------


@case("a folder that is not there")
def _(root):
    shutil.rmtree(root)


@case("a file in the place of the folder")
def _(root):
    shutil.rmtree(root)
    root.write_text("")


@case("an empty folder")
def _(root):
    shutil.rmtree(root)
    root.mkdir()


@case("a split without images")
def _(root):
    for folder in ("images", "masks"):
        for file in (root / folder / "train").iterdir():
            file.unlink()


@case("an image without a mask")
def _(root):
    mask(root).unlink()


@case("a mask without an image")
def _(root):
    image(root).unlink()


@case("two images of the same name")
def _(root):
    with Image.open(image(root)) as file:
        file.save(image(root).with_suffix(".jpg"))


@case("hidden files, such as .DS_Store: they are left out")
def _(root):
    for folder in ("images", "masks"):
        for name in (".DS_Store", ".1.png"):
            (root / folder / "train" / name).write_bytes(b"x")


@case("a `classes.yaml` that is no YAML")
def _(root):
    (root / "classes.yaml").write_text("classes: [a, b")


@case("a `classes.yaml` that is to execute something")
def _(root):
    executed = root / "executed"
    (root / "classes.yaml").write_text(
        f"classes: !!python/object/apply:os.system ['touch {executed}']\n"
    )
    return lambda: not executed.exists()


# -- the official file of NYUv2 ------------------------------------------------------------------


@case("a `.mat` that is cut off", "nyuv2")
def _(root):
    cut(mat(root))


@case("a `.mat` without its beginning", "nyuv2")
def _(root):
    mat(root).write_bytes(mat(root).read_bytes()[3000:])


@case("a `.mat` that lacks a field", "nyuv2")
def _(root):
    with h5py.File(mat(root), "r+") as file:
        del file["labels"]


@case("a `.mat` whose fields do not fit each other", "nyuv2")
def _(root):
    with h5py.File(mat(root), "r+") as file:
        labels = file["labels"][:, 1:]
        del file["labels"]
        file["labels"] = labels


@case("a `.mat` with a label id that does not exist", "nyuv2")
def _(root):
    with h5py.File(mat(root), "r+") as file:
        file["labels"][:] = 895


@case("a `.mat` whose field is a link to a file outside", "nyuv2")
def _(root):
    outside = root.parent / "outside.mat"
    shutil.copy(mat(root), outside)
    with h5py.File(mat(root), "r+") as file:
        del file["images"]
        file["images"] = h5py.ExternalLink(str(outside), "images")


@case("a `.mat` whose field has its bytes in a file outside", "nyuv2")
def _(root):
    outside = root.parent / "outside.bin"
    outside.write_bytes(bytes(12 * 3 * SIZE[0] * SIZE[1]))
    with h5py.File(mat(root), "r+") as file:
        del file["images"]
        external = [(str(outside), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("images", (12, 3, *SIZE), np.uint8, external=external)


# -- the cache -----------------------------------------------------------------------------------


def entries(root):
    return sorted((root.parent / "cache").glob("folder-*"))


def filled(root, split="train"):
    load_arrays(build_dataset("folder", root, split))
    return entries(root)


@case("a damaged entry of the cache")
def _(root):
    (entry,) = filled(root)
    data = bytearray((entry / "masks.npy").read_bytes())
    data[-7] ^= 1
    (entry / "masks.npy").write_bytes(data)


@case("an entry of the cache that lacks a file")
def _(root):
    (entry,) = filled(root)
    (entry / "masks.npy").unlink()


@case("an entry of the cache that holds other files than its name says")
def _(root):
    (own,) = filled(root)
    shutil.copytree(root, root.parent / "other")
    write_image(root.parent / "other" / "masks" / "train" / "0.png", np.zeros(SIZE, np.uint8))
    load_arrays(build_dataset("folder", root.parent / "other", "train"))
    (other,) = set(entries(root)) - {own}
    shutil.rmtree(own)
    other.rename(own)


@case("an entry of the cache of files that were changed since: they are read again")
def _(root):
    filled(root)
    changed_mask(root, lambda array: np.where(array == 2, 1, array).astype(np.uint8))
    return lambda: len(entries(root)) == 2


@case("an entry of the cache of another version: the files are read again")
def _(root):
    (entry,) = filled(root)
    entry.rename(entry.with_name("folder-train-0123456789abcdef"))
    return lambda: len(entries(root)) == 2


# -- the table -----------------------------------------------------------------------------------


def outcome(name, root):
    """What comes of a case, in words. Whatever is refused, is before anything is trained."""
    dataset, split, spoil = CASES[name]
    root.mkdir()
    (write_mat if dataset == "nyuv2" else write_folder)(root)
    check = spoil(root) or (lambda: True)
    size = SIZE if dataset == "nyuv2" else None
    user = os.geteuid()
    if name == "a file that may not be read" and user == 0:
        os.seteuid(65534)  # root may read everything
    try:
        read = build_dataset(dataset, root, split, size)
        arrays = load_arrays(read)
        if name.startswith("masks of void only"):
            train(
                RunConfig("folder", str(root), batch_size=2, output_dir=root.parent / "run"),
                progress=False,
            )
    except (ValueError, OSError) as error:
        assert check(), name
        named = ("images", "masks", "classes.yaml", "mat", "data_root", "folder")
        assert any(word in str(error) for word in named), error
        return f"`{type(error).__name__}`: {shortened(str(error), root)}"
    finally:
        os.seteuid(user)
    assert check(), name
    assert ": " in name, "a case that is not refused says what comes of it"
    # It is read as what it is.
    assert len(arrays.images) == len(read) and arrays.images.shape[1:3] == read.image_size
    assert set(np.unique(arrays.masks)) <= {*range(read.num_classes), 255}
    if name.startswith(("a palette mask", "a 16-bit mask")):
        with Image.open(mask(root)) as file:
            values = np.asarray(file)
        rows = (2 * np.arange(32) + 1) * SIZE[0] // 64
        columns = (2 * np.arange(32) + 1) * SIZE[1] // 64
        np.testing.assert_array_equal(arrays.masks[1], values[np.ix_(rows, columns)])
    if name.startswith("an image of 1x1"):
        assert (arrays.masks[1] == 1).all() and torch.all(read[1][0] == 0)
    return "it is read"


def shortened(message, root):
    """The first line of a message, without paths of this machine and words of other libraries."""
    text = message.split("\n")[0]
    foreign = "cannot|unrecognized|image file|broken|Image size|.Errno|Unable|trunc|while|could not"
    text = re.sub(rf"\((?:{foreign})((.*\)(?=[.]| |$))|.*$)", "(...)", text)
    text = text.replace(str(root), "DATA").replace(str(root.parent), "...")
    text = re.sub(r"-[0-9a-f]{16}", "-KEY", text)
    return text.replace("|", "\\|")


def rows():
    """Case -> what the page says of it."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return dict(line.strip("| ").split(" | ", 1) for line in lines[1:])


def in_table(name, found):
    title, _, behaviour = name.partition(": ")
    return title, behaviour if found == "it is read" else found


@pytest.fixture
def reachable(monkeypatch):
    """A folder that also a user without rights can read: that of the test is root's alone."""
    folder = Path(tempfile.mkdtemp(prefix="patlib-bad-input-"))
    folder.chmod(0o777)
    monkeypatch.setenv("PATLIB_CACHE", str(folder / "cache"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", CASES)
def test_bad_data(name, reachable):
    title, found = in_table(name, outcome(name, reachable / "data"))
    assert rows()[title] == found


def test_the_page_lists_the_cases_and_no_others():
    assert list(rows()) == [name.partition(": ")[0] for name in CASES]


def main():
    table = ["| what is wrong | what comes of it |", "|---|---|"]
    for name in CASES:
        folder = Path(tempfile.mkdtemp(prefix="patlib-bad-input-"))
        folder.chmod(0o777)
        os.environ["PATLIB_CACHE"] = str(folder / "cache")
        table.append("| {} | {} |".format(*in_table(name, outcome(name, folder / "data"))))
        shutil.rmtree(folder)
    text = PAGE.read_text()
    start, end = text.index("| what is wrong"), text.index("\n\n", text.index("| what is wrong"))
    PAGE.write_text(text[:start] + "\n".join(table) + text[end:])


if __name__ == "__main__":
    sys.exit(main())
