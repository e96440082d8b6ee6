"""Runs the Python of "Take a loss" in the README: PyTorch, NumPy and patlib are enough for it."""

import re
from pathlib import Path

import torch

readme = (Path(__file__).parents[1] / "README.md").read_text()
section = readme.split("## Take a loss\n")[1].split("\n## ")[0]
blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
space = {}
assert blocks
for block in blocks:
    exec(compile(block, "README.md", "exec"), space)
    assert torch.isfinite(space["loss"](space["logits"], space["target"]))
assert space["logits"].grad.isfinite().all() and space["logits"].grad.any()

import patlib  # noqa: E402

try:
    patlib.train  # noqa: B018
except ImportError as error:  # where only these are installed
    assert "pip install 'patlib-segmentation[train]'" in str(error), error
    print("The losses work, training asks for its extra:", patlib.__file__)
else:
    print("The losses work:", patlib.__file__)
