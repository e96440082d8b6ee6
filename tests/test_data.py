"""Data sets: the official layouts, read once and right, and refused by name if they do not fit."""

import multiprocessing
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import write_image
from patlib.data import DATASETS, NYUv2, build_dataset, count_classes, load_arrays, open_image
from patlib.data.dataset import SPLITS, Sample


def nearest(array, size):
    """Nearest neighbour by its definition: the source pixel under each target pixel's centre."""
    rows = ((np.arange(size[0]) + 0.5) * array.shape[0] / size[0]).astype(int)
    columns = ((np.arange(size[1]) + 0.5) * array.shape[1] / size[1]).astype(int)
    return array[np.ix_(rows, columns)]


def test_camvid_reads_its_layout(camvid_tree):
    sizes = {s: len(build_dataset("camvid", camvid_tree, s)) for s in SPLITS}
    assert sizes == {"train": 6, "validation": 2, "test": 5}
    dataset = build_dataset("camvid", camvid_tree, "test", image_size=(36, 48))
    image, target = dataset[1]
    raw = np.asarray(Image.open(camvid_tree / "testannot" / "test_1.png"))
    assert (image.shape, image.dtype) == ((3, 36, 48), torch.float32)
    assert target.dtype == torch.int64
    assert np.array_equal(target.numpy(), np.where(raw == 11, 255, raw))
    pixels = np.asarray(Image.open(camvid_tree / "test" / "test_1.png"))
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), pixels / 255, atol=1e-7)


def test_void_as_a_class_is_the_last_class(camvid_tree):
    dataset = build_dataset("camvid", camvid_tree, "test", image_size=(36, 48), void="class")
    raw = np.asarray(Image.open(camvid_tree / "testannot" / "test_0.png"))
    assert dataset.num_classes == 12 and dataset.class_names[-1] == "void"
    assert np.array_equal(dataset[0][1].numpy(), raw)


def test_masks_are_resized_by_nearest_neighbour(camvid_tree):
    target = build_dataset("camvid", camvid_tree, "train", image_size=(50, 32))[0][1].numpy()
    raw = np.asarray(Image.open(camvid_tree / "trainannot" / "train_0.png"))
    assert np.array_equal(target, nearest(np.where(raw == 11, 255, raw), (50, 32)))


def test_oxford_pet_masks_and_held_out_validation(pet_tree):
    train, validation, test = (
        build_dataset("oxford_pet", pet_tree, s, image_size=(32, 32)) for s in SPLITS
    )
    assert (len(train), len(validation), len(test)) == (9, 1, 4)
    assert {s.id for s in train.samples}.isdisjoint(s.id for s in validation.samples)
    assert train.class_names == ("body", "background", "boundary")
    sample = train.samples[3]
    raw = np.asarray(Image.open(sample.mask))
    assert np.array_equal(train[3][1].numpy(), nearest(raw, (32, 32)) - 1)
    # The folder itself is as good as its parent.
    inside = build_dataset("oxford_pet", pet_tree / "oxford-iiit-pet", image_size=(32, 32))
    assert torch.equal(inside[3][1], train[3][1])


def test_paper_scheme_cuts_everything_80_10_10(camvid_tree):
    parts = [build_dataset("camvid", camvid_tree, s, split_scheme="paper") for s in SPLITS]
    ids = [{s.id for s in part.samples} for part in parts]
    assert [len(i) for i in ids] == [10, 2, 1]
    assert len(set.union(*ids)) == 13
    again = build_dataset("camvid", camvid_tree, "train", split_scheme="paper")
    assert again.samples == parts[0].samples


def test_grouped_scheme_holds_out_every_tenth_group():
    parts = [build_dataset("synthetic", None, s, (32, 32), "grouped") for s in SPLITS]
    ids = [[int(sample.id) for sample in part.samples] for part in parts]
    assert ids[1] == list(range(4, 240, 10))  # without groups: images of the training part of 240
    assert ids[0] == [i for i in range(240) if i % 10 != 4]
    assert ids[2] == list(range(300, 420))  # the official test part

    frames = [Sample(f"{n:04d}", None, None) for n in (3, 4, 5, 9, 10, 14, 20, 21)]
    assert NYUv2.groups(None, frames) == [0, 0, 0, 1, 1, 2, 3, 3]


def test_count_classes(camvid_tree):
    dataset = build_dataset("camvid", camvid_tree, "train", image_size=(36, 48))
    targets = np.stack([dataset[i][1].numpy() for i in range(len(dataset))])
    expected = [(targets == c).sum() for c in range(11)]
    assert count_classes(dataset).tolist() == expected
    assert count_classes(load_arrays(dataset), 11).tolist() == expected


# -- the cache -------------------------------------------------------------------------------------


def test_cache_gives_the_same_arrays_and_touches_no_image_again(camvid_tree, monkeypatch):
    def dataset():
        return build_dataset("camvid", camvid_tree, "train", image_size=(32, 40))

    first = load_arrays(dataset())
    monkeypatch.setattr(Image, "open", lambda *a, **k: pytest.fail("an image was opened"))
    second = load_arrays(dataset())
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.images, second.images)
    assert np.array_equal(first.masks, second.masks)
    monkeypatch.undo()
    image, target = dataset()[2]
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy() * 255, second.images[2], atol=1e-4)
    assert np.array_equal(target.numpy(), second.masks[2])


def test_cache_notices_changed_files_and_settings(camvid_tree):
    def arrays(**settings):
        settings = {"image_size": (36, 48), **settings}
        return load_arrays(build_dataset("camvid", camvid_tree, "train", **settings))

    before = arrays()
    assert arrays(image_size=(32, 48)).images.shape[1] == 32
    assert arrays(void="class").masks.max() == 11
    mask = np.full((36, 48), 3, np.uint8)
    write_image(camvid_tree / "trainannot" / "train_0.png", mask)
    after = arrays()
    assert np.array_equal(after.masks[0], mask)
    assert not np.array_equal(before.masks[0], mask)
    assert before.fingerprint != after.fingerprint


def test_processes_that_build_the_same_entry_at_once_do_not_spoil_it(camvid_tree, tmp_path):
    def dataset():
        return build_dataset("camvid", camvid_tree, "train", image_size=(32, 40))

    expected = load_arrays(dataset(), tmp_path / "alone")
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)

    def build():
        start.wait()
        load_arrays(dataset(), tmp_path / "shared")

    processes = [context.Process(target=build) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    left = {path.name for path in (tmp_path / "shared").iterdir()}
    assert len(left) == 2 and ".lock" in left  # nothing half-written stays beside it
    found = load_arrays(dataset(), tmp_path / "shared")
    assert found.fingerprint == expected.fingerprint
    assert np.array_equal(found.images, expected.images)
    assert np.array_equal(found.masks, expected.masks)


def test_a_failed_read_leaves_no_cache(camvid_tree, tmp_path):
    (camvid_tree / "train" / "train_4.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"train_4\.png"):
        load_arrays(build_dataset("camvid", camvid_tree, "train"))
    assert [path.name for path in tmp_path.glob("cache/*")] == [".lock"]


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "camvit"}, "dataset must be one of .*'camvid', .*got 'camvit'"),
        ({"split": "val"}, "split must be one of .*'validation', .*got 'val'"),
        ({"split_scheme": "mine"}, "split_scheme must be one of .*'paper', got 'mine'"),
        ({"void": "drop"}, "void must be one of 'ignore', 'class', got 'drop'"),
        ({"image_size": (31, 40)}, r"image_size must be .* >= 32, got \(31, 40\)"),
        ({"image_size": (64.0, 64)}, "image_size must be"),
        ({"image_size": ()}, "image_size must be"),
        ({"image_size": (True, 64)}, "image_size must be"),
        ({"imbalance": 3}, "data set 'camvid' has no parameter 'imbalance'"),
        ({"root": None}, "data_root must be the folder of the data set 'camvid', got None"),
        ({"name": "synthetic"}, "data_root must be None for 'synthetic'"),
    ],
)
def test_wrong_arguments_are_named(camvid_tree, arguments, message):
    arguments = {"name": "camvid", "root": camvid_tree, **arguments}
    with pytest.raises(ValueError, match=message):
        build_dataset(**arguments)


def test_missing_or_incomplete_folders_say_what_is_expected(camvid_tree, pet_tree):
    with pytest.raises(FileNotFoundError, match="(?s)nowhere.*SegNet tutorial.*trainannot"):
        build_dataset("camvid", camvid_tree / "nowhere")
    (camvid_tree / "valannot" / "val_1.png").unlink()
    with pytest.raises(FileNotFoundError, match="(?s)val_1.*Expected in data_root"):
        build_dataset("camvid", camvid_tree)
    shutil.rmtree(camvid_tree / "trainannot")
    with pytest.raises(FileNotFoundError, match="no folder trainannot"):
        build_dataset("camvid", camvid_tree)
    (pet_tree / "oxford-iiit-pet" / "images" / "Breed_test_2.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"(?s)1 file.*Breed_test_2\.jpg.*Visual Geometry"):
        build_dataset("oxford_pet", pet_tree, "test")
    shutil.rmtree(pet_tree / "oxford-iiit-pet" / "annotations" / "trimaps")
    with pytest.raises(FileNotFoundError, match="annotations/trimaps"):
        build_dataset("oxford_pet", pet_tree)


@pytest.mark.parametrize("value", [12, 254, 259])  # 259 is 3 in its last 8 bits
def test_undefined_mask_values_are_named(camvid_tree, value):
    mask = np.zeros((36, 48), np.uint8 if value < 256 else np.uint16)
    mask[5, 7] = value
    write_image(camvid_tree / "trainannot" / "train_2.png", mask)
    with pytest.raises(ValueError, match=rf"train_2\.png.*must be in \[0, 1.*got \[{value}\]"):
        build_dataset("camvid", camvid_tree)[2]


def test_broken_and_ill_fitting_files_are_named(camvid_tree):
    truncated = (camvid_tree / "train" / "train_0.png").read_bytes()[:900]
    (camvid_tree / "train" / "train_0.png").write_bytes(truncated)
    with pytest.raises(ValueError, match=r"train_0\.png.*cannot be read"):
        build_dataset("camvid", camvid_tree)[0]
    write_image(camvid_tree / "trainannot" / "train_1.png", np.zeros((36, 47), np.uint8))
    with pytest.raises(ValueError, match="train_1.*same size.*got 36x48 and 36x47"):
        build_dataset("camvid", camvid_tree)[1]
    write_image(camvid_tree / "trainannot" / "train_3.png", np.zeros((36, 48, 3), np.uint8))
    with pytest.raises(ValueError, match=r"train_3\.png.*one channel"):
        build_dataset("camvid", camvid_tree)[3]


# -- orientation and pixel types -------------------------------------------------------------------


def oriented(array, orientation):
    """What EXIF says: the stored pixels of an image that is to be shown as ``array``."""
    stored = {  # row 0 and column 0 of what is stored lie at ... (EXIF 2.3, Table 6)
        1: lambda a: a,  # top, left
        2: lambda a: a[:, ::-1],  # top, right
        3: lambda a: a[::-1, ::-1],  # bottom, right
        4: lambda a: a[::-1],  # bottom, left
        5: lambda a: a.swapaxes(0, 1),  # left, top
        6: lambda a: a[:, ::-1].swapaxes(0, 1),  # right, top
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: lambda a: a[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation](array)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return Image.fromarray(np.ascontiguousarray(stored)), exif


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_images_and_masks_is_applied(camvid_tree, orientation):
    rng = np.random.default_rng(orientation)
    pixels = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
    mask = rng.integers(0, 11, (36, 48), dtype=np.uint8)
    image, exif = oriented(pixels, orientation)
    image.save(camvid_tree / "train" / "train_0.png", exif=exif)
    write_image(camvid_tree / "trainannot" / "train_0.png", mask)
    stored, exif = oriented(mask, orientation)
    write_image(camvid_tree / "train" / "train_1.png", pixels)
    stored.save(camvid_tree / "trainannot" / "train_1.png", exif=exif)
    dataset = build_dataset("camvid", camvid_tree, image_size=(36, 48))
    for i in range(2):
        read = dataset.arrays(i)
        assert np.array_equal(read[0], pixels) and np.array_equal(read[1], mask)


def test_an_image_is_turned_once_whether_file_or_object(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (36, 48, 3), dtype=np.uint8)
    image, exif = oriented(pixels, 6)
    image.save(tmp_path / "a.png", exif=exif)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png")):
        opened = open_image(source)
        assert opened.mode == "RGB" and np.array_equal(opened, pixels)
        assert np.array_equal(open_image(opened), pixels)
    assert source.size == (36, 48)  # the caller's image is left as it was


def test_images_of_8_bits_are_converted_and_others_refused(tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (32, 40), dtype=np.uint8)
    rgb = np.stack([gray] * 3, axis=2)
    for mode in ("RGB", "RGBA", "CMYK"):
        assert np.array_equal(open_image(Image.fromarray(rgb).convert(mode)), rgb), mode
    for mode in ("L", "LA", "P"):
        assert np.array_equal(open_image(Image.fromarray(gray).convert(mode)), rgb), mode
    two = np.asarray(open_image(Image.fromarray(gray > 127)))
    assert np.array_equal(two[..., 0], np.where(gray > 127, 255, 0))
    for dtype, mode in ((np.uint16, "I;16"), (np.int32, "I"), (np.float32, "F")):
        deep = Image.fromarray(gray.astype(dtype) * 20)
        deep.save(tmp_path / "deep.tif")
        for source in (deep, tmp_path / "deep.tif"):
            with pytest.raises(ValueError, match=f"must have 8 bits a channel, got mode '{mode}'"):
                open_image(source)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png: the image file cannot be read"):
        open_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match="none"):
        open_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="image must be a file or an image of PIL, got ndarray"):
        open_image(gray)


def test_every_data_set_has_a_label_of_its_own():
    labels = [dataset.label for dataset in DATASETS.values()]
    assert all(labels) and len(set(labels)) == len(DATASETS)
    assert [name for name, dataset in DATASETS.items() if dataset.name != name] == []
    for dataset in DATASETS.values():
        if "labels" in vars(dataset):
            assert dataset.has_void == (255 in dataset.labels.values())


# -- real images -----------------------------------------------------------------------------------


def test_real_camvid(real_data):
    root = real_data / "camvid"
    assert [len(build_dataset("camvid", root, s)) for s in SPLITS] == [367, 101, 233]
    dataset = build_dataset("camvid", root, "validation", image_size=(360, 480))
    raw = np.asarray(Image.open(dataset.samples[17].mask))
    assert np.array_equal(dataset[17][1].numpy(), np.where(raw == 11, 255, raw))


def test_real_oxford_pet(real_data):
    sizes = [len(build_dataset("oxford_pet", real_data, s)) for s in SPLITS]
    assert sizes == [270, 30, 298]
    dataset = build_dataset("oxford_pet", real_data, "test", image_size=(96, 96))
    raw = np.asarray(Image.open(dataset.samples[5].mask))
    assert np.array_equal(dataset[5][1].numpy(), nearest(raw, (96, 96)) - 1)
