"""The face of a package: names that are imported from where they live when they are asked for.

An eager face would import PyTorch before a script's first line, so that Ctrl-C then ends in a
traceback, and the simplest command would take as long as the network that it does not need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the module functions `__getattr__` and `__dir__` of a lazy face.

    Args:
        package: Name of the package.
        homes: Module → the names that it gives the face, separated by spaces.
    """
    home_of = {name: module for module, names in homes.items() for name in names.split()}

    def find(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(home_of[name]), name)

    return find, lambda: sorted(home_of)
