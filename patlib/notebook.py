"""Parameters of a notebook: papermill warns of an unknown one; a run must not start with it."""

import difflib
from collections.abc import Iterable, Mapping
from types import FunctionType, ModuleType

# What IPython puts into a notebook's namespace under public names.
_IPYTHON = {"In", "Out", "exit", "quit", "open", "get_ipython"}


def check_parameters(namespace: Mapping, allowed: Iterable[str]) -> dict:
    """The parameters of a notebook, or an error that names the first unknown one.

    Call it right after the parameters cell: ``check_parameters(globals(), [...])``. Every public
    value in the namespace at that moment counts as a parameter.

    Args:
        namespace: ``globals()`` of the notebook.
        allowed: names that the parameters cell defines.

    Returns:
        name -> value of the allowed parameters.

    Raises:
        TypeError: a parameter is unknown, or an allowed one is not defined.
    """
    allowed = list(allowed)
    given = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in _IPYTHON
        and not isinstance(value, ModuleType | FunctionType | type)
    }
    for name in given:
        if name not in allowed:
            close = difflib.get_close_matches(name, allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(
                f"unknown notebook parameter {name!r}.{hint} Allowed: {', '.join(allowed)}"
            )
    if missing := [name for name in allowed if name not in given]:
        raise TypeError(f"the parameters cell does not define {', '.join(missing)}")
    return given
