"""The command ``patlib``: train, predict, compare.

Exit codes: 0, done; 2, something was refused (an option, a file, a folder), before any work where
that could be known; 1, something failed on the way. An error is one line on standard error.
"""

import argparse
import dataclasses
import difflib
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace
from tqdm import tqdm

from patlib import __version__
from patlib.checks import check_choice, check_integer, check_number
from patlib.config import DEVICES, RunConfig

REFUSED, FAILED = 2, 1
NOTEBOOK = "own_images.ipynb"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, return the exit code."""
    parser = build_parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    # --image-size is --image_size.
    arguments = [re.sub(r"^--[\w-]+", _underscored, argument) for argument in arguments]
    try:
        options = parser.parse_args(arguments)
        return COMMANDS[options.command](options[options.command])
    except argparse.ArgumentError as error:
        return _complain(_in_plain_words(str(error)), REFUSED)
    except (ValueError, FileNotFoundError) as error:
        return _complain(error, REFUSED)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on", FAILED)
    except Exception as error:  # a full disk, a loss that became NaN, a missing package, ...
        return _complain(error or type(error).__name__, FAILED)


def _underscored(option: re.Match) -> str:
    return "--" + option[0][2:].replace("-", "_")


# What the parser calls by the names of Python's types.
KINDS = {
    "tuple": "HEIGHT and WIDTH in brackets, in pixels, such as [96,128]",
    "int": "an integer",
    "float": "a number",
    "collections.abc.Mapping": "names and values in braces, such as {temperature: 20}",
    "dict": "names and values in braces, such as {width: 16}",
}


def _in_plain_words(error: str) -> str:
    """The parser's refusal of an option, as patlib says such things elsewhere."""
    wrong = re.match(
        r'Parser key "(\S+?)":.*?Expected an? <class \'([\w.]+)\'>.*[vV]alue: (.*)',
        error,
        re.DOTALL,
    )
    kind = wrong and ("tuple" if wrong[1] == "image_size" else wrong[2])
    if kind in KINDS:
        return f"{wrong[1]} must be {KINDS[kind]}, got {wrong[3].strip()!r}"
    unknown = re.match(r"unrecognized arguments: --(\w+)", error)
    names = [field.name for field in dataclasses.fields(RunConfig)]
    if unknown and (close := difflib.get_close_matches(unknown[1], names, n=1)):
        return f"{error} (did you mean --{close[0]}?)"
    return error


def _complain(error: object, code: int) -> int:
    """Print an error on one line."""
    text = str(error).strip() or type(error).__name__
    print("patlib:", re.sub(r":?\s*\n\s*", "; ", text), file=sys.stderr)
    return code


class _Formatter(DefaultHelpFormatter):
    """Help from docstrings, without their markup."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = super()._expand_help(action)
        return re.sub(r"(:\w+:)?`+([^`]*)`+", r"\2", text)


def build_parser() -> ArgumentParser:
    """The parser; options of ``train`` are the fields of :class:`patlib.RunConfig`."""
    make = partial(ArgumentParser, exit_on_error=False, formatter_class=_Formatter)
    parser = make(
        prog="patlib", description="Semantic segmentation with a long tail.", version=__version__
    )
    commands = parser.add_subcommands(dest="command")

    train = make(description="Train a network and score it. Started again, it goes on.")
    train.add_class_arguments(RunConfig, as_group=False)
    commands.add_subcommand("train", train, help="train a network")

    predict = make(description="Label images with a trained network. What is there is kept.")
    predict.add_argument("run", help="the output_dir of a training run, or its last.ckpt")
    predict.add_argument("images", nargs="+", help="image files, and folders of images")
    predict.add_argument("--out", required=True, help="folder of the label maps (PNG, palette)")
    predict.add_argument("--overlay", action="store_true", help="also the labels over the image")
    predict.add_argument(
        "--prior_shift",
        default="none",
        help="none; chosen, the one that validation chose; or tau=NUMBER, kappa=NUMBER",
    )
    predict.add_argument("--batch_size", type=int, default=8, help="images at a time")
    predict.add_argument("--device", default="auto", help=", ".join(DEVICES))
    commands.add_subcommand("predict", predict, help="label images")

    compare = make(description="Compare losses on your own images, and say which to take.")
    compare.add_argument("data", help="folder with images/, masks/ and perhaps classes.yaml")
    compare.add_argument("--budget", type=float, default=60, help="minutes, all in all")
    compare.add_argument("--out", default="comparison", help="folder of the report and the runs")
    names = "names, such as ce bms pat; default: cross-entropy, PAT, and the best of the study"
    compare.add_argument("--losses", nargs="+", default=None, help=names)
    compare.add_argument("--seeds", type=int, default=None, help="default: as many as fit")
    compare.add_argument("--model", default=None, help="default: pretrained U-Net, or SegNet")
    compare.add_argument(
        "--model_params", type=dict, default=None, help="of the network, such as '{width: 16}'"
    )
    compare.add_argument(
        "--image_size", type=int, nargs=2, default=None, help="height and width in pixels"
    )
    compare.add_argument("--device", default="auto", help=", ".join(DEVICES))
    commands.add_subcommand("compare", compare, help="compare losses on your own images")
    return parser


def _train(options: Namespace) -> int:
    from patlib.training import train

    config = RunConfig(**vars(options))
    record = train(config)
    for name in ("miou", "head", "mid", "tail", "pixel_accuracy"):
        print(f"{name:>14}: {100 * record.result['test'][name]:.1f} %")
    print(f"{'in':>14}: {config.output_dir}")
    return 0


def _predict(options: Namespace) -> int:
    from patlib.label_maps import find_images, label_files

    check_integer("batch_size", options.batch_size, minimum=1)
    images = find_images(options.images)
    paths = label_files(
        options.run,
        options.images,
        options.out,
        options.overlay,
        _prior_shift(options.prior_shift, options.run),
        options.batch_size,
        options.device,
        progress=partial(tqdm, mininterval=0.5, disable=None),
    )
    print(f"{len(paths)} label maps of {len(images)} images in {options.out}")
    return 0


def _prior_shift(text: str, run: str) -> dict[str, float] | None:
    """The shift that a text names.

    Raises:
        ValueError: it names none, or the run has no record to choose from.
    """
    if text == "none":
        return None
    if text == "chosen":
        from patlib.records import RECORD, RunRecord

        path = Path(run).expanduser()
        path = (path if path.is_dir() else path.parent) / RECORD
        if not path.is_file():
            raise FileNotFoundError(f"prior_shift=chosen needs the record of the run, {path}")
        return RunRecord.load(path).result["shifted"]["any"]["prior_shift"]
    if match := re.fullmatch(r"(tau|kappa)=([-+.\de]+)", text):
        try:
            return {match[1]: float(match[2])}
        except ValueError:
            pass
    raise ValueError(f"prior_shift must be none, chosen, tau=NUMBER or kappa=NUMBER, got {text!r}")


def _compare(options: Namespace) -> int:
    data = Path(options.data).expanduser().absolute()
    if not data.is_dir():
        raise FileNotFoundError(f"data must be a folder of images and masks, got {options.data!r}")
    out = Path(options.out).expanduser()
    parameters = {
        "data_root": str(data),
        "budget_minutes": check_number("budget", options.budget, above=0),
        "losses": options.losses,
        "seeds": options.seeds,
        "model": options.model,
        "model_params": options.model_params,
        "image_size": options.image_size,
        "device": check_choice("device", options.device, DEVICES),
        "output_dir": str(out),
    }
    try:
        import papermill
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"patlib compare needs {error.name}: pip install 'patlib-segmentation[book]'"
        ) from error
    out.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            find_notebook(),
            out / "comparison.ipynb",
            {name: value for name, value in parameters.items() if value is not None},
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except papermill.PapermillExecutionError as error:
        refused = error.ename in ("ValueError", "FileNotFoundError")
        return _complain(error.evalue or error.ename, REFUSED if refused else FAILED)
    return 0


def find_notebook() -> Path:
    """The notebook of the comparison: in an installed package, or beside the package in a clone."""
    package = Path(__file__).parent
    places = [folder / "notebooks" / NOTEBOOK for folder in (package, package.parent)]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"the notebook must be at {places[0]} or {places[1]}, and is not")


COMMANDS = {"train": _train, "predict": _predict, "compare": _compare}

if __name__ == "__main__":
    sys.exit(main())
