"""RunConfig refuses what is wrong, by name, when it is made."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

import patlib.config
from patlib import RunConfig
from patlib.config import (
    PLACEMENT,
    SCHEMA_DEFAULTS,
    complete_settings,
    identity,
    parameter_defaults,
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "pats"}, "loss must be one of .*got 'pats' .did you mean 'pat'"),
        ({"model": "resnet"}, "model must be one of 'segnet'.*got 'resnet'"),
        ({"dataset": "imagenet"}, "dataset.*imagenet"),
        ({"loss_params": {"temprature": 20}}, "temprature.*temperature"),
        ({"loss_params": {"temperature": -1}}, "temperature"),
        ({"loss": "ce", "loss_params": {"gamma": 2}}, "gamma"),
        ({"loss_params": {"reduction": "none"}}, "loss_params must not have 'reduction'"),
        ({"loss_params": {"ignore_index": 0}}, "loss_params must not have 'ignore_index'"),
        ({"loss_params": {"class_counts": [1, 2]}}, "loss_params must not have 'class_counts'"),
        ({"loss_params": {"class_images": [1, 2]}}, "loss_params must not have 'class_images'"),
        ({"loss_params": {"num_images": 3}}, "loss_params must not have 'num_images'"),
        ({"loss_params": {"temperature": {1}}}, "loss_params must hold numbers, text"),
        ({"loss": "ce", "loss_params": {"class_weights": [1, -1, 1]}}, "class_weights"),
        ({"loss": "mix", "loss_params": {"losses": {"ces": 1}}}, "losses must be .*ces"),
        ({"loss_params": [20]}, r"loss_params must be a mapping.*got \[20\]"),
        ({"model_params": {"widht": 8}}, "widht.*width"),
        ({"model_params": {"width": 0}}, "width"),
        ({"model": "unet", "model_params": {"encoder": "resnet19"}}, "encoder.*resnet19"),
        ({"data_params": {"classes": 3}}, "'synthetic' has no parameter 'classes'.*num_classes"),
        ({"data_params": {"num_classes": 1}}, "num_classes"),
        ({"data_root": "somewhere"}, "data_root must be None.*drawn, got 'somewhere'"),
        ({"dataset": "camvid"}, "data_root must be the folder .* 'camvid', got None"),
        (
            {"split_scheme": "random"},
            "split_scheme must be one of 'official', 'grouped', 'paper', got 'random'",
        ),
        ({"void": 255}, "void must be one of .*got 255"),
        ({"image_size": (16, 64)}, "image_size"),
        ({"image_size": 96}, "image_size.*96"),
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"epochs": 2.5}, "epochs must be an integer >= 1, got 2.5"),
        ({"epochs": True}, "epochs .*got True"),
        ({"batch_size": "8"}, "batch_size .*got '8'"),
        ({"learning_rate": 0}, "learning_rate must be a finite number > 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate .*got nan"),
        ({"weight_decay": -1e-4}, "weight_decay"),
        ({"learning_rate": "1e-3"}, "learning_rate .*got '1e-3'.*YAML"),
        ({"optimizer": "adan"}, "optimizer must be one of 'adam', 'adamw', 'sgd', got 'adan'"),
        ({"augment": "crop"}, "augment must be one of 'flip', 'flip_scale_crop', got 'crop'"),
        ({"sampler": "rare"}, "sampler must be one of .*'rare_class', got 'rare'"),
        ({"precision": "16"}, "precision .*'bf16-mixed'.*got '16'"),
        ({"device": "tpu"}, "device must be one of .*'cuda', got 'tpu'"),
        ({"devices": 0}, "devices .*got 0"),
        (
            {"devices": 3, "device": "cpu", "batch_size": 16},
            "batch_size.*divisible by devices=3, got 16",
        ),
        ({"seed": -1}, "seed .*got -1"),
        ({"output_dir": ""}, "output_dir .*got ''"),
    ],
)
def test_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**arguments)


def test_unknown_field_is_refused():
    with pytest.raises(TypeError, match="learning_rat"):
        RunConfig(learning_rat=0.1)


def test_goes_through_json_unchanged():
    config = RunConfig(
        dataset="camvid", data_root=Path("x"), image_size=[96, 128], loss_params={"temperature": 5}
    )
    assert config.image_size == (96, 128) and config.data_root == "x"
    assert RunConfig(**json.loads(json.dumps(config.to_dict()))) == config


def test_settings_leave_out_where_a_run_reads_writes_and_computes():
    config = RunConfig(output_dir="a", device="cuda", devices=2)
    left_out = {f.name for f in dataclasses.fields(RunConfig)} - set(config.settings())
    assert left_out == {"data_root", "output_dir", "device", "devices"}
    assert config.settings() == RunConfig(output_dir="b").settings()


def test_settings_name_the_parameters_that_were_left_out():
    settings = RunConfig(loss_params={"temperature": 5.0}).settings()
    assert settings["loss_params"] == dict(
        temperature=5.0,
        epsilon=0.0,
        size_exponent=1.0,
        weight="beta",
        normalize="images",
        detach=False,
        sizes="image",
        presence_exponent=0.0,
        deferred=None,
    )
    model_params = {
        "width": 32,
        "stages": 5,
        "normalized_classifier": False,
        "rectified": False,
    }
    assert settings["model_params"] == model_params
    assert settings["data_params"]["num_classes"] == 8
    assert RunConfig(**settings).settings() == settings
    same = RunConfig(loss_params={"temperature": 5, "epsilon": 0}).settings()
    assert json.dumps(same, sort_keys=True) == json.dumps(settings, sort_keys=True)


def test_numbers_of_the_classes_and_of_a_mix_may_be_written_as_integers():
    lists = [
        dict(loss="ce", loss_params={"class_weights": w})
        for w in ([1, 2, 3], (1.0, 2.0, 3.0), [1, 2.0, 3])
    ]
    mixes = [
        dict(loss="mix", loss_params={"losses": a, "params": {"ce": {"class_weights": w}}})
        for a, w in (({"ce": 1, "pat": 3}, [1] * 11), ({"ce": 1.0, "pat": 3.0}, (1.0,) * 11))
    ]
    for alike in (lists, mixes):
        configs = [RunConfig(**c) for c in alike]
        assert len({json.dumps(c.settings(), sort_keys=True) for c in configs}) == 1
        again = json.loads(json.dumps(configs[0].to_dict()))
        assert RunConfig(**again) == configs[0]
    assert RunConfig(**lists[0]).settings()["loss_params"]["class_weights"] == [1.0, 2.0, 3.0]


# --- the schema -----------------------------------------------------------------------------------


def test_identity_is_what_differs_from_the_schema():
    assert RunConfig().identity() == {}
    config = RunConfig(
        loss="focal", loss_params={"gamma": 2}, model_params={"width": 8, "stages": 5}, epochs=3
    )
    assert config.identity() == {"loss": "focal", "model_params": {"width": 8}, "epochs": 3}
    params = {"num_classes": 5, "rare_size": 40}
    assert RunConfig(data_params=params).identity() == {"data_params": {"num_classes": 5}}


def with_a_field_more(monkeypatch, **field):
    """RunConfig, as it would be with another field."""
    ((name, default),) = field.items()
    more = dataclasses.make_dataclass(
        "RunConfig",
        [(name, type(default), dataclasses.field(default=default))],
        bases=(RunConfig,),
        frozen=True,
    )
    monkeypatch.setattr(patlib.config, "RunConfig", more)
    return more


def with_a_parameter_more(monkeypatch, part, name, **parameter):
    """A loss, network or data set, as it would be with another keyword; its values do nothing."""
    _, known, _ = patlib.config._PARAMETERS[part]
    original = known[name]
    signature = inspect.signature(original)
    (added, default), *_ = parameter.items()
    more = inspect.Parameter(added, inspect.Parameter.KEYWORD_ONLY, default=default)
    parameters = [p for p in signature.parameters.values() if p.name != added]

    class Grown:
        def __new__(cls, *args, **kwargs):
            kwargs.pop(added, None)
            return original(*args, **kwargs)

    Grown.__signature__ = signature.replace(parameters=[*parameters, more])
    monkeypatch.setitem(known, name, Grown)


def test_a_new_field_or_parameter_leaves_identities_as_they_are(monkeypatch):
    configs = [
        dict(loss="pat", loss_params={"temperature": 5.0}),
        dict(loss="ce", epochs=3),
        dict(loss="cb", loss_params={"beta": 0.9}, data_params={"num_classes": 5}),
    ]
    before = [RunConfig(**c).identity() for c in configs]
    stored = [RunConfig(**c).settings() for c in configs]
    grown = with_a_field_more(monkeypatch, scheduler="cosine")
    with_a_parameter_more(monkeypatch, "loss_params", "pat", label_smoothing=0.0)
    with_a_parameter_more(monkeypatch, "loss_params", "cb", log=False)
    with_a_parameter_more(monkeypatch, "model_params", "segnet", dropout=0.0)
    with_a_parameter_more(monkeypatch, "data_params", "synthetic", blur=0.0)
    now = [grown(**c) for c in configs]
    assert [c.identity() for c in now] == before
    assert [identity(s) for s in stored] == before
    # A record that was made before is the same run as one that is made now.
    completed = [complete_settings(s) for s in stored]
    assert completed == [c.settings() for c in now]
    assert completed[0]["scheduler"] == "cosine" and completed[0]["model_params"]["dropout"] == 0.0
    # Another value of what is new is another run.
    assert grown(scheduler="step").identity() == {"scheduler": "step"}
    smooth = grown(loss_params={"label_smoothing": 0.1})
    assert smooth.identity() == {"loss_params": {"label_smoothing": 0.1}}


def test_a_changed_default_in_the_code_is_another_run(monkeypatch):
    before = RunConfig(loss="focal").identity()
    with_a_parameter_more(monkeypatch, "loss_params", "focal", gamma=1.0)
    assert before == {"loss": "focal"}
    assert RunConfig(loss="focal").identity() == {"loss": "focal", "loss_params": {"gamma": 1.0}}
    assert complete_settings({"loss": "focal", "dataset": "synthetic", "model": "segnet"})[
        "loss_params"
    ] == {"gamma": 2.0, "class_weights": None}


# Defaults in the code that were changed on purpose, such as ("loss_params", "pat", "temperature"):
# runs that leave them out have another name than before.
CHANGED = set()


def test_schema_covers_the_code_and_differs_only_on_purpose():
    """Fails for a new field or parameter: enter it in patlib/schema_1.json, with the value that
    gives the results of before. Never change or remove what is there."""
    in_code = {("settings", f.name): f.default for f in dataclasses.fields(RunConfig)}
    skipped = {*PLACEMENT, *patlib.config._PARAMETERS}
    in_code = {key: value for key, value in in_code.items() if key[1] not in skipped}
    in_schema = {("settings", name): v for name, v in SCHEMA_DEFAULTS["settings"].items()}
    for part, (kind, known, _) in patlib.config._PARAMETERS.items():
        # A loss, network or data set that no record holds needs no entry yet.
        for name in known.keys() & SCHEMA_DEFAULTS[part].keys():
            for param, value in parameter_defaults(part, {kind: name}).items():
                in_code[part, name, param] = value
            for param, value in SCHEMA_DEFAULTS[part][name].items():
                in_schema[part, name, param] = value
    assert in_code.keys() == in_schema.keys()
    assert {key for key in in_code if in_code[key] != in_schema[key]} == CHANGED


def test_channels_stay_integers():
    channels = (32, 16, 16, 8, 8)
    config = RunConfig(model="unet", model_params={"decoder_channels": channels})
    kept = config.settings()["model_params"]["decoder_channels"]
    assert kept == list(channels) and {type(c) for c in kept} == {int}
    RunConfig(**config.settings())
