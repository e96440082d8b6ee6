"""Class weights, τ, deferred re-weighting, PAT over the data set: what their parameters mean."""

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from test_losses import build, make_batch, same

from patlib.losses import PATLoss, build_loss, ce_loss, focal_loss, ldam_loss, pat_loss
from patlib.losses.cb import cb_weights
from patlib.losses.class_weights import class_weights

COUNTS = [50_000, 1200, 90, 30]
EQUAL = [700, 700, 700, 700]


def test_inverse_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 2, 4], [500, 120, 9, 3])
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 2, 4]), y=labels)
    with pytest.warns(UserWarning, match="class_counts is 0 for class 3"):
        weights = class_weights("inverse", np.bincount(labels))
    np.testing.assert_allclose(weights[[0, 1, 2, 4]], expected)
    assert weights[3] == weights[4]
    # The mean weight of a pixel is 1.
    assert weights.numpy()[labels].mean() == pytest.approx(1)


def test_median_frequency_weights_by_the_definition():
    # Masks of one size; f_c is over the images that hold the class.
    masks = np.random.default_rng(0).choice(4, (6, 50), p=[0.7, 0.2, 0.09, 0.01])
    masks[:4][masks[:4] == 2] = 0
    masks[0, :3] = 3
    holds = [[i for i in range(6) if (masks[i] == c).any()] for c in range(4)]
    frequency = np.array([(masks == c).sum() / masks[holds[c]].size for c in range(4)])
    counts, images = np.bincount(masks.ravel()), [len(h) for h in holds]
    assert images[2] == 2
    weights = class_weights("median_frequency", counts, images)
    np.testing.assert_allclose(weights, np.median(frequency) / frequency)


def test_enet_weights_lie_in_their_bounds():
    weights = class_weights("enet", [10**9, 1])
    np.testing.assert_allclose(weights, [1 / np.log(2.02), 1 / np.log(1.02)], rtol=1e-6)


def test_the_mean_is_over_the_pixels_not_over_the_weights():
    logits, target = make_batch()
    weights = torch.tensor([0.5, 2.0, 3.0, 7.0]).double()
    loss = build("ce", {"class_weights": weights.tolist()}, COUNTS)
    total = build("ce", {"class_weights": weights.tolist()}, COUNTS, reduction="sum")
    theirs = torch.nn.CrossEntropyLoss(weights, ignore_index=255)
    valid = target[target != 255]
    torch.testing.assert_close(loss(logits, target) * len(valid), total(logits, target))
    torch.testing.assert_close(loss(logits, target), theirs(logits, target) * weights[valid].mean())


def test_degenerate_cases():
    for scheme in ("inverse", "median_frequency"):
        weighted = {"class_weights": scheme}
        same(build_loss("ce", 4, EQUAL, [3, 3, 3, 3], **weighted), build("ce"))
        same(build_loss("focal", 4, EQUAL, [3, 3, 3, 3], **weighted), build("focal"))
    same(build("ce", {"class_weights": [1, 1, 1, 1]}), build("ce"))
    same(build("focal", {"gamma": 0.0, "class_weights": "enet"}, COUNTS),
         build("ce", {"class_weights": "enet"}, COUNTS))  # fmt: skip
    same(build("bms", {"tau": 0.0}, COUNTS), build("ce"))
    same(build("bms", {"tau": 1.0}, COUNTS), build("bms", counts=COUNTS))
    same(build("bms", {"tau": 0.5}, COUNTS), build("bms", counts=np.sqrt(COUNTS)))
    same(build("bms", {"tau": -3.0}, EQUAL), build("ce"))
    same(build("pat", {"presence_exponent": 0.0, "sizes": "image"}), build("pat"))
    # Classes that are in every image, and equally large classes.
    same(build_loss("pat", 4, COUNTS, [9, 9, 9, 9], 9, presence_exponent=2.0), build("pat"))
    same(build_loss("pat", 4, EQUAL, [9, 9, 9, 9], 700, sizes="dataset"),
         build("pat", {"size_exponent": 0.0}))  # fmt: skip
    same(build("ldam", {"deferred": 0.5}, COUNTS), build("ldam", counts=COUNTS))


def test_sizes_of_a_data_set_of_one_image_are_those_of_the_image():
    logits, target = make_batch((1, 4, 5, 6))
    counts = torch.bincount(target[target != 255], minlength=4)
    for params in ({}, {"size_exponent": 0.5}, {"normalize": "weights"}):
        over = build_loss("pat", 4, counts, (counts > 0).long(), 1, sizes="dataset", **params)
        value = build("pat", params)(logits, target)
        torch.testing.assert_close(over(logits, target), value)


def test_presence_weighs_a_class_by_the_images_that_hold_it():
    logits, target = make_batch()
    none = {"reduction": "none"}
    ratio = (
        build_loss("pat", 4, COUNTS, [8, 4, 2, 1], 8, presence_exponent=1.0, **none)(logits, target)
        / build("pat", **none)(logits, target)
    )  # fmt: skip
    for c in range(4):
        np.testing.assert_allclose(ratio[target == c].detach(), 2.0**c)


def test_pat_over_the_data_set_with_beta_1_is_inverse_class_frequency():
    logits, target = make_batch()
    pat = build_loss("pat", 4, COUNTS, None, 20, sizes="dataset", weight="none", reduction="sum")
    ce = build_loss("ce", 4, COUNTS, class_weights="inverse", reduction="sum")
    ratio = pat(logits, target) / ce(logits, target)
    assert ratio.item() == pytest.approx(20 * 4 / sum(COUNTS))


# ------------------------------------------------------------------ deferred re-weighting


def test_deferred_weights_set_in_when_their_share_is_done():
    logits, target = make_batch()
    loss, plain = build("ldam", {"deferred": 0.6}, COUNTS), build("ldam", counts=COUNTS)
    none = build("ldam", counts=COUNTS, reduction="none")(logits, target)
    ratios = cb_weights(COUNTS)
    weights = ratios * sum(COUNTS) / (ratios * torch.tensor(COUNTS)).sum()
    valid = target != 255
    later = (weights[target.where(valid, 0)] * none)[valid].mean()
    assert loss.progress == 0 and loss.deferred == 0.6
    for progress in (0.0, 0.3, 0.59):
        loss.progress = progress
        assert torch.equal(loss(logits, target), plain(logits, target))
    for progress in (0.6, 0.8, 1):
        loss.progress = progress
        torch.testing.assert_close(loss(logits, target), later)
    torch.testing.assert_close(
        ldam_loss(logits, target, COUNTS, class_weights=loss.current_weights()), later
    )
    # The mean weight of a training pixel is 1, so that the loss stays of its size.
    assert (weights @ torch.tensor(COUNTS).double()).item() == pytest.approx(sum(COUNTS))
    # Going back, as a run does that is resumed.
    loss.progress = 0.1
    assert torch.equal(loss(logits, target), plain(logits, target))


def test_deferred_weights_in_a_compiled_loss():
    torch._dynamo.reset()
    logits, target = make_batch()
    loss = build("ldam", {"deferred": 0.6}, COUNTS)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    for progress in (0.0, 0.7):
        loss.progress = progress
        torch.testing.assert_close(compiled(logits, target), loss(logits, target))


@pytest.mark.parametrize("name", ["ldam", "pat"])
def test_progress_and_deferred_are_not_in_the_state_of_the_loss(name):
    loss = build(name, {"deferred": 0.6}, COUNTS)
    loss.progress = 0.7
    assert "deferred=0.6" in repr(loss) and "progress" not in repr(loss)
    assert not loss.state_dict()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_deferred_pat_is_cross_entropy_and_then_pat(reduction):
    logits, target = make_batch()
    own = {"temperature": 0.5, "size_exponent": 0.5, "normalize": "weights"}
    loss = build("pat", {**own, "deferred": 0.5}, COUNTS, reduction=reduction)
    first, then = build("ce", reduction=reduction), build("pat", own, reduction=reduction)
    assert not torch.allclose(first(logits, target), then(logits, target), rtol=1e-2)
    for progress, expected in {0.0: first, 0.49: first, 0.5: then, 1.0: then, 0.1: first}.items():
        loss.progress = progress
        assert torch.equal(loss(logits, target), expected(logits, target))
    sizes = torch.tensor([[50, 5, 0, 1], [40, 0, 3, 9]])  # its prior is that of the end
    assert torch.equal(loss.class_prior(sizes), build("pat", own).class_prior(sizes))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", ["ce", "focal"])
@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("median", "class_weights must be one of 'inverse', 'median_frequency', 'enet', got 'med"),
        (1.0, "class_weights must be None, 'inverse', .* or one number for each class, got 1.0"),
        (True, "class_weights must be None, .*got True"),
        ({0: 1.0}, "class_weights must be None, .*got {0: 1.0}"),
        ([1.0, 2.0, 3.0], "class_weights must have one number for each of the 4 classes, got 3"),
        ([1.0, 2.0, 3.0, -4.0], "class_weights must be finite and >= 0, got -4"),
        ([1.0, 2.0, 3.0, float("nan")], "class_weights must be finite and >= 0, got nan"),
        ([0, 0, 0, 0], "class_weights must be > 0 for at least one class"),
        (["1", "2", "3", "4"], "class_weights must be a sequence of numbers"),
    ],
)
def test_wrong_class_weights(name, weights, said):
    with pytest.raises(ValueError, match=said):
        build_loss(name, 4, COUNTS, [4, 3, 2, 1], 4, class_weights=weights)


def test_functions_refuse_wrong_weights():
    logits, target = make_batch()
    for function in (ce_loss, focal_loss, pat_loss):
        for weights, said in (
            ([1.0, 2.0], "4 classes, got 2"),
            (torch.ones(5), r"4 classes, got shape \(5,\)"),
            ([1.0, 2.0, 3.0, -1.0], "class_weights must be finite and >= 0, got -1"),
            ("enet", "class_weights must be .*got 'enet'"),
        ):
            with pytest.raises(ValueError, match=said):
                function(logits, target, class_weights=weights)


@pytest.mark.parametrize(
    ("name", "params", "statistics", "said"),
    [
        ("ce", {"class_weights": "enet"}, {}, "class_counts must be .*got None"),
        (
            "ce",
            {"class_weights": "median_frequency"},
            {"class_counts": COUNTS},
            r"class_images must be .*got None; \(patlib.data.class_sizes",
        ),
        (
            "focal",
            {"class_weights": "median_frequency"},
            {"class_counts": COUNTS, "class_images": [1, 0, 1, 1]},
            "class_images must be 0 exactly where class_counts is 0, got 0 images and 1200 pixels "
            "of class 1",
        ),
        (
            "ce",
            {"class_weights": "median_frequency"},
            {"class_counts": COUNTS, "class_images": [1, 1, 1]},
            "class_images must have one number for each of the 4 classes, got 3",
        ),
        ("ce", {"class_weights": "enet"}, {"class_counts": [1, 2]}, "of the 4 classes, got 2"),
        ("pat", {"sizes": "dataset"}, {"num_images": 3}, "class_counts must be .*got None"),
        (
            "pat",
            {"sizes": "dataset"},
            {"class_counts": COUNTS},
            "num_images must be given.*sizes='dataset', got None",
        ),
        (
            "pat",
            {"presence_exponent": 1},
            {"class_counts": COUNTS},
            "num_images, class_images must be given, which PAT needs for presence_exponent > 0",
        ),
        (
            "mix",
            {"losses": {"ce": 1, "ldam": 1}},
            {},
            "losses: 'ldam' of the sum: class_counts must be",
        ),
        (
            "pat",
            {"presence_exponent": 1},
            {"class_counts": COUNTS, "num_images": 3},
            "class_images must be .*got None",
        ),
        (
            "pat",
            {"presence_exponent": 1},
            {"class_counts": COUNTS, "class_images": [1, 2, 4, 1], "num_images": 3},
            "class_images must be <= num_images=3, got 4",
        ),
        (
            "pat",
            {"sizes": "dataset"},
            {"class_counts": COUNTS, "num_images": 0},
            "num_images must be an integer >= 1, got 0",
        ),
        ("pat", {"sizes": "images"}, {}, "sizes must be one of 'image', 'dataset', got 'images'"),
        ("pat", {"deferred": 1}, {}, "deferred must be .*> 0 and < 1, got 1"),
        ("pat", {"presence_exponent": -1}, {}, "presence_exponent must be .*>= 0 and < 5, got -1"),
        ("pat", {"presence_exponent": 5}, {}, "presence_exponent must be .*>= 0 and < 5, got 5"),
        ("pat", {"presence_exponent": True}, {}, "presence_exponent must be .*got True"),
        ("bms", {"tau": float("inf")}, {"class_counts": COUNTS}, "tau must be a finite number"),
        ("bms", {"tau": "1"}, {"class_counts": COUNTS}, "tau must be a finite number"),
        (
            "ldam",
            {"deferred": 0},
            {"class_counts": COUNTS},
            "deferred must .*> 0 and < 1, got 0",
        ),
        (
            "ldam",
            {"deferred": 1},
            {"class_counts": COUNTS},
            "deferred must .*> 0 and < 1, got 1",
        ),
        ("ldam", {"deferred": True}, {"class_counts": COUNTS}, "deferred must be .*got True"),
    ],
)
def test_wrong_parameters_and_statistics(name, params, statistics, said):
    with pytest.raises(ValueError, match=said):
        build_loss(name, 4, **statistics, **params)


def test_wrong_progress():
    loss = build("ldam", {"deferred": 0.5}, COUNTS)
    for wrong in (-0.1, 1.1, float("nan"), "0.5"):
        with pytest.raises(ValueError, match="progress must be a finite number >= 0 and <= 1"):
            loss.progress = wrong
    assert loss.progress == 0


def test_an_absent_class_is_treated_as_the_rarest():
    counts, images = [9_000, 0, 60, 0], [9, 0, 6, 0]
    for name, params in (
        ("ce", {"class_weights": "inverse"}),
        ("ce", {"class_weights": "median_frequency"}),
        ("focal", {"class_weights": "enet"}),
        ("pat", {"sizes": "dataset"}),
        ("pat", {"presence_exponent": 1.0}),
        ("pat", {"sizes": "dataset", "presence_exponent": 1.0}),
    ):
        with pytest.warns(UserWarning, match="is 0 for class 1, 3") as warned:
            loss = build_loss(name, 4, counts, images, 9, **params)
        assert len(warned) == 1
        (constants,) = loss.buffers()
        assert constants[1] == constants[2] == constants[3]
        (alone,) = build_loss(name, 2, [9_000, 60], [9, 6], 9, **params).buffers()
        torch.testing.assert_close(constants[[0, 2]], alone)
    with pytest.warns(UserWarning) as warned:
        build_loss("ldam", 4, counts, deferred=0.5)
    assert len(warned) == 1


def test_class_weights_say_how_many_classes_there_are():
    loss = PATLoss(sizes="dataset", class_counts=COUNTS, num_images=4)
    assert loss.num_classes == 4
    with pytest.raises(ValueError, match="4 classes, got 3 channels"):
        loss(torch.zeros(1, 3, 5), torch.zeros(1, 5).long())
