"""Values that a user gives by name, held against the annotations of the function that takes them."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from .errors import ConfigError

WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def check_arguments(function: Callable[..., Any], given: Mapping[str, Any], what: str) -> None:
    """Raises ConfigError naming `what`, the argument and what it takes: for a name that `function` does not have, or a
    value of another type than its annotation. Lists pass for tuples, as JSON has no tuples, and 1 for 1.0."""
    hints = {name: hint for name, hint in typing.get_type_hints(function).items() if name != "return"}
    for name, value in given.items():
        if name not in hints:
            close = difflib.get_close_matches(name, hints, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(f"{what} has no option {name!r}; {hint}its options: {', '.join(hints)}")
        if not _fits(value, hints[name]):
            raise ConfigError(f"{what}: {name} takes {_words(hints[name])}, not {value!r:.80}")


def require_count(name: str, value: Any) -> None:
    """Raises ConfigError for what is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in arguments)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _words(hint: Any) -> str:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(_words(one) for one in arguments)
    if typing.get_origin(hint) is tuple:
        many = arguments[-1] is Ellipsis
        return f"a list of {'' if many else len(arguments)} {_words(arguments[0]).split()[-1]}s".replace("  ", " ")
    return WORDS.get(hint, "null")
