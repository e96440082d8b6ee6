"""The released code's losses and mIoU against what that code gave, NumPy and sklearn."""

import doctest
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from patlib.losses import ce_loss, focal_loss
from patlib.models import build_model
from patlib.released import (
    RELEASED_LOSSES,
    build_run_loss,
    losses,
    miou,
    pat_ina,
    pat_inap,
    released_blv,
    released_bms,
    released_cb,
    released_ldam,
    released_miou,
    released_miou_from_confusion,
)
from patlib.seeds import seeded

CASES = json.loads((Path(__file__).parent / "data/released_code_oracle.json").read_text())
each_case = pytest.mark.parametrize("case", CASES, ids=["4 classes", "3 classes"])


def load(case):
    logits = torch.tensor(case["logits"], dtype=torch.float64, requires_grad=True)
    return logits, torch.tensor(case["target"]), case["released"]


def confusion_matrix(prediction, target, size):
    matrix = torch.zeros(size, size, dtype=torch.int64)
    for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != 255:
            matrix[t, p] += 1
    return matrix


@each_case
@pytest.mark.parametrize("variant", ["inap", "ina"])
@pytest.mark.parametrize("tau", [1, 20])
def test_pat_is_the_released_one(case, variant, tau):
    logits, target, expected = load(case)
    value = {"inap": pat_inap, "ina": pat_ina}[variant](logits, target, tau=tau)
    value.backward()
    expected = expected[f"pat_released_{variant}_tau{tau}"]
    np.testing.assert_allclose(value.item(), expected["loss"], rtol=1e-12)
    np.testing.assert_allclose(logits.grad, expected["grad"], rtol=1e-9, atol=1e-12)


def test_tau_is_1_unless_given():
    logits, target, _ = load(CASES[0])
    assert pat_inap(logits, target) == pat_inap(logits, target, tau=1)
    assert pat_ina(logits, target) == pat_ina(logits, target, tau=1)


def test_pat_weights_at_the_ends():
    # p = 1/2 in a hundred pixels and classes of any number: by hand.
    for num_classes in (2, 5):
        logits = torch.full((1, num_classes, 10, 10), -1e4)
        logits[:, :2] = 0
        target = torch.ones(1, 10, 10, dtype=torch.int64)
        inap = math.log(2) / (2 * math.exp(-0.5)) / num_classes
        ina = math.log(2) / (2 * math.exp(-0.5 * num_classes)) / num_classes
        assert pat_inap(logits, target).item() == pytest.approx(inap)
        assert pat_ina(logits, target).item() == pytest.approx(ina)


@pytest.mark.parametrize("loss", [pat_inap, pat_ina])
def test_pat_checks_its_input(loss):
    logits, target = torch.zeros(1, 3, 2), torch.tensor([[0, 2]])
    for tau in (0, -1, math.nan, math.inf, True, "1", None):
        with pytest.raises(ValueError, match=r"tau must be .* > 0"):
            loss(logits, target, tau=tau)
    with pytest.raises(ValueError, match="ignored pixels"):
        loss(logits, torch.tensor([[0, 255]]))
    with pytest.raises(ValueError, match="got 3"):
        loss(logits, torch.tensor([[0, 3]]))
    with pytest.raises(ValueError, match="logits must be floating"):
        loss(logits.long(), target)
    assert loss(logits.half(), target).dtype == torch.float32
    assert loss(logits.double(), target).dtype == torch.float64


@each_case
def test_miou_is_the_released_one(case):
    logits, target, expected = load(case)
    prediction, num_classes = logits.argmax(1), logits.shape[1]
    # 1e-13: the 1e-10 added to intersection and union shows at 1e-11.
    close = {"rel": 1e-13, "abs": 0}
    for k, name in ((3, "miou_default_3_classes"), (num_classes, "miou_all_classes")):
        assert released_miou(prediction, target, k) == pytest.approx(expected[name], **close)
        confusion = confusion_matrix(prediction, target, num_classes)
        assert released_miou_from_confusion(confusion, k) == pytest.approx(expected[name], **close)
    assert released_miou(prediction, target) == released_miou(prediction, target, 3)
    assert released_miou_from_confusion(confusion) == released_miou(prediction, target)


@pytest.mark.parametrize("num_classes", [1, 3, 7])
def test_miou_is_the_jaccard_index_of_the_classes_present(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    target = torch.randint(7, (2, 12, 10), generator=generator)
    target[target == 1] = 5  # absent, but predicted
    prediction = torch.randint(7, (2, 12, 10), generator=generator)
    present = [c for c in range(num_classes) if c != 1]
    expected = jaccard_score(
        target.flatten(), prediction.flatten(), labels=present, average="macro"
    )
    assert released_miou(prediction, target, num_classes) == pytest.approx(expected, abs=1e-9)


def test_miou_leaves_ignored_pixels_out():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randint(5, (2, 300), generator=generator)
    ignored = torch.rand(300, generator=generator) < 0.3
    target[ignored] = 255
    value = released_miou(prediction, target)
    assert value == released_miou(prediction[~ignored], target[~ignored])
    assert value == released_miou(prediction.where(~ignored, 0), target)
    assert value == released_miou_from_confusion(confusion_matrix(prediction, target, 5))


def test_miou_without_a_class_that_counts():
    labels = torch.tensor([3, 4])
    assert math.isnan(released_miou(labels, labels))
    assert math.isnan(released_miou(labels, torch.tensor([255, 255])))
    assert math.isnan(released_miou_from_confusion(torch.zeros(5, 5, dtype=torch.int64)))
    # A false positive of an absent class is free.
    assert released_miou(torch.tensor([0, 0, 2]), torch.tensor([0, 0, 4])) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_miou_of_any_integer_labels(dtype):
    # 200 * 201 overflows uint8.
    prediction, target = torch.tensor([200, 1, 0, 0]), torch.tensor([200, 1, 1, 0])
    value = released_miou(prediction.to(dtype), target.to(dtype), num_classes=201)
    assert value == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


def test_miou_checks_its_input():
    labels = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        released_miou(labels, labels[:2])
    with pytest.raises(ValueError, match=r"prediction must be integer .*float32"):
        released_miou(labels.float(), labels)
    with pytest.raises(ValueError, match=r"target must be integer .*bool"):
        released_miou(labels, labels > 0)
    with pytest.raises(ValueError, match=">= 0, got -1"):
        released_miou(labels - 1, labels)
    for num_classes in (0, -1, 3.0, True, None):
        with pytest.raises(ValueError, match="num_classes must be an integer >= 1"):
            released_miou(labels, labels, num_classes)
        with pytest.raises(ValueError, match="num_classes must be an integer >= 1"):
            released_miou_from_confusion(torch.zeros(3, 3).long(), num_classes)
    with pytest.raises(ValueError, match=r"\(L, L\) .* \(3,\)"):
        released_miou_from_confusion(labels)
    with pytest.raises(ValueError, match=r"\(L, L\) .* \(2, 3\)"):
        released_miou_from_confusion(torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match=r"integer .*float32"):
        released_miou_from_confusion(torch.eye(3))
    with pytest.raises(ValueError, match="at most the 3 classes"):
        released_miou_from_confusion(torch.eye(3).long(), 4)


ORACLE = {
    "cross_entropy": (ce_loss, {}),
    "class_balanced": (released_cb, {}),
    "cb_focal_gamma2": (released_cb, {"gamma": 2.0}),
    "balanced_softmax": (released_bms, {}),
    # The released margins are rounded to float32.
    "ldam_m0.5_s30": (released_ldam, {"max_margin": 0.5, "scale": 30.0}),
}


@each_case
@pytest.mark.parametrize("name", ORACLE)
def test_loss_is_the_released_one(case, name):
    logits, target, expected = load(case)
    loss, params = ORACLE[name]
    value = loss(logits, target, **params)
    value.backward()
    rounded = name.startswith("ldam")
    np.testing.assert_allclose(
        value.item(), expected[name]["loss"], rtol=1e-7 if rounded else 1e-12
    )
    np.testing.assert_allclose(
        logits.grad, expected[name]["grad"], rtol=1e-9, atol=2e-7 if rounded else 1e-12
    )


@each_case
def test_released_focal_is_ours_over_the_number_of_classes(case):
    logits, target, expected = load(case)
    value = focal_loss(logits, target, gamma=2.0) / logits.shape[1]
    assert value.item() == pytest.approx(expected["focal_gamma2"]["loss"], rel=1e-12)


@each_case
def test_released_blv_varies_frequent_classes_most(case):
    logits, target, _ = load(case)
    torch.testing.assert_close(released_blv(logits, target, sigma=0.0), ce_loss(logits, target))
    # The formula in NumPy, with the numbers that PyTorch draws.
    torch.manual_seed(5)
    drawn = (0.5 * torch.randn_like(logits)).numpy()
    counts = np.bincount(target.flatten(), minlength=logits.shape[1])
    f = np.log(np.maximum(counts, 1))
    share = (f / f.max()).reshape(1, -1, 1, 1)
    x = logits.detach().numpy() + np.minimum(np.abs(drawn), 1) * share
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    reference = -np.take_along_axis(log_p, target.numpy()[:, None], 1).mean()
    torch.manual_seed(5)
    assert released_blv(logits, target, sigma=0.5).item() == pytest.approx(reference, rel=1e-12)
    assert share.argmax() == counts.argmax()


FUNCTIONS = {
    "released_bms": released_bms,
    "released_cb": released_cb,
    "released_ldam": released_ldam,
    "released_blv": released_blv,
    "released_inap": pat_inap,
    "released_ina": pat_ina,
}


@pytest.mark.parametrize("name", RELEASED_LOSSES)
def test_module_leaves_ignored_pixels_out(name):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 5, 6, 7, generator=generator, requires_grad=True)
    target = torch.randint(4, (2, 6, 7), generator=generator)  # class 4 is absent
    target[0, :3] = 255
    module = build_run_loss(name, num_classes=5, class_counts=torch.ones(5))
    torch.manual_seed(0)
    loss = module(logits, target)
    loss.backward()
    assert loss.dtype == torch.float32 and logits.grad.isfinite().all()
    assert not logits.grad[0, :, :3].any() and logits.grad[1].any()
    valid = target != 255
    torch.manual_seed(0)
    expected = FUNCTIONS[name](logits.detach().permute(0, 2, 3, 1)[valid], target[valid])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    nothing = module(logits, torch.full_like(target, 255))
    assert nothing.item() == 0
    with pytest.raises(ValueError, match="5 classes"):
        module(logits[:, :4], target)


def test_released_bms_of_large_logits_is_finite():
    logits = torch.full((1, 2, 1, 4), 100.0, requires_grad=True)  # exp(100) leaves float32
    target = torch.tensor([[[0, 0, 0, 1]]])
    loss = released_bms(logits, target)
    assert 3e38 < released_bms(logits.double(), target) < 1e45
    assert loss.dtype == torch.float32


def test_build_run_loss():
    assert build_run_loss("released_cb", 3, gamma=2.0).gamma == 2
    assert type(build_run_loss("ce", 3)).__name__ == "CELoss"
    with pytest.raises(ValueError, match=r"loss 'released_bms' .*temperature"):
        build_run_loss("released_bms", 3, temperature=2.0)
    for name, params, match in (
        ("released_cb", {"gamma": -1}, "gamma must be"),
        ("released_ldam", {"scale": 0}, "scale must be"),
        ("released_ldam", {"max_margin": -1}, "max_margin must be"),
        ("released_blv", {"sigma": math.nan}, "sigma must be"),
        ("released_inap", {"tau": 0}, "tau must be"),
    ):
        with pytest.raises(ValueError, match=match):
            build_run_loss(name, 3, **params)


def test_rectified_logits_of_segnet():
    images = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    both = []
    for rectified in (False, True):
        with seeded(0):
            both.append(build_model("segnet", 4, width=2, stages=2, rectified=rectified))
    plain, net = both
    assert plain.state_dict().keys() < net.state_dict().keys()
    assert len(list(net.parameters())) == len(list(plain.parameters())) + 2  # of a batch norm
    x = plain(images)  # in training mode: statistics of the batch
    std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(net(images), ((x - mean) / std).clamp_min(0), atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="rectified must be one of True, False, got 1"):
        build_model("segnet", 4, rectified=1)


@pytest.mark.parametrize("module", [losses, miou])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
