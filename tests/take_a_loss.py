"""Runs the Python of "Take a loss" in the README: PyTorch, NumPy and patlib are enough for it."""

import re
from pathlib import Path

import torch

readme = (Path(__file__).parents[1] / "README.md").read_text()
section = readme.split("## Take a loss\n")[1].split("\n## ")[0]
blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
logits = torch.randn(2, 13, 8, 10, requires_grad=True)
target = torch.arange(160).view(2, 8, 10) % 13
target[:, 0] = 255
space = {"logits": logits, "target": target, "counts": torch.arange(13)}
assert blocks
for block in blocks:
    exec(compile(block, "README.md", "exec"), space)
    assert torch.isfinite(space["loss"](logits, target))
assert logits.grad.isfinite().all() and logits.grad.any()

import patlib  # noqa: E402

try:
    patlib.train  # noqa: B018
except ImportError as error:  # where only these are installed
    assert "pip install 'patlib-segmentation[train]'" in str(error), error
    print("The losses work, training asks for its extra:", patlib.__file__)
else:
    print("The losses work:", patlib.__file__)
