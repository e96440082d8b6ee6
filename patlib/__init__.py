"""patlib: losses, networks, data and training for long-tailed semantic segmentation.

An open reproduction of *PAT: Pixel-wise Adaptive Training for Long-tailed Segmentation*.
"""

import importlib
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("patlib")
except PackageNotFoundError:  # a clone that is not installed
    __version__ = "not installed"

__all__ = ["Predictor", "RunConfig", "RunRecord", "load_model", "predict", "train"]

_HOME = {
    "Predictor": "patlib.prediction",
    "RunConfig": "patlib.config",
    "RunRecord": "patlib.records",
    "load_model": "patlib.prediction",
    "predict": "patlib.prediction",
    "train": "patlib.training",
}


def __getattr__(name: str):
    # On demand: who only wants a loss does not wait for Lightning to be imported.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'patlib' has no attribute {name!r}")
