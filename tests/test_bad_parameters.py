"""Any parameter either works or is refused by a message that names it, whatever its value.

Hypothesis draws the values. The short form takes few and always the same ones, `make chaos` 2,000
other ones of each kind.
"""

import contextlib
import io
import json
import math
import os
import re
import sys
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from chapters import NOTEBOOKS, Chapter, cells, source, tagged
from faults import CHAOS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

import patlib.data.nyuv2.__main__
from patlib import RunConfig, cli
from patlib.config import parameter_defaults
from patlib.data import SAMPLERS
from patlib.losses import LOSSES, build_loss
from patlib.models import MODELS, build_model

sys.path.insert(0, str(NOTEBOOKS.parent / "study"))
import datasets as datasets_py
import gradients as gradients_py
import run as run_py
import scores as scores_py

set_hypothesis_home_dir(Path(tempfile.gettempdir(), "patlib-hypothesis"))
pytestmark = pytest.mark.filterwarnings("ignore")
cases = settings(
    max_examples=2000 if CHAOS else 60,
    derandomize=not CHAOS,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([10**6, 2**31, 2**63, -(2**63), 10**30]),
    st.floats(),
    st.sampled_from([1e-300, 1e-45, 1e38, 1e300, 0.1, 0.5, 2.0]),
)
words = st.sampled_from(
    ["", "pat", "ce", "none", "beta", "images", "weights", "dataset", "inverse", "enet", "auto",
     "gaussian", "resnet18", "1e-3", "ä/\0", "nowhere", "median_frequency", "cpu", "flip"]
)  # fmt: skip
plain = st.one_of(st.none(), st.booleans(), numbers, words)
junk = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(words, numbers), inner, max_size=3)
    ),
    max_leaves=6,
)


def named(error, names):
    """The message of a refusal names a parameter, or the thing that has none of that name."""
    return any(name in str(error) for name in [*names, "has no parameter"])


# -- runs ----------------------------------------------------------------------------------------


def params_of(part, kinds):
    """Parameters of a data set, a loss or a network: known names, rarely others."""
    names = {n for kind in kinds for n in parameter_defaults(part[0], {part[1]: kind})}
    return st.dictionaries(st.sampled_from([*sorted(names), "unknown"]), junk, max_size=3)


FIELDS = {
    "dataset": st.sampled_from(["synthetic", "camvid"]),
    "data_root": st.sampled_from([None, "somewhere"]),
    "data_params": params_of(("data_params", "dataset"), ["synthetic"]),
    "split_scheme": st.sampled_from(["official", "paper"]),
    "void": st.sampled_from(["ignore", "class"]),
    "image_size": st.sampled_from([None, (32, 32), [40, 33]]),
    "loss": st.sampled_from(list(LOSSES)),
    "loss_params": params_of(("loss_params", "loss"), LOSSES),
    "model": st.sampled_from(["segnet", "attention_unet"]),
    "model_params": params_of(("model_params", "model"), ["segnet", "attention_unet"]),
    "epochs": st.integers(1, 100),
    "batch_size": st.integers(1, 64),
    "optimizer": st.sampled_from(["adam", "adamw", "sgd"]),
    "learning_rate": st.floats(1e-6, 1),
    "weight_decay": st.floats(0, 1),
    "augment": st.sampled_from(["flip", "flip_scale_crop"]),
    "sampler": st.sampled_from(list(SAMPLERS)),
    "precision": st.sampled_from(["32-true", "bf16-mixed", "auto"]),
    "device": st.sampled_from(["auto", "cpu", "cuda"]),
    "devices": st.integers(1, 4),
    "seed": st.integers(0, 2**40),
    "output_dir": st.just("runs/x"),
}


@st.composite
def configurations(draw):
    chosen = draw(st.lists(st.sampled_from(list(FIELDS)), max_size=5, unique=True))
    return {name: draw(junk if draw(st.integers(0, 2)) == 0 else FIELDS[name]) for name in chosen}


@cases
@given(configurations())
def test_run_config(fields):
    try:
        config = RunConfig(**fields)
    except ValueError as error:
        params = [f for f in fields if f.endswith("_params")]
        inner = {str(k) for f in params if isinstance(fields[f], dict) for k in fields[f]}
        assert named(error, {*fields, *inner, "data_root"}), error
        return
    values = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert RunConfig(**values).settings() == config.settings()
    assert config.identity().keys() <= config.settings().keys()


# -- losses --------------------------------------------------------------------------------------


@st.composite
def losses(draw):
    name = draw(st.sampled_from(list(LOSSES)))
    known = parameter_defaults("loss_params", {"loss": name})
    defaults = {k: st.one_of(junk, st.just(v)) for k, v in known.items()}
    chosen = draw(st.lists(st.sampled_from(sorted(known) or ["gamma"]), max_size=2, unique=True))
    num_classes = draw(st.integers(1, 6))
    counts = draw(
        st.one_of(st.lists(st.integers(0, 10**9), min_size=num_classes, max_size=num_classes), junk)
    )
    return name, num_classes, counts, {k: draw(defaults.get(k, junk)) for k in chosen}


@cases
@given(losses(), st.integers(0, 2**32), st.sampled_from([1e-3, 1.0, 30.0]))
def test_losses(drawn, seed, size):
    name, num_classes, counts, params = drawn
    generator = torch.Generator().manual_seed(seed)
    try:
        images = [min(n, 7) for n in counts]
    except TypeError:
        images = [5] * num_classes
    try:
        loss = build_loss(name, num_classes, counts, images, 7, **params)
    except ValueError as error:
        given = {"class_counts", "class_images", "class_weights", "ignore_index", *params}
        inner = {str(k) for v in params.values() if isinstance(v, dict) for k in v}
        assert named(error, given | inner), (drawn, error)
        return
    logits = (size * torch.randn(2, num_classes, 5, 4, generator=generator)).requires_grad_()
    target = torch.randint(num_classes, (2, 5, 4), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = 255
    value = loss(logits, target)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all(), (drawn, value)


# -- samplers ------------------------------------------------------------------------------------


@cases
@given(
    st.sampled_from(list(SAMPLERS)),
    st.lists(st.lists(st.integers(0, 10**12), min_size=3, max_size=3), min_size=1, max_size=8),
    st.one_of(st.none(), junk),
    st.integers(0, 2**40),
)
def test_samplers(name, sizes, value, seed):
    parameter = {"repeat_factor": "threshold", "rare_class": "temperature"}.get(name)
    options = {parameter: value} if parameter and value is not None else {}
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(sizes)
    try:
        order = SAMPLERS[name](sizes, generator, **options)
    except ValueError as error:
        assert named(error, [parameter, "class_sizes"]), error
        return
    assert order.dtype == torch.int64 and order.shape == (len(sizes),)
    assert ((order >= 0) & (order < len(sizes))).all()


# -- networks ------------------------------------------------------------------------------------


@st.composite
def networks(draw):
    name = draw(st.sampled_from(list(MODELS)))
    known = parameter_defaults("model_params", {"model": name})
    # Weights of an encoder may be downloaded: a parameter that asks for it.
    names = sorted(known.keys() - {"encoder_weights"})
    chosen = draw(st.lists(st.sampled_from(names), max_size=2, unique=True))
    value = st.one_of(junk, st.integers(1, 6), st.booleans())
    return name, draw(st.one_of(st.integers(1, 30), junk)), {k: draw(value) for k in chosen}


@cases
@given(networks())
def test_networks(drawn):
    name, num_classes, params = drawn
    try:
        with torch.device("meta"):
            model = build_model(name, num_classes, **params).eval()
    except ValueError as error:
        assert named(error, ["num_classes", *params]), (drawn, error)
        return
    images = torch.zeros(1, 3, 64, 96, device="meta")
    assert model(images).shape == (1, num_classes, 64, 96)


# -- notebooks -----------------------------------------------------------------------------------

PARAMETERS = {
    path.stem: [
        line.split(":")[0] for c in cells(path.stem) if tagged(c, "parameters")
        for line in source(c).splitlines()
    ]
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_checks_of_notebooks(name, tmp_path, monkeypatch):
    """The cell that checks the parameters, after one of them has any value."""
    monkeypatch.chdir(tmp_path)  # own_images makes its output_dir and draws into it
    code = cells(name)
    number = next(i for i, cell in enumerate(code) if tagged(cell, "parameters"))
    own = source(code[number])
    after = list(map(source, code[number + 1 :]))
    last = next(i for i, cell in enumerate(after) if "check_parameters(" in cell)
    check = "\n".join(after[: last + 1])

    @settings(cases, max_examples=2000 if CHAOS else 25)
    @given(st.sampled_from(PARAMETERS[name]), junk)
    def property_of(parameter, value):
        space = {"In": [own, f"# Parameters\n{parameter} = {value!r}"], "__name__": "__main__"}
        exec(own, space)
        space[parameter] = value
        try:
            exec(check, space)
        except ValueError as error:
            assert parameter in str(error), error
            return
        default = {}
        exec(own, default)
        kinds = {type(default[parameter]), type(None)}
        if default[parameter] is not None:
            assert isinstance(value, (int, float) if float in kinds else tuple(kinds))
            assert not isinstance(value, float) or math.isfinite(value)

    property_of()


small_size = st.tuples(st.integers(32, 64), st.integers(32, 64)).map(list)
temperatures = st.floats(0.1, 1000)
#: values of parameters, of the same name in all notebooks, with which one runs in seconds
VALID = {
    "seeds": st.sampled_from([None, [0], [0, 1]]),
    "resamples": st.integers(1, 50),
    "block": st.integers(1, 12),
    "epochs": st.integers(1, 2),
    "seed": st.integers(0, 2**31),
    "image_size": small_size,
    "num_classes": st.integers(3, 30),
    "batch_size": st.integers(1, 8),
    "temperature": temperatures,
    "repetitions": st.integers(1, 3),
    "data_params": st.sampled_from([{}, {"imbalance": 3}, {"num_classes": 5, "rare_size": 0.5}]),
    "split": st.sampled_from(["train", "validation", "test"]),
    "split_scheme": st.sampled_from(["official", "grouped", "paper"]),
    "void": st.sampled_from(["ignore", "class"]),
    "num_images": st.integers(1, 12),
    "gamma": st.floats(0, 50),
    "side": st.integers(50, 80),
    "in_image": st.floats(0.02, 0.5),
    "in_dataset": st.floats(0.001, 0.5),
    "in_images": st.floats(0.01, 1),
    "elsewhere": st.floats(0.5, 0.99),
    "epsilon": st.floats(-2, 2),
    "temperatures": st.lists(temperatures, min_size=1, max_size=2),
    "gammas": st.lists(st.floats(0, 50), min_size=1, max_size=5),
    "logits": st.lists(st.floats(-50, 50), min_size=4, max_size=8),
    "true_class": st.integers(0, 3),
    "size": st.integers(1, 10**6),
    "loss": st.sampled_from([name for name in LOSSES if name != "mix"]),
    "model": st.sampled_from(["segnet", "attention_unet"]),
    "model_params": st.fixed_dictionaries({"width": st.integers(1, 3)}),
    "optimizer": FIELDS["optimizer"],
    "learning_rate": st.floats(1e-5, 1e-2),
    "weight_decay": st.floats(0, 1e-2),
    "augment": FIELDS["augment"],
    "sampler": FIELDS["sampler"],
    "precision": st.sampled_from(["32-true", "bf16-mixed"]),
    "losses": st.lists(
        st.sampled_from(["ce", "focal", "pat"]), min_size=2, max_size=2, unique=True
    ),
    "budget_minutes": st.floats(1, 2),
}
#: of single notebooks, and what is not drawn because the rest would take long
OF_NOTEBOOKS = {
    "own_images": {"seeds": st.just(1), "model": st.just("segnet"), "device": st.just("cpu")},
    "train": {"batch_size": st.integers(20, 60), "device": st.just("cpu")},
    "gradients": {"num_images": st.integers(2, 4)},
}
SHORT = {"resamples", "epochs", "image_size", "repetitions", "losses", "model_params", "model"}


@pytest.mark.skipif(not CHAOS, reason="the short form executes the defaults, see test_notebooks.py")
@pytest.mark.parametrize("name", PARAMETERS)
def test_whole_notebooks(name, tmp_path, monkeypatch):
    """Drawn sets of allowed values: the notebook runs through, or names a parameter."""
    values = {**VALID, **OF_NOTEBOOKS.get(name, {})}
    always = SHORT | OF_NOTEBOOKS.get(name, {}).keys()
    drawn = st.fixed_dictionaries(
        {p: values[p] for p in PARAMETERS[name] if p in values and p in always},
        optional={p: values[p] for p in PARAMETERS[name] if p in values and p not in always},
    )

    @settings(cases, max_examples=3, derandomize=True, phases=[Phase.generate])
    @given(drawn)
    def property_of(parameters):
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        monkeypatch.chdir(folder)
        print(parameters)
        try:
            page = Chapter(name, **parameters)
        except ValueError as error:
            assert named(error, parameters), (parameters, error)
            return
        assert page.glued or name == "own_images"
        assert not [key for key, value in page.glued.items() if re.search(r"\bnan\b", str(value))]

    property_of()


# -- commands ------------------------------------------------------------------------------------

arguments = st.one_of(
    words, numbers.map(str), st.sampled_from(["-h", "--size", "--x", "--dry-run"])
)


def refused_or_done(main, given):
    """A command ends with 0, or with 2 and a message; nothing else is raised."""
    said, folder = io.StringIO(), os.getcwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                code = main(given)
        except SystemExit as stopped:
            code = stopped.code
        finally:
            os.chdir(folder)
        assert not list(Path(empty).iterdir())
    assert code in (0, 2, None) and (said.getvalue() or not given), (given, code)


options_of = {
    "train": [*FIELDS, "image-size", "loss_params.gamma", "epoch"],
    "predict": ["out", "overlay", "prior_shift", "batch_size", "device"],
    "compare": ["budget", "out", "losses", "seeds", "model", "model_params", "image_size"],
}


@cases
@given(
    st.sampled_from(list(options_of)).flatmap(
        lambda command: st.tuples(
            st.just(command),
            st.lists(st.tuples(st.sampled_from(options_of[command]), arguments), max_size=3),
        )
    )
)
def test_patlib(given_command):
    command, options = given_command
    words = [word for name, value in options for word in (f"--{name}", value)]
    words = {"train": [], "predict": ["nowhere", "nothing"], "compare": ["nowhere"]}[
        command
    ] + words
    scores = dict.fromkeys(("miou", "head", "mid", "tail", "pixel_accuracy"), 0.5)
    trained = mock.Mock(result={"test": scores})
    # Nothing is trained: what RunConfig allows is in the other tests.
    with mock.patch("patlib.training.train", lambda config: trained):
        refused_or_done(cli.main, [command, *words])


@cases
@given(st.lists(arguments, max_size=4))
def test_preparing_nyuv2(given_arguments):
    refused_or_done(patlib.data.nyuv2.__main__.main, given_arguments)


@cases
@given(
    st.one_of(st.just("study/grids/demo.yaml"), words),
    st.lists(
        st.tuples(
            st.sampled_from(["--jobs", "--threads", "--notebook", "--data", "--unknown"]), arguments
        ),
        max_size=2,
    ),
)
def test_running_a_grid(grid, options):
    flat = [word for pair in options for word in pair]
    path = NOTEBOOKS.parent / grid if grid.startswith("study") else grid
    refused_or_done(run_py.main, [str(path), "--dry-run", *flat])


@cases
@given(
    st.sampled_from([scores_py, datasets_py, gradients_py]),
    st.lists(st.tuples(st.sampled_from(["--data", "--records", "--root", "--x"]), arguments)),
)
def test_commands_of_the_study(command, options):
    flat = [word for pair in options for word in pair]
    # In an empty folder: what is not there is refused, before anything is written.
    given_records = [] if command is not scores_py else ["--records", "nowhere"]
    refused_or_done(command.main, [*flat, *given_records])


@cases
@given(junk)
def test_grids(content):
    from patlib.study.grids import read_grid

    for grid in (content, {"blocks": content}, {"blocks": [content]}, block(settings=content),
                 block(methods=content), block(methods={"PAT": content}), block(seeds=content),
                 block(seeds=[content])):  # fmt: skip
        try:
            read_grid(grid)
        except ValueError:
            continue


def block(**parts):
    base = {"settings": {"image_size": [32, 40]}, "methods": {"PAT": {}}, "seeds": [0]}
    return {"blocks": [{**base, **parts}]}
