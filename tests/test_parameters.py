"""The check of a notebook's parameters: by namespaces made here, and once in a real kernel."""

import nbformat
import papermill
import pytest

from patlib.notebook import check_parameters

CELL = 'loss: str = "pat"  # of the run\nseed: int = 0\nepochs: int = 3'
CHECK = """from patlib.notebook import check_parameters
parameters = check_parameters(globals(), NAMES)"""
NAMES = ["loss", "seed", "epochs"]


def run(*cells):
    """The namespace of a kernel after these cells."""
    space = {"In": [""], "_i1": "", "open": open, "public_name_of_the_kernel": 1}
    for source in cells:
        space["In"].append(source)
        exec(source, space)
    return space


def test_values_are_those_of_the_allowed_names():
    values = {"loss": "ce", "seed": 0, "epochs": 3}
    assert check_parameters(run(CELL, '# Parameters\nloss = "ce"\n', "x = 1"), NAMES) == values


def test_an_unknown_parameter_is_named_with_the_closest_one():
    with pytest.raises(ValueError, match="the notebook has no parameter 'sead' .*'seed'.*epochs"):
        check_parameters(run(CELL, "# Parameters\nsead = 1\n"), NAMES)
    with pytest.raises(ValueError, match="the notebook has no parameter 'sead'"):
        check_parameters(run("import math", CELL, "# Parameters\n\nsead = 1"), NAMES)


def test_a_null_character_is_refused():
    with pytest.raises(ValueError, match="loss must be text without a null character"):
        check_parameters(run(CELL, '# Parameters\nloss = "a\\0b"\n'), NAMES)


def test_run_again_after_the_rest_of_the_notebook():
    rest = ["import json", "parameters = 3", "seed = 5\nother = 2", "def f(): ...", "%magic"]
    space = run(CELL, *rest[:4])
    space["In"] += [rest[4], "x, y = 1, 2", "for seed in range(2): pass"]
    assert check_parameters(space, NAMES) == {"loss": "pat", "seed": 5, "epochs": 3}


def test_run_again_after_an_edit():
    edited = CELL.replace("pat", "ce")
    assert check_parameters(run(CELL, edited), NAMES)["loss"] == "ce"
    misspelled = CELL.replace("epochs", "epoch")  # the old value is still in the kernel
    with pytest.raises(ValueError, match="no parameter 'epoch' .*'epochs'"):
        check_parameters(run(CELL, misspelled), NAMES)
    assert check_parameters(run(CELL, misspelled, CELL), NAMES)
    wrong = "# Parameters\nsead = 1"
    assert check_parameters(run(CELL, wrong, "# Parameters\nseed = 1"), NAMES)["seed"] == 1


def test_a_parameter_that_is_not_defined_is_named():
    with pytest.raises(ValueError, match="must define epochs"):
        check_parameters(run("loss: str = 'pat'\nseed: int = 0"), NAMES)


def test_in_a_kernel(tmp_path):
    notebook = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]})
    check = CHECK.replace("NAMES", repr(NAMES))
    edited = CELL.replace("0", "7")
    sources = [
        "import math",
        check,
        "x = 1",
        check,
        edited,
        check,
        "assert parameters['seed'] == 7",
    ]
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook.cells = [cells[0], parameters, *cells[1:]]
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    path = tmp_path / "notebook.ipynb"
    nbformat.write(notebook, path)
    good, bad = ({name: "ce"} for name in ("loss", "los"))
    papermill.execute_notebook(path, None, parameters=good, progress_bar=False)
    with pytest.raises(Exception, match=r"no parameter 'los' \(did you mean 'loss'"):
        papermill.execute_notebook(path, None, parameters=bad, progress_bar=False)
