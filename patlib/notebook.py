"""Check a notebook's parameters: papermill only warns of one that the notebook does not have."""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from patlib import checks

_INJECTED = "# Parameters"  # the first line of the cell that papermill adds


def check_parameters(namespace: Mapping[str, Any], allowed: Iterable[str]) -> dict[str, Any]:
    """The parameters of a notebook, or an error that names the first unknown one.

    Call it in a cell after the parameters cell: ``check_parameters(globals(), [...])``. What was
    assigned in the parameters cell (annotated assignments and nothing else) and in the cell that
    papermill adds, each as it was executed last, counts as a parameter. Other names of the kernel
    do not, so that the cell can be run again after the rest of the notebook.

    Args:
        namespace: ``globals()`` of the notebook. IPython keeps the executed cells in its ``In``.
        allowed: names that the parameters cell defines.

    Returns:
        name -> value of the allowed parameters.

    Raises:
        ValueError: a parameter is unknown, or an allowed one is not defined.
    """
    allowed = list(allowed)
    own, injected = [], []
    for source in namespace.get("In", ()):
        names, annotated = _assigned(source)
        if source.lstrip().startswith(_INJECTED):
            injected = names
        # At least half of the names: one of them may have been misspelled in an edit.
        elif annotated and 2 * len(set(names).intersection(allowed)) >= len(allowed):
            own = names
    checks.check_parameters("the notebook", [*own, *injected], allowed)
    if missing := [name for name in allowed if name not in namespace]:
        raise ValueError(f"the parameters cell must define {', '.join(missing)}")
    return {name: namespace[name] for name in allowed}


def _assigned(source: str) -> tuple[list[str], bool]:
    """The names that a cell assigns if it consists of nothing else; whether one is annotated."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # such as a magic
        return [], False
    names, annotated = [], False
    for statement in body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            return [], False
        annotated |= isinstance(statement, ast.AnnAssign)
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else statement.targets
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names, annotated
