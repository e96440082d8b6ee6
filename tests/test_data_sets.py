"""NYUv2, Cityscapes and a user's folder: what the files mean, and what is refused by name."""

import json
import pickle
import re
import shutil
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_data import nearest
from torchvision.datasets import Cityscapes

import patlib.data.nyuv2
from conftest import write_image
from patlib import RunConfig
from patlib.data import DATASETS, build_dataset, load_arrays
from patlib.data.dataset import SPLITS
from patlib.data.folder import draft_classes, mask_values
from patlib.data.nyuv2 import NUM_FRAMES, TEST_FRAMES, TO_13
from patlib.data.nyuv2.__main__ import main, prepare

NYU = json.loads(Path(patlib.data.nyuv2.__file__).with_name("classes.json").read_text())
SIZE = (36, 44)


def raw_mask(dataset, i=0):
    """The values in the mask file of a sample."""
    return np.asarray(Image.open(dataset.samples[i].mask))


def nyu_class(label_id):
    """The class of an official label id, step by step through the two published tables."""
    return 255 if label_id == 0 else NYU["to13"][NYU["to40"][label_id - 1] - 1] - 1


def write_mat(path, n=12, size=SIZE):
    """A file in the structure of nyu_depth_v2_labeled.mat; gives its images and label ids."""
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)
    # Most of the 894 ids are rare things of one class; the first 180 have all thirteen.
    ids = rng.integers(0, 180, (n, *size), dtype=np.uint16)
    ids[:, ::2] = rng.integers(0, 895, ids[:, ::2].shape)
    with h5py.File(path, "w", userblock_size=512) as file:
        # MATLAB stores columns first, so that HDF5 shows the axes in reverse.
        chunked = {"chunks": True, "compression": "gzip"}
        file.create_dataset("images", data=images.transpose(0, 3, 2, 1), **chunked)
        file.create_dataset("labels", data=ids.transpose(0, 2, 1), **chunked)
    return images, ids


@pytest.fixture
def mat(tmp_path):
    (tmp_path / "nyu").mkdir()
    path = tmp_path / "nyu" / "nyu_depth_v2_labeled.mat"
    write_mat(path)
    return path


@pytest.fixture
def nyu_tree(mat, tmp_path):
    """A prepared folder."""
    prepare(mat, tmp_path / "prepared")
    return tmp_path / "prepared"


@pytest.fixture
def cityscapes_tree(tmp_path):
    """A tiny Cityscapes in its official layout: 10 train, 3 val, 2 test."""
    rng = np.random.default_rng(3)
    root = tmp_path / "cityscapes"
    cities = {"train/ulm": 5, "train/aachen": 5, "val/munster": 3, "test/bonn": 2}
    for folder, n in cities.items():
        for i in range(n):
            frame = f"{folder}/{Path(folder).name}_{i:06d}_000019"
            image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            write_image(root / "leftImg8bit" / f"{frame}_leftImg8bit.png", image)
            ids = rng.integers(0, 34, SIZE, dtype=np.uint8)
            write_image(root / "gtFine" / f"{frame}_gtFine_labelIds.png", ids)
            write_image(root / "gtFine" / f"{frame}_gtFine_color.png", image)
    return root


@pytest.fixture
def folder_tree(tmp_path):
    """A user's own data, without splits: 20 images, classes 0, 1, 2 and void 255."""
    rng = np.random.default_rng(4)
    root = tmp_path / "mine"
    suffixes = ("png", "jpg", "JPEG", "bmp", "tif", "webp")
    for i in range(20):
        image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        write_image(root / "images" / f"{i:02d}.{suffixes[i % 6]}", image)
        mask = rng.choice(np.array([0, 1, 2, 255], np.uint8), SIZE)
        write_image(root / "masks" / f"{i:02d}.png", mask)
    write_classes(root, classes=["road", "car", "sign"], void=[255], image_size=list(SIZE))
    return root


def write_classes(root, **content):
    (root / "classes.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


# -- NYUv2 -----------------------------------------------------------------------------------------


def test_nyuv2_tables_mean_what_they_say():
    # Ids and names as in the `names` of the official file.
    named = {21: "wall", 11: "floor", 4: "ceiling", 5: "chair", 3: "furniture", 19: "table"}
    named |= {85: "books", 157: "bed", 83: "sofa", 64: "picture", 172: "tv", 80: "window"}
    names = DATASETS["nyuv2"].class_names
    assert {i: names[nyu_class(i)] for i in named} == named
    assert len(TO_13) == 895 and set(TO_13[1:].tolist()) == set(range(1, 14))
    assert TO_13[0] == 0 and all(TO_13[i] - 1 == nyu_class(i) for i in range(1, 895))
    assert len(NYU["names40"]) == len(NYU["to13"]) == 40
    assert len(TEST_FRAMES) == len(NYU["test"]) == 654 and NUM_FRAMES - len(TEST_FRAMES) == 795
    assert min(TEST_FRAMES) == 1 and max(TEST_FRAMES) <= NUM_FRAMES


def test_nyuv2_reads_the_official_file(tmp_path):
    mat = tmp_path / "nyu_depth_v2_labeled.mat"
    images, ids = write_mat(mat)
    parts = {s: build_dataset("nyuv2", mat, s, image_size=SIZE) for s in SPLITS}
    assert [s.id for s in parts["test"].samples] == ["0001", "0002", "0009"]
    assert {s: len(p) for s, p in parts.items()} == {"train": 8, "validation": 1, "test": 3}
    assert len({s.id for part in parts.values() for s in part.samples}) == 12
    expected = np.vectorize(nyu_class)(ids)
    for part in parts.values():
        for i, sample in enumerate(part.samples):
            image, target = part[i]
            frame = int(sample.id) - 1
            assert np.array_equal(target.numpy(), expected[frame])
            pixels = image.permute(1, 2, 0).numpy() * 255
            np.testing.assert_allclose(pixels, images[frame], atol=1e-4)
    smaller = build_dataset("nyuv2", tmp_path, "test", image_size=(32, 40), void="class")
    assert smaller.num_classes == 14 and smaller.class_names[-1] == "void"
    resized = nearest(np.where(expected[1] == 255, 13, expected[1]), (32, 40))
    assert np.array_equal(smaller[1][1].numpy(), resized)
    assert build_dataset("nyuv2", mat).image_size == (256, 340)


def test_nyuv2_reads_from_many_threads_and_after_pickling(mat, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    dataset = build_dataset("nyuv2", mat, image_size=(48, 64))
    images, masks, *_ = load_arrays(dataset)
    again = pickle.loads(pickle.dumps(dataset))
    for i in range(len(dataset)):
        for image, mask in (dataset.arrays(i), again.arrays(i)):
            assert np.array_equal(image, images[i]) and np.array_equal(mask, masks[i])


@pytest.mark.parametrize("size", [(), ("--size", "32", "40")])
def test_nyuv2_prepared_by_command_equals_the_official_file(mat, tmp_path, size):
    out = tmp_path / "new" / "prepared"
    main([str(mat), str(out), *size])
    assert {f.name for f in out.parent.iterdir()} == {".lock", "prepared"}
    assert len(list((out / "images").iterdir())) == 12
    for split in SPLITS:
        for scheme in ("official", "paper"):
            direct, prepared = (
                build_dataset("nyuv2", root, split, (32, 40), scheme) for root in (mat, out)
            )
            assert [s.id for s in direct.samples] == [s.id for s in prepared.samples]
            for i in range(len(direct)):
                for a, b in zip(direct.arrays(i), prepared.arrays(i), strict=True):
                    assert np.array_equal(a, b)


def test_nyuv2_command_leaves_nothing_half_written(mat, tmp_path, capsys):
    with h5py.File(mat, "a") as file:
        file["labels"][11, 3, 3] = 900
    for arguments, message in (
        ((mat, tmp_path / "out"), "900"),
        ((mat, tmp_path / "nyu"), "out must be a new folder"),
        ((tmp_path / "none.mat", tmp_path / "out"), "mat must be a file, got"),
        (
            (mat, tmp_path / "out", "--size", "8", "8"),
            "image_size must be (H, W), two integers >= 32, got [8, 8]",
        ),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert {f.name for f in tmp_path.iterdir()} == {".lock", "nyu"}


def test_nyuv2_refuses_a_broken_official_file(mat, tmp_path):
    whole = mat.read_bytes()
    mat.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"labeled\.mat: not a whole HDF5 file .*truncated"):
        build_dataset("nyuv2", mat)
    mat.write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"labeled\.mat: not a whole HDF5 file"):
        build_dataset("nyuv2", mat.parent)
    mat.write_bytes(whole)
    with h5py.File(mat, "a") as file:
        offset = file["labels"].id.get_chunk_info(0).byte_offset
        file["labels"][3, 2, 1] = 895
    with pytest.raises(ValueError, match=r"label ids must be 0 to 894, got \[895\] in frame 0004"):
        dict(enumerate(build_dataset("nyuv2", mat, split_scheme="paper")))
    with mat.open("r+b") as file:
        file.seek(offset + 2)
        file.write(bytes(64))
    with pytest.raises(ValueError, match=r"labeled\.mat: frame 0001 cannot be read"):
        build_dataset("nyuv2", mat, "test")[0]
    for shapes in (
        {"images": (4, 3, 44, 36)},
        {"images": (4, 3, 44, 36), "labels": (4, 36, 44)},
        {"images": (1450, 3, 4, 4), "labels": (1450, 4, 4)},
        {"images": (0, 3, 4, 4), "labels": (0, 4, 4)},
    ):
        with h5py.File(mat, "w") as file:
            for name, shape in shapes.items():
                file.create_dataset(name, shape, "u2")
        with pytest.raises(ValueError, match=r"labeled\.mat: it must hold images \(N, 3, W, H\)"):
            build_dataset("nyuv2", mat)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("number,part\n1,test\n", "the lines must be index,split .*got '1,test' in line 2"),
        ("index,split\n1,test\n3,val\n", "the lines must .*got '3,val' in line 3"),
        ("index,split\n1,test\n1,train\n", "the lines must .*got '1,train' in line 3"),
        ("index,split\nframe,test\n", "the lines must .*got 'frame,test' in line 2"),
        ("index,split\n3,train,1\n", "the lines must .*got '3,train,1' in line 2"),
    ],
)
def test_nyuv2_refuses_wrong_rows(nyu_tree, lines, message):
    (nyu_tree / "splits.csv").write_text(lines)
    with pytest.raises(ValueError, match=rf"splits\.csv: {message}"):
        build_dataset("nyuv2", nyu_tree)


# -- Cityscapes ------------------------------------------------------------------------------------


def test_cityscapes_classes_and_splits(cityscapes_tree):
    (cityscapes_tree / "leftImg8bit" / "train" / "stray.txt").write_text("not a city")
    parts = {s: build_dataset("cityscapes", cityscapes_tree, s, SIZE) for s in SPLITS}
    assert {s: len(p) for s, p in parts.items()} == {"train": 9, "validation": 1, "test": 3}
    names = parts["train"].class_names
    assert len(names) == 19
    assert (names[0], names[7], names[18]) == ("road", "traffic sign", "bicycle")
    trained = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    classes = np.full(34, 255)
    classes[trained] = range(19)
    for part in parts.values():
        for i, sample in enumerate(part.samples):
            assert sample.mask.name.startswith(Path(sample.id).name)
            assert np.array_equal(part[i][1].numpy(), classes[raw_mask(part, i)])
    assert build_dataset("cityscapes", cityscapes_tree).image_size == (256, 512)

    (cityscapes_tree / "leftImg8bit" / "train" / "stray.txt").unlink()
    theirs = Cityscapes(cityscapes_tree, "val", target_type="semantic")
    assert sorted(zip(theirs.images, (t for (t,) in theirs.targets), strict=True)) == [
        (str(s.image), str(s.mask)) for s in parts["test"].samples
    ]


def test_cityscapes_as_in_the_paper(cityscapes_tree):
    arguments = {"split_scheme": "paper", "void": "class", "image_size": SIZE}
    parts = [build_dataset("cityscapes", cityscapes_tree, s, **arguments) for s in SPLITS]
    assert [len(part) for part in parts] == [10, 2, 1]
    ids = {s.id for part in parts for s in part.samples}
    assert len(ids) == 13 and not any("bonn" in i for i in ids)
    assert parts[0].num_classes == 20 and parts[0].class_names[-1] == "void"
    target = parts[0][0][1].numpy()
    void_ids = [0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]
    assert np.array_equal(target == 19, np.isin(raw_mask(parts[0]), void_ids))


# -- a user's folder -------------------------------------------------------------------------------


def test_folder_reads_every_format_and_cuts_80_10_10(folder_tree):
    (folder_tree / "images" / ".ipynb_checkpoints").mkdir()
    (folder_tree / "masks" / "._00.png").write_bytes(b"")
    parts = [build_dataset("folder", folder_tree, s) for s in SPLITS]
    assert [len(part) for part in parts] == [16, 2, 2]
    assert len({s.id for part in parts for s in part.samples}) == 20
    paper = [build_dataset("folder", folder_tree, s, split_scheme="paper") for s in SPLITS]
    assert [p.samples for p in parts] == [p.samples for p in paper]
    assert parts[0].class_names == ("road", "car", "sign") and parts[0].image_size == SIZE
    for i in range(16):
        image, target = parts[0][i]
        assert image.shape == (3, *SIZE)
        assert np.array_equal(target.numpy(), raw_mask(parts[0], i))
    smaller = build_dataset("folder", folder_tree, image_size=(32, 32), void="class")
    assert smaller.num_classes == 4
    expected = nearest(np.where(raw_mask(smaller) == 255, 3, raw_mask(smaller)), (32, 32))
    assert np.array_equal(smaller[0][1].numpy(), expected)


def test_folder_maps_values_in_the_order_of_the_file(folder_tree):
    write_classes(folder_tree, classes={255: "sky", 0: "road", 2: "car", 1: "sign"})
    dataset = build_dataset("folder", folder_tree, image_size=SIZE)
    assert dataset.class_names == ("sky", "road", "car", "sign")
    expected = np.array([1, 3, 2, 0])[np.minimum(raw_mask(dataset), 3)]
    assert np.array_equal(dataset[0][1].numpy(), expected)
    assert build_dataset("folder", folder_tree, image_size=SIZE, void="class").num_classes == 4


def test_folder_reads_palette_masks_and_gray_images(folder_tree):
    dataset = build_dataset("folder", folder_tree)
    expected = raw_mask(dataset)
    palette = Image.fromarray(expected)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    palette.save(dataset.samples[0].mask)
    assert Image.open(dataset.samples[0].mask).mode == "P"
    write_image(dataset.samples[0].image.with_suffix(".png"), expected)
    if dataset.samples[0].image.suffix != ".png":
        dataset.samples[0].image.unlink()
    image, target = build_dataset("folder", folder_tree)[0]
    assert np.array_equal(target.numpy(), expected)
    assert np.array_equal((image[1] * 255).round().numpy(), expected)


@pytest.fixture
def split_tree(folder_tree):
    """The same with folders train and test."""
    for kind in ("images", "masks"):
        files = sorted((folder_tree / kind).iterdir())
        for i, file in enumerate(files):
            part = folder_tree / kind / ("test" if i % 2 else "train")
            part.mkdir(exist_ok=True)
            file.rename(part / file.name)
    return folder_tree


def test_folder_with_splits(split_tree):
    parts = [build_dataset("folder", split_tree, s) for s in SPLITS]
    assert [len(part) for part in parts] == [9, 1, 10]
    for kind in ("images", "masks"):
        (split_tree / kind / "validation").mkdir()
        first = min((split_tree / kind / "train").iterdir())
        shutil.copy(first, split_tree / kind / "validation" / first.name)
    parts = [build_dataset("folder", split_tree, s) for s in SPLITS]
    assert [len(part) for part in parts] == [10, 1, 10]
    assert parts[1].samples[0].id == "validation/00"


@pytest.mark.parametrize("images", [1, 5, 7, 8])
def test_folder_of_few_images_says_how_many_it_takes(folder_tree, images):
    for kind in ("images", "masks"):
        for file in sorted((folder_tree / kind).iterdir())[images:]:
            file.unlink()
    if images == 8:
        assert [len(build_dataset("folder", folder_tree, s)) for s in SPLITS] == [6, 1, 1]
        return
    message = rf"'validation' .*{images} image\(s\) .*too few.*8 .*images/train/a\.jpg"
    with pytest.raises(ValueError, match=f"(?s){message}"):
        build_dataset("folder", folder_tree, "validation")


@pytest.mark.parametrize("images", [5, 6])
def test_held_out_part_of_few_images(split_tree, images):
    for kind in ("images", "masks"):
        for file in sorted((split_tree / kind / "train").iterdir())[images:]:
            file.unlink()
    if images == 6:
        assert len(build_dataset("folder", split_tree, "validation")) == 1
        return
    with pytest.raises(ValueError, match=r"15 image\(s\) .*training part of 6"):
        build_dataset("folder", split_tree, "validation")


def test_folder_matches_names_in_either_form_of_unicode(folder_tree):
    composed, decomposed = (unicodedata.normalize(form, "Straße-é-ü") for form in ("NFC", "NFD"))
    assert composed != decomposed
    for kind, form in (("images", composed), ("masks", decomposed)):
        (file,) = (folder_tree / kind).glob("06.*")
        file.rename(file.with_stem(form))
    parts = [build_dataset("folder", folder_tree, s) for s in SPLITS]
    assert sum(s.id == composed for part in parts for s in part.samples) == 1
    (twin,) = (folder_tree / "images").glob(f"{composed}.*")
    shutil.copy(twin, twin.with_stem(decomposed))
    with pytest.raises(ValueError, match="have the same name"):
        build_dataset("folder", folder_tree)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"clases": ["a", "b"]}, "the key 'classes' is missing"),
        (
            {"classes": ["a", "b"], "size": [32, 32]},
            "a key must be one of classes, void, image_size, got 'size'",
        ),
        ({"classes": ["a"]}, "2 to 254 different names, got 1 names"),
        ({"classes": ["a", "b", "a"]}, "got 3 names, 2 of them different"),
        ({"classes": [str(i) for i in range(255)]}, "2 to 254 different names, got 255 names"),
        ({"classes": "a b"}, "got 0 names"),
        ({"classes": ["a", True]}, "classes must be names.*quotes.*got True"),
        ({"classes": {"road": 7, "car": 8}}, "classes must be .*mask value: name.*got 7"),
        (
            {"classes": {"7": "a", "8": "b"}},
            "classes: mask values must be integers from 0 to 255, got '7'",
        ),
        ({"classes": {7: "a", 256: "b"}}, "classes: mask values must .*got 256"),
        ({"classes": ["a", "void"]}, "classes must not contain 'void'"),
        ({"classes": ["a", "b"], "void": 255}, "void must be a list.*got 255"),
        ({"classes": ["a", "b"], "void": [-1]}, "void: mask values must .*got -1"),
        (
            {"classes": ["a", "b"], "void": [1]},
            "void must not contain 1, the mask value of class 'b'",
        ),
        ({"classes": ["a", "b"], "image_size": [8, 8]}, r"image_size must be .*got \[8, 8\]"),
        ({"classes": ["a", "b"], "image_size": 64}, "image_size must be .*got 64"),
    ],
)
def test_folder_refuses_a_wrong_classes_yaml(folder_tree, content, message):
    write_classes(folder_tree, **content)
    with pytest.raises(ValueError, match=rf"(?s)classes\.yaml: .*{message}.*Expected in data_root"):
        build_dataset("folder", folder_tree)


def test_folder_refuses_what_is_unclear(folder_tree):
    write_classes(folder_tree, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"image_size must be given.*classes\.yaml"):
        build_dataset("folder", folder_tree)
    (folder_tree / "classes.yaml").write_text("classes: [a, b\n")
    with pytest.raises(ValueError, match=r"classes\.yaml: it must be YAML"):
        build_dataset("folder", folder_tree)
    write_classes(folder_tree, classes=["a", "b", "c"], void=[255], image_size=[32, 32])
    write_image(folder_tree / "images" / "00.bmp", np.zeros(SIZE, np.uint8))
    with pytest.raises(ValueError, match=r"00\.(bmp|png) and 00\.(bmp|png) have the same name"):
        build_dataset("folder", folder_tree)
    (folder_tree / "images" / "00.bmp").unlink()
    dataset = build_dataset("folder", folder_tree)
    deep = np.full(SIZE, 3000, np.uint16)
    Image.fromarray(deep).save(dataset.samples[0].image, format="PNG")
    with pytest.raises(ValueError, match="an image must have 8 bits a channel, got mode 'I;16'"):
        dataset[0]


def test_folder_refuses_unclear_splits(split_tree):
    (split_tree / "images" / "val").mkdir()
    with pytest.raises(
        FileNotFoundError, match="must be one of train, validation, test, got 'val'"
    ):
        build_dataset("folder", split_tree)
    (split_tree / "images" / "val").rmdir()
    loose = split_tree / "images" / "loose.png"
    write_image(loose, np.zeros(SIZE, np.uint8))
    with pytest.raises(FileNotFoundError, match=r"images/loose\.png lies beside the folders"):
        build_dataset("folder", split_tree)
    loose.unlink()
    shutil.rmtree(split_tree / "images" / "test")
    with pytest.raises(FileNotFoundError, match="images/train/, but no images/test/"):
        build_dataset("folder", split_tree)


# -- refusals common to all ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "removed", "message"),
    [
        ("nyuv2", "images", r"neither nyu_depth_v2_labeled\.mat nor images"),
        ("nyuv2", "labels13", r"neither nyu_depth_v2_labeled\.mat nor labels13"),
        ("nyuv2", "splits.csv", r"neither nyu_depth_v2_labeled\.mat nor splits\.csv"),
        ("nyuv2", "images/0007.png", r"1 file\(s\) missing, the first is .*images/0007\.png"),
        ("nyuv2", "labels13/0008.png", r"1 file\(s\) missing, the first is .*labels13/0008\.png"),
        ("cityscapes", "leftImg8bit/val", "no folder leftImg8bit/val/"),
        ("cityscapes", "gtFine", "no folder gtFine/train/"),
        ("cityscapes", "gtFine/train/ulm", "5 of .* no counterpart, the first is ulm/ulm_000000"),
        ("cityscapes", "leftImg8bit/train", "no folder leftImg8bit/train/"),
        ("folder", "classes.yaml", r"there is no classes\.yaml"),
        ("folder", "images", "no folder images/"),
        ("folder", "masks", "no folder masks/"),
        ("folder", "masks/04.png", "1 of images/ and masks/ have no counterpart, the first is 04"),
        ("folder", "images/06.png", "1 of images/ and masks/ have no counterpart, the first is 06"),
        ("oxford_pet", "oxford-iiit-pet", "there is no images"),
    ],
)
def test_incomplete_folders_say_what_is_expected(name, removed, message, request):
    root = request.getfixturevalue(TREES[name])
    path = root / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    layout = DATASETS[name].layout.splitlines()[0][:30]
    with pytest.raises(FileNotFoundError, match=f"(?s){message}.*{layout}"):
        for split in SPLITS:
            build_dataset(name, root, split, (32, 32))


TREES = {
    "nyuv2": "nyu_tree",
    "cityscapes": "cityscapes_tree",
    "folder": "folder_tree",
    "oxford_pet": "pet_tree",
}


@pytest.mark.parametrize("name", TREES)
def test_broken_files_and_undefined_values_are_named(name, request):
    root = request.getfixturevalue(TREES[name])
    dataset = build_dataset(name, root, "train", (32, 32))
    mask = raw_mask(dataset).copy()
    mask[3, 5] = 77
    mask_file = dataset.samples[0].mask
    write_image(mask_file, mask)
    with pytest.raises(ValueError, match=rf"{re.escape(str(mask_file))}.*{name}.*got \[77\]"):
        dataset[0]
    for i, kind in ((1, "image"), (2, "mask")):
        path = getattr(dataset.samples[i], kind)
        path.write_bytes(path.read_bytes()[:200])
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*cannot be read"):
            dataset[i]


@pytest.mark.parametrize("name", [name for name, d in DATASETS.items() if not d.drawn])
def test_every_data_set_names_what_it_misses(name, tmp_path):
    assert RunConfig(dataset=name, data_root=str(tmp_path)).dataset == name
    with pytest.raises(ValueError, match="data_root"):
        RunConfig(dataset=name)
    with pytest.raises(
        FileNotFoundError, match=r"(?s)data_root must be a folder, got .*nowhere.*xpected"
    ):
        build_dataset(name, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=f"(?s)'{name}' folder.*not complete.*xpected"):
        build_dataset(name, tmp_path)
    with pytest.raises(ValueError, match="data_root must be the folder of the data set"):
        build_dataset(name)


# -- real images -----------------------------------------------------------------------------------


def real_shares(datasets, size):
    """Share of each class in percent, of all masks; some are compared with what is read."""

    def count(sample_of):
        dataset, i = sample_of
        lookup = np.full(256, 255, np.uint8)
        lookup[list(dataset.labels)] = list(dataset.labels.values())
        mask = nearest(lookup[raw_mask(dataset, i)], size)
        if i % 25 == 0:
            assert np.array_equal(dataset.arrays(i)[1], mask)
        counts = np.bincount(mask.ravel(), minlength=256)
        assert not counts[dataset.num_classes :].any()
        return counts[: dataset.num_classes]

    with ThreadPoolExecutor(2) as pool:
        counts = sum(pool.map(count, [(d, i) for d in datasets for i in range(len(d))]))
    return dict(zip(datasets[0].class_names, 100 * counts / counts.sum(), strict=True))


def test_real_nyuv2(real_data):
    root, size = real_data / "nyuv2", (256, 340)
    parts = [build_dataset("nyuv2", root, s, void="class") for s in SPLITS]
    assert [len(part) for part in parts] == [715, 80, 654]
    assert {int(s.id) for s in parts[2].samples} == TEST_FRAMES
    shares = real_shares(parts, size)
    assert {c: round(shares[c]) for c in ("wall", "void", "furniture")} == {
        "wall": 24,
        "void": 17,
        "furniture": 14,
    }
    assert round(shares["books"], 1) == 0.6 and round(shares["tv"], 1) == 0.5
    paper = [len(build_dataset("nyuv2", root, s, split_scheme="paper")) for s in SPLITS]
    assert paper == [1159, 145, 145]


def test_real_grouped_validation_shares_no_drive_or_room(real_data):
    for name, sizes in {"camvid": [266, 101, 233], "nyuv2": [707, 88, 654]}.items():
        parts = [build_dataset(name, real_data / name, s, (32, 32), "grouped") for s in SPLITS]
        assert [len(part) for part in parts] == sizes
        official = build_dataset(name, real_data / name, "test", (32, 32))
        assert parts[2].samples == official.samples
        if name == "camvid":
            drives = [{sample.id[:6] for sample in part.samples} for part in parts]
            assert drives[1] == {"0006R0"} and drives[0] == {"0001TP", "0016E5"}
        else:  # between a frame of one part and one of the other lies a frame of the test part
            frames = [np.array([int(s.id) for s in part.samples]) for part in parts]
            for frame in frames[1]:
                nearest = frames[0][np.abs(frames[0] - frame).argmin()]
                low, high = sorted((frame, nearest))
                assert ((low < frames[2]) & (frames[2] < high)).any()


def test_real_camvid_shares(real_data):
    size = (180, 240)
    parts = [build_dataset("camvid", real_data / "camvid", s, size, void="class") for s in SPLITS]
    shares = real_shares(parts, size)
    assert (round(shares["building"]), round(shares["road"])) == (24, 29)
    rare = {c: round(shares[c], 1) for c in ("sign", "pole", "pedestrian", "bicyclist")}
    assert rare == {"sign": 1.1, "pole": 1.0, "pedestrian": 0.6, "bicyclist": 0.5}


def test_real_oxford_pet_shares(real_data):
    size = (96, 96)
    parts = [build_dataset("oxford_pet", real_data, s, size) for s in SPLITS]
    assert sum(len(part) for part in parts) == 598
    shares = real_shares(parts, size)
    assert shares["background"] > 50 > shares["body"] > 20 > shares["boundary"] > 10


# -- a user's folder: nested, in colours, drafted --------------------------------------------------

COLORS = {"#804080": "road", "#00008e": "car", "#000000": "sign"}


@pytest.fixture
def colored_tree(folder_tree):
    """The folder with its masks in colours, one of them as a palette, one with transparency."""
    table = np.zeros((256, 3), np.uint8)
    table[:3] = [[0x80, 0x40, 0x80], [0, 0, 0x8E], [0, 0, 0]]
    table[255] = 255
    for i, file in enumerate(sorted((folder_tree / "masks").iterdir())):
        mask = Image.open(file)
        mask.putpalette(table.tobytes())
        mask.convert(["RGB", "P", "RGBA"][min(i, 2)]).save(file)
    write_classes(folder_tree, classes=COLORS, void=["#FFFFFF"], image_size=list(SIZE))
    return folder_tree


def test_folder_reads_colours_by_the_table(folder_tree, request):
    plain = build_dataset("folder", folder_tree)
    expected = [plain[i][1] for i in range(len(plain))]
    colored = build_dataset("folder", request.getfixturevalue("colored_tree"))
    assert colored.class_names == ("road", "car", "sign")
    for i, target in enumerate(expected):
        assert torch.equal(colored[i][1], target)
    assert 255 in torch.stack(expected)


def test_folder_names_the_colours_that_the_table_lacks(colored_tree):
    write_classes(
        colored_tree,
        classes={"#804080": "road", "#00008e": "car"},
        void=["#ffffff"],
        image_size=list(SIZE),
    )
    dataset = build_dataset("folder", colored_tree)
    with pytest.raises(ValueError, match=r"\.png: the colours of a mask .*got \['#000000'\]"):
        dataset[0]
    # A table of the same length is another data set to the cache.
    write_classes(colored_tree, classes=COLORS, void=["#ffffff"], image_size=list(SIZE))
    first = load_arrays(build_dataset("folder", colored_tree))
    swapped = dict(zip(COLORS, ["car", "road", "sign"], strict=True))
    order = {k: swapped[k] for k in ("#00008e", "#804080", "#000000")}
    write_classes(colored_tree, classes=order, void=["#ffffff"], image_size=list(SIZE))
    second = load_arrays(build_dataset("folder", colored_tree))
    np.testing.assert_array_equal(first.masks, np.array([1, 0, 2, *[255] * 253])[second.masks])


def test_folder_of_folders_is_cut_like_a_flat_one(folder_tree):
    for kind in ("images", "masks"):
        for i, file in enumerate(sorted((folder_tree / kind).iterdir())):
            place = folder_tree / kind / f"day {i % 3}" / "left"
            place.mkdir(parents=True, exist_ok=True)
            file.rename(place / file.name)
    parts = [build_dataset("folder", folder_tree, s) for s in SPLITS]
    assert [len(part) for part in parts] == [16, 2, 2]
    ids = {s.id for part in parts for s in part.samples}
    assert "day 1/left/01" in ids and len(ids) == 20
    assert all(s.image.stem == s.mask.stem for part in parts for s in part.samples)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"#804080": "a", 7: "b"}, "colours must all be written as '#804080', got 7"),
        ({"#80408": "a", "#000000": "b"}, "colours must all be .* got '#80408'"),
        ({"#80408a": "a", "#80408A": "b"}, "a colour must stand once"),
    ],
)
def test_folder_refuses_a_wrong_colour_table(folder_tree, classes, message):
    write_classes(folder_tree, classes=classes)
    with pytest.raises(ValueError, match=rf"classes\.yaml: .*{message}"):
        build_dataset("folder", folder_tree)


@pytest.mark.parametrize("fixture", ["folder_tree", "colored_tree"])
def test_a_draft_is_a_classes_yaml_of_what_the_masks_hold(fixture, request):
    tree, colored = request.getfixturevalue(fixture), fixture == "colored_tree"
    values = Counter()
    for file in sorted((tree / "masks").iterdir()):
        if colored and Image.open(file).mode == "P":
            Image.open(file).convert("RGB").save(file)
        is_colored, found = mask_values(file)
        assert is_colored == colored
        values += found
    assert sum(values.values()) == 20 * SIZE[0] * SIZE[1] and len(values) == 4
    (tree / "classes.yaml").write_text(draft_classes(values, SIZE))
    dataset = build_dataset("folder", tree)
    commonest = [v for v, _ in values.most_common() if v != 255]
    assert list(dataset.class_names) == [f"class_{v[1:] if colored else v}" for v in commonest]
    assert dataset.image_size == SIZE and len(dataset[0][1].unique()) == 4


def test_what_cannot_be_a_draft_is_refused():
    assert draft_classes({0: 5, 255: 9}).count("class_") == 2  # both, of a binary mask
    with pytest.raises(ValueError, match="all hold values, or all colours, got both"):
        draft_classes({0: 1, "#000000": 1})
    with pytest.raises(ValueError, match=r"2 to 254 different .*got 300 \(many: .*JPEG"):
        draft_classes({f"#{i:06x}": 1 for i in range(300)})
    with pytest.raises(ValueError, match="from 0 to 255, got 300"):
        draft_classes({0: 1, 300: 1})
