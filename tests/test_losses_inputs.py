"""What the losses refuse, and what they say."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
import torch

from patlib import losses
from patlib.losses import LOSSES, build_loss
from patlib.losses._region import RegionLoss

COUNTS = [50, 20, 5, 0]
# Losses of single pixels; the others are those on regions and their mix: test_losses_regions.py.
PIXEL = [n for n, loss in LOSSES.items() if n != "mix" and not issubclass(loss, RegionLoss)]
NEED_COUNTS = [n for n in PIXEL if "num_classes" not in inspect.signature(LOSSES[n]).parameters]
NEED_NONE = [n for n in PIXEL if n not in NEED_COUNTS]

pytestmark = pytest.mark.filterwarnings("ignore:class_counts is 0")
every_name = pytest.mark.parametrize("name", PIXEL)


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


@pytest.mark.parametrize("name", ["dise", "PAT", "", None])
def test_unknown_name(name):
    with refused("loss must be one of", repr(name), *LOSSES):
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
        ([0, 0, 0, 0], ["> 0", "zeros"]),
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
    *((name, "reduction", ["avg", None, 1], "'mean', 'sum', 'none'") for name in PIXEL),
    *((name, "ignore_index", [255.0, "255", True], "integer") for name in PIXEL),
]


@pytest.mark.parametrize(
    ("name", "param", "values", "allowed"), WRONG, ids=[f"{w[0]}-{w[1]}" for w in WRONG]
)
def test_wrong_parameter(name, param, values, allowed):
    for value in values:
        got = repr(value).replace("[", r"\[")
        with refused(param, allowed, f"got {got}"):
            build(name, **{param: value})
        with refused(param, allowed, f"got {got}"):
            function(name)(torch.zeros(1, 4, 1), torch.zeros(1, 1).long(), **{param: value})


def test_weight_of_pat_is_not_one_of_each_class():
    for weight in (torch.ones(4), [1.0, 2.0]):
        with refused("weight must be one of 'beta', 'none'", "no weight of each class"):
            build("pat", weight=weight)


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


@pytest.mark.parametrize(
    ("logits", "target", "said"),
    [
        ([torch.zeros(2, 4, 3)], torch.zeros(2, 3).long(), ["logits", "list", "supervision"]),
        ({"out": torch.zeros(2, 4, 3)}, torch.zeros(2, 3).long(), ["logits", "dict", "outputs"]),
        (torch.zeros(2, 4, 3).long(), torch.zeros(2, 3).long(), ["logits", "int64"]),
        (torch.zeros(2, 4, 3).cfloat(), torch.zeros(2, 3).long(), ["logits", "complex64"]),
        (torch.zeros(4), torch.zeros(4).long(), ["logits", r"\(4,\)", r"\(B, L, \*spatial\)"]),
        (np.zeros((2, 4, 3)), torch.zeros(2, 3).long(), ["logits", "Tensor", "ndarray"]),
        (torch.zeros(2, 4, 3), np.zeros((2, 3), int), ["target", "Tensor", "ndarray"]),
        (torch.zeros(2, 4, 3), [[0, 0, 0], [0, 0, 0]], ["target", "Tensor", "list"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 3), ["target", "int64", "float32", r"long\(\)"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 3).int(), ["target", "int64", "int32"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 3).byte(), ["target", "int64", "uint8"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 5).long(), [r"\(2, 5\)", r"\(2, 4, 3\)"]),
        (torch.zeros(2, 4, 3), torch.zeros(3).long(), [r"\(3,\)", r"\(2, 4, 3\)"]),
        (torch.zeros(2, 4, 3), torch.zeros(2, 1, 3).long(), [r"\(2, 1, 3\)", r"squeeze\(1\)"]),
        (
            torch.zeros(2, 4, 3),
            torch.zeros(2, 4, 3).long(),
            ["target", r"\(2, 4, 3\)", r"argmax\(1\)"],
        ),
        (torch.zeros(1, 4, 3), torch.tensor([[0, 3, 4]]), ["target", r"0 \.\.\. 3", "got 4"]),
        (torch.zeros(1, 4, 3), torch.tensor([[0, -1, 255]]), ["target", "255", "got -1"]),
        (torch.zeros(1, 4, 3), torch.tensor([[0, 3, -100]]), ["target", "got -100"]),
    ],
)
def test_wrong_logits_and_target(logits, target, said):
    for name in PIXEL:
        for loss in (build(name), function(name)):
            with refused(*said):
                loss(logits, target)


@every_name
@pytest.mark.parametrize("ignore_index", [-100, -1, 4, 5, 255, 300, None])
def test_no_label_passes_for_the_ignored_one(name, ignore_index):
    loss = build(name, ignore_index=ignore_index)
    for wrong in (4, 5, 7, 255, 256, -1, -2):
        target = torch.tensor([[0, wrong, 1 if ignore_index is None else ignore_index]])
        if wrong == ignore_index:
            assert loss(torch.zeros(1, 4, 3), target).isfinite()
        else:
            with refused("target", f"got {wrong}"):
                loss(torch.zeros(1, 4, 3), target)


@every_name
def test_no_pixel_is_ignored(name):
    logits, target = 0.1 * torch.randn(2, 4, 3), torch.tensor([[0, 3, 2], [1, 1, 2]])
    loss, other = build(name, ignore_index=None).eval(), build(name, ignore_index=255).eval()
    assert loss(logits, target) == other(logits, target)
    loss = build(name, ignore_index=None, reduction="none")
    assert (loss(logits, target) > 0).all()


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


def test_class_255_is_not_ignored_by_default():
    logits, target = torch.randn(1, 300, 2), torch.tensor([[255, 299]])
    said = ["ignore_index", "255", "300 classes", "None"]
    for name in LOSSES:
        with refused(*said):
            build_loss(name, 300, class_counts=[1] * 300)
    with refused(*said):
        losses.pat_loss(logits, target)
    for ignore_index in (-1, None):
        value = build_loss("ce", 300, ignore_index=ignore_index)(logits, target)
        torch.testing.assert_close(value, torch.nn.functional.cross_entropy(logits, target))
    assert build_loss("ce", 255)(logits[:, :255], target.clamp_max(254)) > 0


# ------------------------------------------------------------------ the packages it needs

LOSSES_ALONE = """
import sys
from importlib.metadata import packages_distributions

import numpy, torch

loaded = {name.partition(".")[0] for name in sys.modules}  # what these need themselves
others = set(packages_distributions()) - loaded - {"patlib"}


class NoOthers:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoOthers())
assert "lightning" in others and "matplotlib" in others
from patlib.losses import LOSSES, build_loss
from patlib.losses._region import RegionLoss

logits = torch.zeros(2, 3, 4, 5, requires_grad=True)
for name, loss in LOSSES.items():
    if name in ("dice", "jaccard", "tversky", "lovasz", "mix"):
        try:
            build_loss(name, 3)
        except ModuleNotFoundError as error:
            assert "segmentation-models-pytorch" in str(error) and "[train]" in str(error)
        else:
            raise AssertionError(name)
    else:
        loss = build_loss(name, 3, class_counts=[3, 2, 1])
        loss(logits, torch.zeros(2, 4, 5).long()).backward()
        loss.class_prior([[3, 2, 1]])
"""


def test_losses_need_torch_and_numpy_only():
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOSSES_ALONE], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
