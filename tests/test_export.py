"""Exported files compute what the network computes, at any size, and say what it is."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from patlib import Predictor, RunConfig, RunRecord, export, load_model, train
from patlib.data.synthetic import NUM_IMAGES
from patlib.exporting import _compare
from patlib.plots import class_colors

PARAMS = {
    "segnet": {"width": 2, "stages": 3},
    "attention_unet": {"width": 2},
    "unet": {},
    "unetplusplus": {},
}
# Writing takes seconds each: indices of maxima; a pretrained encoder's network with every skip.
IN_ONNX = ("segnet", "unetplusplus")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each network, of one epoch, made when it is asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def run(model):
        if not (folder / model / "record.json").exists():
            with pytest.MonkeyPatch.context() as patch:
                for split, n in {"train": 4, "validation": 2, "test": 2}.items():
                    patch.setitem(NUM_IMAGES, split, n)
                config = RunConfig(
                    image_size=(32, 48),
                    model=model,
                    model_params=PARAMS[model],
                    epochs=1,
                    batch_size=4,
                    device="cpu",
                    output_dir=str(folder / model),
                )
                train(config, progress=False)
        return folder / model

    return run


@pytest.mark.parametrize("model", PARAMS)
def test_every_network_exports_at_any_size(runs, tmp_path, model):
    """Exported with the smallest sizes, tried on others: what a size was fixed to would show."""
    network, content = load_model(runs(model))
    names = list(content["class_names"])
    shift = {"tau": 0.5} if model == "segnet" else None
    expected_shift = 0 if shift is None else Predictor(runs(model), prior_shift=shift).shift

    extra = {"metadata.json": ""}
    file = export(runs(model), tmp_path / "net.pt2", shift)
    program = torch.export.load(file, extra_files=extra).module()
    told = json.loads(extra["metadata.json"])
    assert [told["name"] for told in told["classes"]] == names
    assert [told["color"] for told in told["classes"]] == class_colors(names)
    assert told["image_size"] == [32, 48] and told["prior_shift"] == shift
    computed = {"pt2": lambda images: program(images).detach()}
    if model in IN_ONNX:
        computed["onnx"] = open_onnx(export(runs(model), tmp_path / "net.onnx", shift), told)

    for size in ((1, 3, 33, 64), (3, 3, 70, 41)):
        images = torch.rand(size)
        with torch.no_grad():
            expected = (network(images) - expected_shift).numpy()
        for function in computed.values():
            found, largest = function(images), np.abs(expected).max()
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * largest)
    assert shift is None or expected_shift.abs().max() > 0.1  # the tolerance would not hide it


def open_onnx(file, told):
    """The function of an ONNX file, whose metadata are those told."""
    proto = onnx.load(file)
    onnx.checker.check_model(proto, full_check=True)
    assert {entry.key: json.loads(entry.value) for entry in proto.metadata_props} == told
    for value in (*proto.graph.input, *proto.graph.output):
        dims = [d.dim_param for d in value.type.tensor_type.shape.dim]
        assert (dims[0], dims[2:]) == ("batch", ["height", "width"])
    content, providers = proto.SerializeToString(), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, providers=providers)
    return lambda images: session.run(["logits"], {"images": images.numpy()})[0]


def test_a_file_that_computes_something_else_is_refused(runs):
    network, _ = load_model(runs("segnet"))
    _compare(network, network, (32, 48), "net.onnx")
    with pytest.raises(
        RuntimeError, match=r"0.001 of the largest, and is off by 0.01 .*\(2, 3, 33"
    ):
        _compare(network, lambda images: 1.01 * network(images), (32, 48), "net.onnx")


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"file must end in .onnx or .pt2, got 'net.pth'"):
        export(tmp_path, "net.pth")


def test_the_shift_that_was_chosen_is_in_the_file(runs, tmp_path):
    """Of a run the one of its record, of the best of a comparison the one that is recommended."""
    best = tmp_path / "best"
    shutil.copytree(runs("segnet"), best)
    chosen = RunRecord.load(best / "record.json").result["shifted"]["any"]["prior_shift"]
    recommended = {"tau": 0.7}
    for expected in (chosen if any(chosen.values()) else None, recommended):
        extra = {"metadata.json": ""}
        file = export(best, tmp_path / "net.pt2", prior_shift="chosen")
        torch.export.load(file, extra_files=extra)
        assert json.loads(extra["metadata.json"])["prior_shift"] == expected
        (best / "chosen.json").write_text(json.dumps({"prior_shift": recommended}))
    shift = Predictor(best, prior_shift="chosen").shift
    assert torch.equal(shift, Predictor(best, prior_shift=recommended).shift)
