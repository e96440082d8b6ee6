"""What the losses refuse, and what they say."""

import numpy as np
import pytest
import torch

from patlib import losses
from patlib.losses import LOSSES, build_loss

COUNTS = [50, 20, 5, 0]
NEED_COUNTS = ["cb", "cb_focal", "bms", "ldam", "blv"]
NEED_NONE = ["ce", "focal", "pat"]

every_name = pytest.mark.parametrize("name", LOSSES)


def build(name, **params):
    return build_loss(name, 4, class_counts=COUNTS, **params)


def function(name):
    """The functional form, as a function of logits, target and keywords."""
    loss, counts = getattr(losses, f"{name}_loss"), (COUNTS,) if name in NEED_COUNTS else ()
    return lambda logits, target, **params: loss(logits, target, *counts, **params)


def refused(*said):
    """Expect a ValueError whose message contains each of these."""
    pattern = "".join(f"(?=.*{text})" for text in said)
    return pytest.raises(ValueError, match=f"(?s){pattern}")


# ------------------------------------------------------------------ build_loss


@pytest.mark.parametrize("name", ["dice", "PAT", "", None])
def test_unknown_name(name):
    with refused(repr(name), *LOSSES):
        build_loss(name, 4)


@pytest.mark.parametrize("num_classes", [0, -1, 4.0, "4", True, None])
def test_wrong_num_classes(num_classes):
    with refused("num_classes", ">= 1", repr(num_classes)):
        build_loss("ce", num_classes)


@pytest.mark.parametrize(
    ("name", "param", "allowed"),
    [
        ("ce", "gamma", ["ignore_index", "reduction"]),
        ("focal", "temperature", ["gamma", "ignore_index", "reduction"]),
        ("pat", "temprature", ["temperature", "epsilon", "size_exponent", "weight", "detach"]),
        ("blv", "training", ["noise", "sigma"]),
        ("cb", "weights", ["beta"]),
    ],
)
def test_unknown_parameter(name, param, allowed):
    pattern = "".join(f"(?=.*{text})" for text in [repr(name), repr(param), *allowed])
    with pytest.raises(ValueError, match=pattern) as error:
        build(name, **{param: 1.0})
    # They are given otherwise than as a parameter.
    assert "class_counts" not in str(error.value) and "num_classes" not in str(error.value)


@pytest.mark.parametrize("name", NEED_COUNTS)
def test_missing_class_counts(name):
    said = ["class_counts", "valid pixels per class", r"patlib\.data\.count_classes\(dataset\)"]
    with refused(*said):
        build_loss(name, 4)
    with refused(*said):
        getattr(losses, f"{name}_loss")(torch.zeros(1, 4, 1), torch.zeros(1, 1).long(), None)


@pytest.mark.parametrize("name", NEED_NONE)
def test_class_counts_may_always_be_given(name):
    logits, target = torch.randn(1, 4, 3), torch.tensor([[0, 3, 1]])
    assert build(name)(logits, target) == build_loss(name, 4)(logits, target)


@pytest.mark.parametrize("name", NEED_COUNTS)
@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([1, 2, 3], ["4 classes", "got 3"]),
        ([1, 2, 3, 4, 5], ["4 classes", "got 5"]),
        ([1, 2, 3, -4], ["-4"]),
        ([1, 2, 3, float("nan")], ["nan"]),
        ([1, 2, 3, float("inf")], ["inf"]),
        (torch.tensor([1.0, 2.0, 3.0, float("-inf")]), ["-inf"]),
        ([[1, 2, 3, 4]], [r"\(1, 4\)"]),
        (10, [r"\(\)"]),
        ([], [r"\(0,\)"]),
        (["1", "2", "3", "4"], ["numbers", "<U1"]),
        ([True, False, True, True], ["numbers", "bool"]),
        (torch.tensor([True] * 4), ["numbers", "bool"]),
        ({0: 1}, ["numbers", "object"]),
    ],
)
def test_wrong_class_counts(name, counts, said):
    with refused("class_counts", *said):
        build_loss(name, 4, class_counts=counts)


# ------------------------------------------------------------------ parameters

NOT_NUMBERS = [float("nan"), float("inf"), float("-inf"), True, "1", None, [1.0], 1j]
NEGATIVE, ZERO = [-0.1, *NOT_NUMBERS], [0, -1, *NOT_NUMBERS]
WRONG = [
    ("focal", "gamma", NEGATIVE, ">= 0"),
    ("cb_focal", "gamma", NEGATIVE, ">= 0"),
    ("cb", "beta", [1, 1.5, *(v for v in NEGATIVE if v is not None)], ">= 0 and < 1"),
    ("cb_focal", "beta", [1, *(v for v in NEGATIVE if v is not None)], ">= 0 and < 1"),
    ("ldam", "max_margin", NEGATIVE, ">= 0"),
    ("ldam", "scale", ZERO, "> 0"),
    ("blv", "sigma", NEGATIVE, ">= 0"),
    ("blv", "noise", ["normal", "Gaussian", None, 1], "'gaussian', 'uniform', 'xavier'"),
    ("pat", "temperature", ZERO, "> 0"),
    ("pat", "epsilon", NOT_NUMBERS, "finite"),
    ("pat", "size_exponent", [5, *NEGATIVE], ">= 0 and < 5"),
    ("pat", "weight", ["Beta", None, False], "'beta', 'none'"),
    ("pat", "normalize", ["image", None, True], "'images', 'weights'"),
    ("pat", "detach", [1, 0, "true", None], "True, False"),
    *((name, "reduction", ["avg", None, 1], "'mean', 'sum', 'none'") for name in LOSSES),
    *((name, "ignore_index", [255.0, "255", None, True], "integer") for name in LOSSES),
]
WRONG_CASES = [
    pytest.param(name, param, value, allowed, id=f"{name}-{param}={value!r}")
    for name, param, values, allowed in WRONG
    for value in values
]


@pytest.mark.parametrize(("name", "param", "value", "allowed"), WRONG_CASES)
def test_wrong_parameter(name, param, value, allowed):
    got = repr(value).replace("[", r"\[")
    with refused(param, allowed, f"got {got}"):
        build(name, **{param: value})
    with refused(param, allowed, f"got {got}"):
        function(name)(torch.zeros(1, 4, 1), torch.zeros(1, 1).long(), **{param: value})


@pytest.mark.parametrize(
    ("name", "param", "value"),
    [
        ("focal", "gamma", 0),
        ("focal", "gamma", np.float32(2)),
        ("cb", "beta", 0),
        ("cb", "beta", np.float64(0.5)),
        ("ldam", "max_margin", 0),
        ("ldam", "scale", np.int64(3)),
        ("blv", "sigma", 0),
        ("pat", "temperature", 5),
        ("pat", "epsilon", -1),
        ("pat", "size_exponent", 0),
        ("ce", "ignore_index", np.int64(-1)),
    ],
)
def test_bounds_and_number_types_that_are_allowed(name, param, value):
    logits, target = torch.randn(1, 4, 3), torch.tensor([[0, 3, 1]])
    assert build(name, **{param: value})(logits, target).isfinite()


@pytest.mark.parametrize(
    "params", [{"temperature": 0.016}, {"epsilon": 60.5, "temperature": 1}, {"epsilon": -1500}]
)
def test_pat_refuses_a_beta_that_overflows(params):
    with refused("temperature", "epsilon", "float32"):
        build("pat", **params)
    build("pat", weight="none", **params)


def test_pat_at_the_smallest_temperature_stays_finite():
    logits = torch.tensor([[[1e4], [-1e4], [0.0], [0.0]]], requires_grad=True)
    for label in range(4):
        for normalize in ("images", "weights"):
            loss = build("pat", temperature=1 / 60, normalize=normalize)
            value = loss(logits, torch.tensor([[label]]))
            (grad,) = torch.autograd.grad(value, logits)
            assert value.isfinite() and grad.isfinite().all()


# ------------------------------------------------------------------ logits and target


@every_name
@pytest.mark.parametrize("form", ["module", "function"])
@pytest.mark.parametrize(
    ("logits", "target", "said"),
    [
        (torch.zeros(2, 4, 3).long(), torch.zeros(2, 3).long(), ["logits", "int64"]),
        (torch.zeros(2, 4, 3).cfloat(), torch.zeros(2, 3).long(), ["logits", "complex64"]),
        (torch.zeros(4), torch.zeros(4).long(), ["logits", r"\(4,\)", r"\(B, L, \*spatial\)"]),
        (np.zeros((2, 4, 3)), torch.zeros(2, 3).long(), ["logits", "Tensor", "ndarray"]),
        (torch.zeros(2, 4, 3), np.zeros((2, 3), int), ["target", "Tensor", "ndarray"]),
        (torch.zeros(2, 4, 3), [[0, 0, 0], [0, 0, 0]], ["target", "Tensor", "list"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 3), ["target", "int64", "float32"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 3).int(), ["target", "int64", "int32"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 3).byte(), ["target", "int64", "uint8"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 5).long(), [r"\(2, 5\)", r"\(2, 4, 3\)"]),
        (torch.zeros(2, 4, 3), torch.zeros(3).long(), [r"\(3,\)", r"\(2, 4, 3\)"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 1, 3).long(), [r"\(2, 1, 3\)", r"\(2, 4, 3\)"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 4, 3).long(), ["target", r"\(2, 4, 3\)"]),
        (torch.zeros(1, 4, 3), torch.tensor([[0, 3, 4]]), ["target", r"0 \.\.\. 3", "got 4"]),
        (torch.zeros(1, 4, 3), torch.tensor([[0, -1, 255]]), ["target", "255", "got -1"]),
        (torch.zeros(1, 4, 3), torch.tensor([[0, 3, -100]]), ["target", "got -100"]),
    ],
)
def test_wrong_logits_and_target(name, form, logits, target, said):
    loss = build(name) if form == "module" else function(name)
    with refused(*said):
        loss(logits, target)


@every_name
@pytest.mark.parametrize("ignore_index", [-100, -1, 4, 5, 255, 300])
@pytest.mark.parametrize("wrong", [4, 5, 7, 256, -2])
def test_no_label_passes_for_the_ignored_one(name, ignore_index, wrong):
    loss = build(name, ignore_index=ignore_index)
    target = torch.tensor([[0, wrong, ignore_index]])
    if wrong == ignore_index:
        assert loss(torch.zeros(1, 4, 3), target).isfinite()
    else:
        with refused("target", f"got {wrong}"):
            loss(torch.zeros(1, 4, 3), target)


@every_name
def test_300_classes_and_an_ignored_label_beyond(name):
    # The wrong label is the column after the classes, the ignored one that after it.
    loss = build_loss(name, 300, class_counts=[1] * 300, ignore_index=301)
    assert loss(torch.zeros(1, 300, 2), torch.tensor([[299, 301]])) > 0
    with refused("target", "got 300"):
        loss(torch.zeros(1, 300, 2), torch.tensor([[300, 301]]))


@every_name
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_wrong_number_of_channels(name, channels):
    with refused("4 classes", f"{channels} channels", rf"\(2, {channels}, 3\)"):
        build(name)(torch.zeros(2, channels, 3), torch.zeros(2, 3).long())


def test_functions_check_the_length_of_class_counts():
    for name in NEED_COUNTS:
        with refused("4 classes", "5 channels"):
            function(name)(torch.zeros(2, 5, 3), torch.zeros(2, 3).long())


@pytest.mark.parametrize("module", ["CELoss", "FocalLoss", "PATLoss"])
def test_num_classes_is_optional_where_nothing_depends_on_it(module):
    loss = getattr(losses, module)()
    for channels in (2, 7):
        assert loss(torch.zeros(1, channels, 3), torch.zeros(1, 3).long()) > 0
    with refused("num_classes", "'4'"):
        getattr(losses, module)(num_classes="4")


def test_255_is_a_class_where_it_is_not_ignored():
    logits, target = torch.randn(1, 300, 2), torch.tensor([[255, 299]])
    value = build_loss("ce", 300, ignore_index=-1)(logits, target)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(logits, target))
