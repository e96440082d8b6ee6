"""Checks of arguments: each returns the value in its type or raises a ValueError of one form.

The message names the argument, says what is allowed, and shows what was given::

    epochs must be an integer >= 1, got 0
"""

import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float = -math.inf,
    maximum: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> float:
    """Return ``value`` as a float if it is finite and within all bounds."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # Never true of NaN or ±inf, whatever the bounds.
    if real and minimum <= value <= maximum and above < value < below:
        return float(value)
    bounds = ((">=", minimum), (">", above), ("<=", maximum), ("<", below))
    allowed = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    hint = ""
    if isinstance(value, str) and _is_number(value):
        # YAML reads 1e-4 as text; 1.0e-4 is a number.
        hint = " (text, not a number: YAML wants a decimal point, as in 1.0e-4)"
    message = f"{name} must be a finite number {allowed}".rstrip()
    raise ValueError(f"{message}, got {value!r}{hint}")


def check_integer(
    name: str, value: Any, *, minimum: int | None = None, maximum: int | None = None
) -> int:
    """Return ``value`` as an int if it is a whole number within the bounds, not True or False."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    below = whole and minimum is not None and value < minimum
    above = whole and maximum is not None and value > maximum
    if not whole or below or above:
        bounds = ((">=", minimum), ("<=", maximum))
        allowed = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
        raise ValueError(f"{f'{name} must be an integer {allowed}'.rstrip()}, got {value!r}")
    return int(value)


def check_choice(name: str, value: T, allowed: Sequence[T]) -> T:
    """Return ``value`` if it is one of ``allowed``, of the same type."""
    # isinstance keeps 1 from passing for True.
    if not any(isinstance(value, type(choice)) and value == choice for choice in allowed):
        hint = _closest(value, allowed)
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}"
        )
    return value


def check_parameters(what: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Refuse a name that is not a parameter of ``what``, such as "loss 'ce'"."""
    allowed = sorted(allowed)
    for name in given:
        if name not in allowed:
            has = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise ValueError(f"{what} has no parameter {name!r}{_closest(name, allowed)}, {has}")


def _closest(value: Any, allowed: Sequence[Any]) -> str:
    names = [choice for choice in allowed if isinstance(choice, str)]
    close = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) else []
    return f" (did you mean {close[0]!r}?)" if close else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
