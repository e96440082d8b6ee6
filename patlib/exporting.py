"""Take a trained network elsewhere: as an ONNX file, or as a program of torch.export."""

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from patlib.files import write_whole
from patlib.label_maps import Legend
from patlib.prediction import chosen_shift, load_model, shift_of

SUFFIXES = (".onnx", ".pt2")
#: how far logits of the file may be from those of the network, of the largest of them
TOLERANCE = 1e-3
#: smallest height and width: the sizes at which the smallest feature map has one pixel are others
MIN_SIZE = 33
METADATA = "metadata.json"  # in a .pt2 file


def export(
    run: str | Path,
    file: str | Path,
    prior_shift: Mapping[str, float] | str | None = None,
    model: nn.Module | None = None,
) -> Path:
    """Write the network of a run into one file: ``export("runs/mine", "net.onnx")``.

    Of a comparison: ``export("comparison/best", "net.onnx", prior_shift="chosen")``, with the shift
    that its report recommends.

    The file maps ``images``, float32 (B, 3, H, W), RGB in [0, 1], to ``logits`` (B, L, H, W), for
    any B and any H and W from 33. What the network does to the images first (mean and deviation
    of pretrained encoders, padding) is inside. What it says beside that, as JSON texts:
    ``classes`` (of each its ``name``, its ``value`` in the masks, and a ``color`` such as
    ``"#56b4e9"``; the channels of the logits are in this order), ``image_size`` (H, W) that it was
    trained at, ``input``, ``prior_shift`` and ``patlib``, the version. In ``.onnx`` these
    are the metadata of the model, in ``.pt2`` the keys of its extra file ``metadata.json``.

    The file is compared with the network, ``.onnx`` in onnxruntime, on random images of three
    sizes, the one that it was trained at among them; it is written only if no logit differs by
    more than ``TOLERANCE`` (a thousandth) of the largest. All networks of this library can be
    exported in both formats.

    Args:
        run: the ``output_dir`` of :func:`patlib.train`, or its ``last.ckpt``.
        file: ``.onnx`` (needs the extra ``export``), or ``.pt2``, which ``torch.export.load``
            reads.
        prior_shift: see :class:`patlib.Predictor`; it is subtracted from the logits in the file.
        model: see :func:`patlib.load_model`.

    Returns:
        The path of the file.

    Raises:
        ValueError, FileNotFoundError: another suffix, or see :func:`patlib.load_model`.
        ModuleNotFoundError: the extra ``export`` is not installed.
        RuntimeError: the network cannot be exported, or the file computes something else.
    """
    path = Path(file).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"file must end in {' or '.join(SUFFIXES)}, got {str(file)!r}")
    network, content = load_model(run, model)
    if prior_shift == "chosen":
        prior_shift = chosen_shift(run)
    if prior_shift is not None:
        network = _Shifted(network, shift_of(run, content["priors"], prior_shift)).eval()
    image_size = tuple(content["image_size"])
    program = _exported(network.to(memory_format=torch.contiguous_format), image_size)
    metadata = _metadata(content, prior_shift)
    if path.suffix == ".pt2":
        stored = io.BytesIO()
        torch.export.save(program, stored, extra_files={METADATA: json.dumps(metadata)})
        stored.seek(0)
        function = torch.export.load(stored).module()
    else:
        stored = io.BytesIO(_onnx(program, metadata))
        function = _session(stored.getvalue())
    _compare(network, function, image_size, path)
    with write_whole(path) as opened:
        opened.write(stored.getbuffer())
    return path


class _Shifted(nn.Module):
    def __init__(self, network: nn.Module, shift: Tensor):
        super().__init__()
        self.network = network
        self.register_buffer("shift", shift)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images) - self.shift


def _metadata(content: Mapping[str, Any], prior_shift: Mapping[str, float] | None) -> dict:
    from patlib import __version__

    return {
        **Legend(content["class_names"], content["mask_values"]).describe(),
        "image_size": list(content["image_size"]),
        "input": "images, float32 (B, 3, H, W), RGB in [0, 1]; normalisation is in the network",
        "prior_shift": None if prior_shift is None else dict(prior_shift),
        "patlib": __version__,
    }


def _exported(network: nn.Module, image_size: tuple[int, int]) -> ExportedProgram:
    height, width = (max(n, MIN_SIZE) for n in image_size)
    sizes = {0: Dim("batch"), 2: Dim("height", min=MIN_SIZE), 3: Dim("width", min=MIN_SIZE)}
    try:
        return torch.export.export(
            network,
            (torch.zeros(2, 3, height, width),),
            dynamic_shapes=(sizes,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    except Exception as error:  # torch.export has many kinds
        raise RuntimeError(f"torch.export cannot export the network: {error}") from error


def _onnx(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    try:
        import onnx
        import onnxruntime  # noqa: F401, the file is compared in it
        import onnxscript  # noqa: F401, torch writes the file with it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"an .onnx file needs {error.name}: pip install 'patlib-segmentation[export]'",
            name=error.name,
        ) from error
    exported = torch.onnx.export(
        program, dynamo=True, input_names=["images"], output_names=["logits"], verbose=False
    )
    proto = exported.model_proto
    # torch calls the sizes s34, s14, s54.
    dims = [d.dim_param for d in proto.graph.input[0].type.tensor_type.shape.dim]
    names = {d: name for d, name in zip(dims, ("batch", "", "height", "width"), strict=True) if d}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\bs\d+\b", lambda m: names.get(m[0], m[0]), dim.dim_param)
    onnx.helper.set_model_props(proto, {k: json.dumps(v) for k, v in metadata.items()})
    return proto.SerializeToString()


def _session(content: bytes):
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images.numpy()})[0]


@torch.no_grad()
def _compare(network: nn.Module, function: Any, image_size: tuple[int, int], path: Path) -> None:
    height, width = (max(n, MIN_SIZE) for n in image_size)
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 3, height, width), (1, 3, height + 17, width + 1), (3, 3, 33, 50)):
        images = torch.rand(shape, generator=generator)
        expected = network(images).numpy()
        found = np.asarray(function(images))
        largest = max(float(np.abs(expected).max()), np.finfo(np.float32).tiny)
        off = float(np.abs(found - expected).max()) / largest
        if not off <= TOLERANCE:
            raise RuntimeError(
                f"{path} must compute the logits of the network to {TOLERANCE:g} of the largest, "
                f"and is off by {off:.2g} on images of {shape}: not written"
            )
