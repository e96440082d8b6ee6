import hashlib

import numpy as np
import pytest

from patlib.data.scenes import SceneGenerator, class_names


def draw_all(generator, count=200):
    images, masks = zip(*(generator.draw(i) for i in range(count)), strict=True)
    return np.stack(images), np.stack(masks)


@pytest.fixture(scope="module")
def default_set():
    return draw_all(SceneGenerator())


def test_arrays_are_images_and_masks_of_the_size_asked_for():
    for size in [(32, 32), (96, 128), (128, 64), (33, 47), (256, 512)]:
        image, mask = SceneGenerator(1, size, rare_size=10).draw(2)
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert mask.shape == size and mask.dtype == np.uint8


def test_a_scene_depends_on_seed_index_and_settings_alone():
    generator = SceneGenerator(3)
    forwards = [generator.draw(i) for i in range(30)]
    for i in (29, 0, 17):
        for again in (generator.draw(i), SceneGenerator(3).draw(i)):
            assert all(np.array_equal(a, b) for a, b in zip(again, forwards[i], strict=True))
    for other in (
        SceneGenerator(3).draw(18),
        SceneGenerator(4).draw(17),
        SceneGenerator(3, imbalance=50).draw(17),
    ):
        assert not np.array_equal(other[0], forwards[17][0])
        assert not np.array_equal(other[1], forwards[17][1])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "91ffb301a694712a"),
        ({"image_size": (48, 64), "num_classes": 20, "imbalance": 5.0}, "2eb624279cc3123d"),
        (
            {
                "scene_seed": 1,
                "image_size": (96, 64),
                "num_classes": 13,
                "imbalance": 300,
                "rare_size": 15,
            },
            "6221565ceed8afa1",
        ),
        (
            {
                "scene_seed": 3,
                "image_size": (33, 47),
                "num_classes": 3,
                "imbalance": 1000,
                "rare_size": 20,
            },
            "e9c92d69616e5ad1",
        ),
        (
            {
                "scene_seed": 2,
                "image_size": (64, 96),
                "num_classes": 17,
                "imbalance": 1,
                "rare_size": 60.5,
            },
            "fb3ae1e88cc27bfd",
        ),
    ],
    ids=str,
)
def test_scenes_stay_as_they_are(settings, expected):
    """If this fails, the scenes have changed, and with them every number computed on them."""
    generator = SceneGenerator(**settings)
    digest = hashlib.sha256()
    for index in (0, 5, 21):
        for array in generator.draw(index):
            digest.update(array.tobytes())
    assert digest.hexdigest()[:16] == expected


@pytest.mark.parametrize("num_classes", range(3, 21))
def test_names_are_unique_and_fit_the_labels(num_classes):
    names = class_names(num_classes)
    assert len(set(names)) == num_classes
    assert set(names) <= set(class_names(20))
    assert SceneGenerator(num_classes=num_classes).class_names == names
    labels = set(np.unique(SceneGenerator(num_classes=num_classes).draw(0)[1]))
    assert labels <= {*range(num_classes), 255}


def test_labels_are_classes_or_void(default_set):
    _, masks = default_set
    assert set(np.unique(masks)) == {*range(8), 255}


def test_void_is_a_small_strip_in_some_images(default_set):
    _, masks = default_set
    void = (masks == 255).mean(axis=(1, 2))
    assert 0.01 < void.mean() < 0.03
    assert 0.3 < (void > 0).mean() < 0.5
    assert (masks[:, :48] != 255).all()


@pytest.mark.parametrize(
    ("num_classes", "imbalance", "image_size", "rare_size"),
    [
        (8, 100, (96, 128), 40),
        (8, 100, (48, 64), 40),
        (8, 1000, (48, 64), 40),
        (8, 5, (48, 64), 40),
        (3, 1000, (48, 64), 20),
        (3, 5, (48, 64), 80),
        (13, 1, (48, 64), 40),
        (13, 300, (96, 64), 15),
        (20, 20, (48, 64), 40),
        (20, 1000, (64, 96), 40),
    ],
)
def test_shares_fall_off_geometrically_by_the_imbalance(
    num_classes, imbalance, image_size, rare_size
):
    generator = SceneGenerator(1, image_size, num_classes, imbalance, rare_size)
    _, masks = draw_all(generator)
    counts = np.bincount(masks.ravel(), minlength=256)[:num_classes]
    assert generator.shares[0] / generator.shares[-1] == pytest.approx(imbalance)
    assert counts[0] / counts[-1] == pytest.approx(imbalance, rel=0.2)
    # Every class, not just the two ends.
    np.testing.assert_allclose(counts / counts.sum(), generator.shares, rtol=0.2)


def test_large_images_keep_the_imbalance():
    generator = SceneGenerator(0, (256, 512), imbalance=1000, rare_size=400)
    masks = np.stack([generator.draw(i)[1] for i in range(60)])
    counts = np.bincount(masks.ravel(), minlength=256)[:8]
    assert counts[0] / counts[-1] == pytest.approx(1000, rel=0.2)


@pytest.mark.parametrize("rare_size", [20, 60])
def test_rare_things_have_the_size_asked_for_and_are_absent_from_most_images(rare_size):
    generator = SceneGenerator(0, (96, 128), imbalance=1000, rare_size=rare_size)
    _, masks = draw_all(generator, 300)
    rarest = (masks == 7).sum(axis=(1, 2))
    assert (rarest > 0).mean() < 0.5
    # So rare that a scene seldom holds two of them.
    assert np.median(rarest[rarest > 0]) == pytest.approx(rare_size, rel=0.3)


def intersection_over_union(prediction, target, num_classes):
    valid = target != 255
    pairs = target[valid].astype(np.intp) * num_classes + prediction[valid]
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    return confusion.diagonal() / union


def test_colour_alone_tells_little(default_set):
    """The commonest class of each colour finds some of the large regions and no rare thing."""
    images, masks = default_set
    bins = (images.astype(np.intp) // 16) @ np.array([256, 16, 1])
    fit, held_out = slice(0, 100), slice(100, 200)
    valid = masks[fit] != 255
    table = np.zeros((4096, 8), dtype=np.intp)
    np.add.at(table, (bins[fit][valid], masks[fit][valid]), 1)
    iou = intersection_over_union(table.argmax(axis=1)[bins[held_out]], masks[held_out], 8)
    assert iou.mean() < 0.4
    assert iou.max() < 0.8
    assert iou[-3:].max() < 0.1
    # Nor do the rare things stand out once the rarity of their class is made up for.
    likely = (table / table.sum(axis=0)).argmax(axis=1)
    iou = intersection_over_union(likely[bins[held_out]], masks[held_out], 8)
    assert iou[-3:].max() < 0.2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scene_seed": -1}, "scene_seed"),
        ({"scene_seed": 0.5}, "scene_seed"),
        ({"scene_seed": True}, "scene_seed"),
        ({"image_size": (31, 64)}, "image_size"),
        ({"image_size": (64,)}, "image_size"),
        ({"image_size": 64}, "image_size"),
        ({"image_size": (64.0, 64)}, "image_size"),
        ({"num_classes": 2}, "num_classes"),
        ({"num_classes": 21}, "num_classes"),
        ({"num_classes": 8.0}, "num_classes"),
        ({"imbalance": 0.5}, "imbalance"),
        ({"imbalance": float("nan")}, "imbalance"),
        ({"imbalance": float("inf")}, "imbalance"),
        ({"imbalance": "100"}, "imbalance"),
        ({"rare_size": 0}, "rare_size"),
        ({"rare_size": 2000}, "rare_size"),
        ({"rare_size": None}, "rare_size"),
        # Less than a thing in thirty images.
        ({"imbalance": 5000, "image_size": (48, 64)}, "rare_size must be at most 12.7 .* got 40"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        SceneGenerator(**arguments)


@pytest.mark.parametrize("index", [-1, 1.0, None])
def test_bad_indices_are_refused(index):
    with pytest.raises(ValueError, match="index"):
        SceneGenerator().draw(index)
