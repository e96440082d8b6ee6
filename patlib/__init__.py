"""patlib: losses, networks, data and training for long-tailed semantic segmentation.

An open reproduction of *PAT: Pixel-wise Adaptive Training for Long-tailed Segmentation*.
``patlib.losses`` needs PyTorch and NumPy only, everything else ``patlib-segmentation[train]``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patlib.config import RunConfig
    from patlib.exporting import export
    from patlib.prediction import Predictor, load_model, predict
    from patlib.records import RunRecord
    from patlib.training import train

__version__ = "0.2.0"

__all__ = ["Predictor", "RunConfig", "RunRecord", "export", "load_model", "predict", "train"]

_MODULES = {
    "Predictor": "prediction",
    "RunConfig": "config",
    "RunRecord": "records",
    "export": "exporting",
    "load_model": "prediction",
    "predict": "prediction",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import patlib.losses` does not import Lightning.
    if name not in _MODULES:
        raise AttributeError(f"module 'patlib' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"patlib.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "patlib":
            raise
        raise ImportError(
            f"patlib.{name} needs {error.name}: pip install 'patlib-segmentation[train]'"
        ) from error
    return getattr(module, name)
