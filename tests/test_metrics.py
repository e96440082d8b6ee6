"""Metrics against torchmetrics, scikit-learn and cases counted by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_erosion
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    jaccard_score,
    precision_score,
    recall_score,
)
from torchmetrics.functional.classification import multiclass_confusion_matrix

from patlib.metrics import (
    SegmentationMetrics,
    boundary_counts,
    class_groups,
    compute_image_scores,
    compute_scores,
    count_per_image,
    score_groups,
    scores_of_counts,
)


def random_case(seed, num_classes=6, shape=(3, 9, 11)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], num_classes, *shape[1:], generator=generator)
    target = torch.randint(num_classes, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < 0.2] = 255
    return logits, target


@pytest.mark.parametrize("seed", range(5))
def test_against_torchmetrics_and_sklearn(seed):
    metrics = SegmentationMetrics(6)
    cases = [random_case(10 * seed + i) for i in range(3)]
    for logits, target in cases:
        metrics.update(logits, target)
    scores = metrics.compute()

    target = torch.cat([t.flatten() for _, t in cases])
    labels = torch.cat([x.argmax(1).flatten() for x, _ in cases])
    confusion = multiclass_confusion_matrix(labels, target, 6, ignore_index=255)
    assert torch.equal(metrics.confusion, confusion)
    valid = (target != 255).numpy()
    truth, predicted = target.numpy()[valid], labels.numpy()[valid]
    np.testing.assert_allclose(scores["iou"], jaccard_score(truth, predicted, average=None))
    assert scores["miou"] == pytest.approx(jaccard_score(truth, predicted, average="macro"))
    assert scores["pixel_accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert scores["mean_accuracy"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert scores["dice_error"] == pytest.approx(1 - f1_score(truth, predicted, average="macro"))
    np.testing.assert_allclose(scores["precision"], precision_score(truth, predicted, average=None))
    np.testing.assert_allclose(scores["recall"], recall_score(truth, predicted, average=None))
    ratio = np.bincount(predicted, minlength=6) / np.bincount(truth, minlength=6)
    np.testing.assert_allclose(scores["predicted_ratio"], ratio)


def test_labels_count_like_logits_and_batches_add_up():
    logits, target = random_case(1)
    whole, parts = SegmentationMetrics(6), SegmentationMetrics(6)
    whole.update(logits, target)
    for x, t in zip(logits, target, strict=True):
        parts.update(x.argmax(0)[None], t[None])
    a, b = whole.compute(), parts.compute()
    assert torch.equal(whole.confusion, parts.confusion)
    assert {k: v for k, v in a.items() if k != "released_miou"} == {
        k: v for k, v in b.items() if k != "released_miou"
    }


def test_class_in_neither_truth_nor_prediction_is_left_out():
    metrics = SegmentationMetrics(4, class_counts=[10, 5, 2, 1])
    metrics.update(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 0]]))
    scores = metrics.compute()
    assert scores["iou"][:2] == pytest.approx([2 / 3, 1 / 2])
    assert math.isnan(scores["iou"][2]) and math.isnan(scores["iou"][3])
    assert scores["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Recall of class 0 is 2/3, of class 1 is 1; classes 2 and 3 have no truth.
    assert scores["mean_accuracy"] == pytest.approx(5 / 6)
    assert scores["head"] == pytest.approx(2 / 3)
    assert math.isnan(scores["tail"])


def test_predicted_but_absent_class_has_iou_zero():
    metrics = SegmentationMetrics(3)
    metrics.update(torch.tensor([[0, 2]]), torch.tensor([[0, 0]]))
    assert metrics.compute()["iou"] == pytest.approx([0.5, math.nan, 0.0], nan_ok=True)


def test_ignored_pixels_do_nothing():
    logits, target = random_case(2)
    other = torch.where((target == 255)[:, None], -logits, logits)
    scores = []
    for x in (logits, other):
        metrics = SegmentationMetrics(6)
        metrics.update(x, target)
        scores.append(metrics.compute())
    assert scores[0] == scores[1]


def test_no_valid_pixel_at_all_gives_nan_not_an_error():
    metrics = SegmentationMetrics(3)
    metrics.update(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 255))
    assert math.isnan(metrics.compute()["miou"])


def test_groups_are_thirds_and_the_middle_takes_the_remainder():
    assert class_groups([5, 50, 7, 1, 3]) == {"head": [1], "mid": [2, 0, 4], "tail": [3]}
    sizes = {n: [len(g) for g in class_groups(range(n, 0, -1)).values()] for n in (3, 11, 13, 19)}
    assert sizes == {3: [1, 1, 1], 11: [3, 5, 3], 13: [4, 5, 4], 19: [6, 7, 6]}
    assert class_groups([4, 4, 4])["head"] == [0]


def test_head_mid_tail_are_means_of_their_classes():
    logits, target = random_case(3)
    metrics = SegmentationMetrics(6, class_counts=[1, 60, 3, 40, 5, 20])
    metrics.update(logits, target)
    scores = metrics.compute()
    assert scores["head"] == pytest.approx((scores["iou"][1] + scores["iou"][3]) / 2)
    assert scores["mid"] == pytest.approx((scores["iou"][5] + scores["iou"][4]) / 2)
    assert scores["tail"] == pytest.approx((scores["iou"][2] + scores["iou"][0]) / 2)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (
            torch.zeros(1, 4, 2, 2),
            torch.zeros(1, 2, 2, dtype=torch.int64),
            "num_classes=3",
        ),
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 3, dtype=torch.int64), "same shape"),
        (torch.zeros(1, 3, 1, 2), torch.tensor([[[0, 3]]]), "target must be 0 ... 2, got 0 ... 3"),
        (torch.tensor([[0, -1]]), torch.tensor([[0, 0]]), "prediction must be 0 ... 2, got -1"),
    ],
)
def test_wrong_input_is_named(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        SegmentationMetrics(3).update(prediction, target)


def test_two_classes():
    metrics = SegmentationMetrics(2, class_counts=[5, 3])
    metrics.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 0, 1]]))
    scores = metrics.compute()
    assert scores["iou"] == pytest.approx([0.5, 0.5])
    assert scores["mid"] == 0.5 and math.isnan(scores["head"])  # a third of two classes is none


def test_class_counts_of_the_wrong_length():
    with pytest.raises(ValueError, match="class_counts must have num_classes=3 entries, got 2"):
        SegmentationMetrics(3, class_counts=[1, 2])
    with pytest.raises(ValueError, match="class_images must have num_classes=3 entries, got 4"):
        SegmentationMetrics(3, class_counts=[1, 2, 3], class_images=[1, 2, 3, 4])


def test_groups_by_images_and_by_share():
    counts, images = [980, 9, 10, 0, 1], [3, 8, 1, 0, 9]
    groups = score_groups(counts, images)
    assert groups["rare"] == [1, 3, 4] and groups["common"] == [0, 2]  # 1 % is not under 1 %
    assert groups["head"] == [0] and groups["tail"] == [3]
    assert groups["head_images"] == [4] and groups["tail_images"] == [3]
    assert groups["mid_images"] == [1, 0, 2]
    assert score_groups(counts).keys() == {"head", "mid", "tail", "common", "rare"}
    # A group without classes has no score; it is not an error.
    scores = compute_scores(np.ones((3, 2)), score_groups([1, 1]))
    assert math.isnan(scores["rare"]) and scores["common"] == 1


# --- by image -------------------------------------------------------------------------------------


def scores_by_image(labels, target, num_classes, share=None):
    """mIoU^I and mIoU^C of Wang et al. in float64 loops; of the worst images, with a share."""

    def worst(values):
        n = len(values) if share is None else max(1, int(share * len(values) + 1e-9))
        return sum(sorted(values)[:n]) / n

    of_images, of_classes = [], {}
    for predicted, truth in zip(labels, target, strict=True):
        ious = []
        for c in range(num_classes):
            p, t = (predicted == c) & (truth != 255), truth == c
            if t.any():
                ious.append((p & t).sum() / (p | t).sum())
                of_classes.setdefault(c, []).append(ious[-1])
        if ious:
            of_images.append(sum(ious) / len(ious))
    return worst(of_images), np.mean([worst(values) for values in of_classes.values()])


@pytest.mark.parametrize("num_images", [1, 7, 10, 30])
def test_scores_by_image_against_loops(num_images):
    rng = np.random.default_rng(num_images)
    num_classes = 5
    target = rng.integers(0, num_classes - 1, (num_images, 6, 5))  # one class nowhere
    target[rng.random(target.shape) < 0.2] = 255
    for i in range(num_images):  # classes that are in some images only
        target[i][target[i] == rng.integers(num_classes)] = 0
    if num_images > 1:
        target[1] = 255
    labels = np.where(rng.random(target.shape) < 0.4, target, rng.integers(0, 5, target.shape))
    labels[labels == 255] = 4
    counts = count_per_image(torch.from_numpy(labels), torch.from_numpy(target), num_classes)
    scores = compute_image_scores(counts)
    miou_i, miou_c = scores_by_image(labels, target, num_classes)
    assert scores["miou_i"] == pytest.approx(miou_i, abs=1e-12)
    assert scores["miou_c"] == pytest.approx(miou_c, abs=1e-12)
    worst_i, worst_c = scores_by_image(labels, target, num_classes, share=0.1)
    assert scores["miou_i_worst10"] == pytest.approx(worst_i, abs=1e-12)
    assert scores["miou_c_worst10"] == pytest.approx(worst_c, abs=1e-12)
    if num_images > 9:
        assert worst_i < miou_i and worst_c < miou_c


def test_scores_by_image_by_hand():
    # Image 0: class 0 is right. Image 1: classes 0 and 1, all called 0; class 2 is called nowhere.
    counts = np.array([[[4, 0, 0], [4, 0, 0], [4, 0, 0]], [[2, 0, 0], [2, 2, 0], [4, 0, 0]]])
    scores = scores_of_counts(counts, score_groups([6, 2, 0], [2, 1, 0]))
    assert scores["miou"] == pytest.approx((6 / 8 + 0) / 2)
    assert scores["miou_i"] == pytest.approx((1 + (1 / 2 + 0) / 2) / 2)
    assert scores["miou_c"] == pytest.approx(((1 + 1 / 2) / 2 + 0) / 2)
    assert scores["miou_i_worst10"] == pytest.approx(1 / 4)
    assert scores["miou_c_worst10"] == pytest.approx((1 / 2 + 0) / 2)
    assert scores["head_images"] == 0.75 and scores["mid_images"] == 0
    assert scores["recall"][:2] == [1, 0] and math.isnan(scores["recall"][2])
    assert scores["predicted_ratio"][:2] == [8 / 6, 0] and math.isnan(scores["predicted_ratio"][2])


def test_a_class_predicted_where_it_is_not_does_not_count_by_itself():
    counts = np.array([[[3, 0], [4, 0], [3, 1]]])
    assert compute_image_scores(counts)["miou_i"] == 3 / 4
    assert compute_scores(counts[0])["miou"] == (3 / 4 + 0) / 2


def test_no_valid_pixel_by_image_gives_nan():
    scores = compute_image_scores(np.zeros((3, 3, 4), np.int32))
    assert len(scores) == 4 and all(math.isnan(score) for score in scores.values())


def test_large_counts_do_not_overflow():
    counts = np.full((3, 3, 2), 2**31 - 1, np.int32)
    assert scores_of_counts(counts)["miou"] == 1


# --- boundaries -----------------------------------------------------------------------------------


def bands_by_erosion(labels, target, num_classes, d):
    """The counts of the paper's bands, by scipy's erosion with a 3x3 square, d times."""
    counts = []
    for predicted, truth in zip(labels, target, strict=True):
        bands = []
        for x in (truth, np.where(truth == 255, 255, predicted)):
            masks = [x == c for c in range(num_classes)]
            square = np.ones((3, 3))
            bands.append([m & ~binary_erosion(m, square, iterations=d) for m in masks])
        t, p = (np.array(b) for b in bands)
        counts.append([(t & p).sum((1, 2)), t.sum((1, 2)), p.sum((1, 2))])
    return np.array(counts)


@pytest.mark.parametrize(("ratio", "d"), [(0.02, 1), (0.05, 1), (0.07, 2), (0.2, 5)])
def test_boundary_counts_against_erosion(ratio, d):
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 4, (3, 4, 3))
    target = np.kron(blocks, np.ones((1, 5, 5), int))  # 20x15, diagonal 25
    target[0][rng.random((20, 15)) < 0.03] = 255
    target[1] = 2  # one class alone: the frame of the image
    labels = np.roll(target, (1, 2), (1, 2))
    labels[labels == 255] = 3
    found = boundary_counts(torch.from_numpy(labels), torch.from_numpy(target), 4, ratio)
    np.testing.assert_array_equal(found, bands_by_erosion(labels, target, 4, d))
    assert found[1, 1].tolist() == [0, 0, 20 * 15 - max(0, 20 - 2 * d) * max(0, 15 - 2 * d), 0]


def test_boundaries_of_a_perfect_prediction_of_uint8_labels():
    target = torch.tensor([[[0, 0, 1, 255], [0, 0, 1, 1], [2, 2, 1, 1], [2, 2, 1, 1]]])
    counts = boundary_counts(target.where(target != 255, 0).to(torch.uint8), target, 4)
    assert compute_scores(counts.sum(0))["iou"][:3].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="ratio must be a finite number > 0, got 0"):
        boundary_counts(target, target, 4, ratio=0)


def test_counts_of_each_image_are_those_of_its_own_confusion_matrix():
    logits, target = random_case(3)
    target[1] = 255  # an image without a valid pixel
    labels = logits.argmax(1)
    counts = count_per_image(labels, target, 6)
    for image in range(3):
        confusion = multiclass_confusion_matrix(labels[image], target[image], 6, ignore_index=255)
        expected = [confusion.diagonal(), confusion.sum(1), confusion.sum(0)]
        assert torch.equal(counts[image], torch.stack(expected))


def test_scores_of_stored_counts_are_those_of_the_live_metrics():
    logits, target = random_case(4)
    class_counts = [1, 60, 3, 40, 5, 20]
    metrics = SegmentationMetrics(6, class_counts)
    metrics.update(logits, target)
    live = metrics.compute()
    assert live["confusion"] == metrics.confusion.tolist()
    counts = count_per_image(logits.argmax(1), target, 6)
    # Of any leading shape: here the whole, and two single images.
    parts = np.stack([counts.sum(0), counts[0], counts[1]])
    stored = compute_scores(parts, score_groups(class_counts))
    assert stored.keys() == live.keys() - {"released_miou", "confusion"}
    for name, values in stored.items():
        np.testing.assert_array_equal(values[0], live[name])
    alone = SegmentationMetrics(6, class_counts)
    alone.update(logits[1:2], target[1:2])
    for name, score in alone.compute().items():
        if name in stored:
            np.testing.assert_array_equal(stored[name][2], score)
