"""Metrics against torchmetrics, scikit-learn and cases counted by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, jaccard_score
from torchmetrics.functional.classification import multiclass_confusion_matrix

from patlib.metrics import (
    SegmentationMetrics,
    class_groups,
    compute_scores,
    count_per_image,
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
    stored = compute_scores(parts, class_groups(class_counts))
    assert stored.keys() == live.keys() - {"released_miou", "confusion"}
    for name, values in stored.items():
        np.testing.assert_array_equal(values[0], live[name])
    alone = SegmentationMetrics(6, class_counts)
    alone.update(logits[1:2], target[1:2])
    for name, score in alone.compute().items():
        if name in stored:
            np.testing.assert_array_equal(stored[name][2], score)
