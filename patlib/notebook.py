"""Check a notebook's parameters: papermill only warns of one that the notebook does not have."""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from patlib import checks

_INJECTED = "# Parameters"  # the first line of the cell that papermill adds
_TYPES = {"str": str, "bool": bool, "list": (list, tuple), "dict": dict}


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
        ValueError: a parameter is unknown, an allowed one is not defined, or its value has another
            type than its annotation says. None is allowed where it is the default.
    """
    allowed = list(allowed)
    own, injected = {}, {}
    for source in namespace.get("In", ()):
        names = _assigned(source)
        if source.lstrip().startswith(_INJECTED):
            injected = names
        # At least half of the names: one of them may have been misspelled in an edit.
        elif any(names.values()) and 2 * len(set(names).intersection(allowed)) >= len(allowed):
            own = names
    checks.check_parameters("the notebook", [*own, *injected], allowed)
    if missing := [name for name in allowed if name not in namespace]:
        raise ValueError(f"the parameters cell must define {', '.join(missing)}")
    for name in allowed:
        if statement := own.get(name):
            _check_type(name, namespace[name], statement)
    return {name: namespace[name] for name in allowed}


def _check_type(name: str, value: Any, statement: ast.AnnAssign) -> None:
    """Compare a value with the annotation of the parameter, ``NAME: TYPE = DEFAULT``."""
    optional = isinstance(statement.value, ast.Constant) and statement.value.value is None
    if value is None and optional:
        return
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{name} must be text without a null character, got {value!r}")
    kind = ast.unparse(statement.annotation)
    if kind == "int":
        checks.check_integer(name, value)
    elif kind == "float":
        checks.check_number(name, value)
    elif kind in _TYPES and not isinstance(value, _TYPES[kind]):
        none = " or None" if optional else ""
        raise ValueError(f"{name} must be a {kind}{none}, got {value!r}")


def _assigned(source: str) -> dict[str, ast.AnnAssign | None]:
    """The names that a cell assigns, if it does nothing else: with the statement if annotated."""
    try:
        body = ast.parse(source).body
    except SyntaxError:  # such as a magic
        return {}
    names = {}
    for statement in body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign):
            return {}
        annotated = isinstance(statement, ast.AnnAssign)
        targets = [statement.target] if annotated else statement.targets
        for target in targets:
            if isinstance(target, ast.Name):
                names[target.id] = statement if annotated else None
    return names
