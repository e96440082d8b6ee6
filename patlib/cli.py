"""The command ``patlib``: train, predict, compare.

Exit codes: 0, done; 2, something was refused (an option, a file, a folder), before any work where
that could be known; 1, something failed on the way. An error is on standard error, on one line, or
with a line for each file that it is about.
"""

import argparse
import difflib
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
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
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parsers = build_parsers()
    try:
        options = build_parser(parsers).parse_args(one_spelling(arguments))
        return COMMANDS[options.command](options[options.command])
    except argparse.ArgumentError as error:
        return _complain(_in_plain_words(str(error), arguments, parsers), REFUSED)
    except (ValueError, FileNotFoundError) as error:
        return _complain(error, REFUSED)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on", FAILED)
    except Exception as error:  # a full disk, a loss that became NaN, a missing package, ...
        return _complain(error or type(error).__name__, FAILED)


def one_spelling(arguments: Sequence[str]) -> list[str]:
    """``--image-size 96 128`` is ``--image_size [96,128]``, with every command."""
    joined: list[str] = []
    for argument in arguments:
        argument = re.sub(r"^--[\w-]+", lambda o: "--" + o[0][2:].replace("-", "_"), argument)
        if len(joined) > 1 and joined[-2] == "--image_size" and argument.isdigit():
            argument = f"[{joined.pop()},{argument}]"
        joined.append(argument)
    return joined


# What the parser calls by the names of Python's types.
KINDS = {
    "tuple": "HEIGHT and WIDTH in pixels, such as 96 128",
    "int": "an integer",
    "float": "a number",
    "collections.abc.Mapping": "names and values in braces, such as {temperature: 20}",
    "dict": "names and values in braces, such as {width: 16}",
}


def _in_plain_words(
    error: str, arguments: Sequence[str], parsers: Mapping[str, ArgumentParser]
) -> str:
    """The parser's refusal of an option, as patlib says such things elsewhere."""
    wrong = re.match(
        r'Parser key "(\S+?)":.*?Expected an? (?:<class \')?([\w.]+).*[vV]alue: (.*)',
        error,
        re.DOTALL,
    )
    kind = wrong and ("tuple" if "image_size" in wrong[1] else wrong[2])
    if kind in KINDS:
        return f"{wrong[1]} must be {KINDS[kind]}, got {wrong[3].strip()!r}"
    if unknown := re.search(r"argument command: invalid choice: '(.*?)'", error):
        return f"the command must be {', '.join(parsers)}, got {unknown[1]!r}" + _meant(
            unknown[1], parsers
        )
    if unknown := re.match(r"unrecognized arguments: --(\w+)", error):
        parser = parsers.get(arguments[0])
        options = [o for a in (parser._actions if parser else ()) for o in a.option_strings]
        return error + _meant(f"--{unknown[1]}", options)
    return re.sub(rf"\b({'|'.join(parsers)})\.(?=\w)", "", re.sub(r":?\s*\n\s*", "; ", error))


def _meant(given: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""


def _complain(error: object, code: int) -> int:
    """Print an error: on one line, but for the indented lines of a list of files."""
    text = str(error).strip() or type(error).__name__
    print("patlib:", re.sub(r":?\s*\n(?!  )\s*", "; ", text), file=sys.stderr)
    return code


class _Formatter(DefaultHelpFormatter):
    """Help from docstrings, without their markup and the names of Python's types."""

    def _expand_help(self, action: argparse.Action) -> str:
        text = re.sub(r"(:\w+:)?`+([^`]*)`+", r"\2", super()._expand_help(action))
        text = re.sub(r"\((?:type: .*?, )?default: (.*)\)$", r"(default: \1)", text)
        return text.removesuffix(" (default: null)")


def build_parsers() -> dict[str, ArgumentParser]:
    """The parser of each command; options of ``train`` are the fields of `patlib.RunConfig`."""
    from patlib.models import MODELS

    make = partial(ArgumentParser, exit_on_error=False, formatter_class=_Formatter)

    train = make(description="Train a network and score it. Started again, it goes on.")
    train.add_class_arguments(RunConfig, as_group=False)

    predict = make(
        description="Label images with a trained network. The label maps have the values of the "
        "masks that it was trained on (of colour masks: their colours, as a palette); classes.json "
        "beside them says what they mean. What is there is kept."
    )
    predict.add_argument("run", help="best/ of a comparison, the output_dir of a training run, or "
                         "its last.ckpt")  # fmt: skip
    predict.add_argument("images", nargs="+", help="image files, and folders of images")
    predict.add_argument("--out", required=True, help="folder of the label maps (PNG, palette)")
    predict.add_argument("--overlay", action="store_true", help="also the labels over the image")
    predict.add_argument(
        "--prior_shift",
        default=None,
        help="none; chosen, the one that validation chose; or tau=NUMBER, kappa=NUMBER. Default: "
        "of best/ the one that the comparison recommends, else none",
    )
    predict.add_argument("--batch_size", type=int, default=8, help="images at a time")
    predict.add_argument("--device", default="auto", help=", ".join(DEVICES))

    compare = make(
        description="Compare losses on your own images, and say which to take. Started again with "
        "the same folder of results, it goes on; with more seeds, it adds them, whatever the "
        "budget."
    )
    compare.add_argument("data", help="folder with images/, masks/ and perhaps classes.yaml")
    compare.add_argument("--budget", type=float, default=60, help="minutes, all in all")
    compare.add_argument("--out", default="comparison", help="folder of the report and the runs")
    names = (
        "names of losses, such as ce bms pat (see patlib train --help), or of the six that are the "
        "default: 'CE', 'CE, median frequency', 'BMS', 'CE + Jaccard', 'PAT', '1/√S'"
    )
    compare.add_argument("--losses", nargs="+", default=None, help=names)
    compare.add_argument(
        "--seeds",
        type=int,
        default=None,
        help="runs of each loss, which differ by chance only; default: as many as fit",
    )
    compare.add_argument(
        "--model",
        default=None,
        help=f"{', '.join(MODELS)}; default: unet with pretrained weights if they are installed",
    )
    compare.add_argument(
        "--model_params", type=dict, default=None, help="of the network, such as '{width: 16}'"
    )
    compare.add_argument(
        "--image_size",
        type=tuple[int, int],
        default=None,
        metavar="HEIGHT WIDTH",
        help="in pixels; default: of classes.yaml, or one like most images",
    )
    compare.add_argument("--device", default="auto", help=", ".join(DEVICES))
    return {"train": train, "predict": predict, "compare": compare}


def build_parser(parsers: Mapping[str, ArgumentParser]) -> ArgumentParser:
    """The parser of ``patlib``."""
    parser = ArgumentParser(
        prog="patlib",
        description="Semantic segmentation with a long tail.",
        version=__version__,
        exit_on_error=False,
        formatter_class=_Formatter,
    )
    commands = parser.add_subcommands(dest="command")
    for name, what in {
        "train": "train a network",
        "predict": "label images",
        "compare": "compare losses on your own images",
    }.items():
        commands.add_subcommand(name, parsers[name], help=what)
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
    prior_shift = _prior_shift(options.prior_shift, options.run)
    paths = label_files(
        options.run,
        options.images,
        options.out,
        options.overlay,
        prior_shift,
        options.batch_size,
        options.device,
        progress=partial(tqdm, mininterval=0.5, disable=None),
    )
    print(f"{len(paths)} label maps of {len(images)} images in {options.out}")
    print(_told_shift(prior_shift, options.prior_shift))
    return 0


def _prior_shift(text: str | None, run: str) -> dict[str, float] | None:
    """The shift that a text names; of None the one that a comparison recommends, or none.

    Raises:
        ValueError: it names none.
        FileNotFoundError: the run has no record to choose from.
    """
    from patlib.prediction import chosen_shift
    from patlib.records import CHOSEN

    if text is None:  # without a recommendation, as the network was trained
        path = Path(run).expanduser()
        folder = path if path.is_dir() else path.parent
        text = "chosen" if (folder / CHOSEN).is_file() else "none"
    if text == "none":
        return None
    if text == "chosen":
        return chosen_shift(run)
    if match := re.fullmatch(r"(tau|kappa)=([-+.\de]+)", text):
        try:
            return {match[1]: float(match[2])}
        except ValueError:
            pass
    raise ValueError(f"prior_shift must be none, chosen, tau=NUMBER or kappa=NUMBER, got {text!r}")


def _told_shift(prior_shift: Mapping[str, float] | None, asked: str | None) -> str:
    told = "without a prior shift"
    if prior_shift:
        told = "with the prior shift " + ", ".join(f"{k}={v:g}" for k, v in prior_shift.items())
        told += " that the comparison recommends" if asked is None else ""
    return told


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
        "image_size": options.image_size and list(options.image_size),
        "device": check_choice("device", options.device, DEVICES),
        "output_dir": str(out),
    }
    started = time.perf_counter()
    try:
        import papermill
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"patlib compare needs {error.name}: pip install 'patlib-segmentation[book]'"
        ) from error
    # Executed beside: what is refused leaves the notebook of an earlier comparison as it is.
    notebook, made = out / ".comparison.ipynb", not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            find_notebook(),
            notebook,
            {name: value for name, value in parameters.items() if value is not None},
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except papermill.PapermillExecutionError as error:
        if error.ename not in ("ValueError", "FileNotFoundError"):
            notebook.replace(out / "comparison.ipynb")  # to see what failed
            return _complain(error.evalue or error.ename, FAILED)
        notebook.unlink()
        if made and not any(out.iterdir()):
            out.rmdir()
        return _complain(error.evalue, REFUSED)
    notebook.replace(out / "comparison.ipynb")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes with the start of the command")
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
