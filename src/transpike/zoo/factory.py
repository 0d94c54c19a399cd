"""MODULE:FACTORY: a function of the user's that returns a module."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import nn

from transpike.errors import ModelError
from transpike.zoo.source import FORMS, reason


def call_factory(spec: str, options: Mapping[str, Any]) -> nn.Module:
    """Import MODULE, with the working directory first on the path, and call FACTORY(**options).

    A FACTORY that is itself a module, rather than something that returns one, is taken as it is.

    Raises: ModelError if it cannot be imported or found, raises, or returns something else.
    """
    module_name, _, attribute = spec.partition(":")
    with _working_directory_importable():
        module = _import(module_name, spec)
        factory = getattr(module, attribute, None)
        if isinstance(factory, nn.Module) and not options:
            return factory
        if factory is None or not callable(factory):
            raise ModelError(_not_found(module, attribute, factory))
        try:
            model = factory(**options)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise ModelError(f"the factory {spec} raised {reason(error)}; call it yourself to debug it") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory {spec} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    entry = os.getcwd()
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _import(module_name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ModelError(
                f"there is no module {error.name!r} to import for {spec!r}, neither installed nor in the working "
                f"directory; the forms of a model are {FORMS}"
            ) from error
        raise ModelError(f"importing {module_name} raised {reason(error)}; install what it needs") from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ModelError(f"importing {module_name} raised {reason(error)}; import it yourself to debug it") from error


def _not_found(module: ModuleType, attribute: str, found: object) -> str:
    if found is not None:
        return f"{module.__name__}.{attribute} is a {type(found).__name__}; it must be a function that returns a module"
    public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    close = difflib.get_close_matches(attribute, public, n=5) or [
        name for name in public if getattr(module, name).__module__ == module.__name__
    ]
    hint = f"it has {', '.join(close[:5])}" if close else "it defines no function"
    return f"the module {module.__name__} has no {attribute!r}; {hint}"
