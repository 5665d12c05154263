"""Import functions that the configuration names by a dotted path. This module does not import torch."""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from al_bench.errors import UserError
from al_bench.signals import stop_behind
from al_bench.text import in_a_line


def function(key: str, path: str) -> Callable[..., Any]:
    """The function or class at a dotted path, such as my_module.my_function. key: the setting that names it.

    Raises UserError if nothing callable can be imported from there.
    """
    try:
        found = _locate(path)
        if not callable(found):
            raise TypeError(f"it is of type {type(found).__name__}, which cannot be called")
        return found
    except BaseException as error:  # a user's module may raise anything when imported
        if stop := stop_behind(error):
            raise stop from None
        raise UserError(f"{key}={path} cannot be loaded: {in_a_line(error).rstrip('.')}.") from error


def _locate(path: str) -> Any:
    top, *names = path.split(".")
    found = import_module(top)
    for name in names:
        is_package = hasattr(found, "__path__")
        if is_package and not hasattr(found, name) and find_spec(f"{found.__name__}.{name}"):
            import_module(f"{found.__name__}.{name}")  # importing it makes it an attribute of its package
        found = getattr(found, name)
    return found
