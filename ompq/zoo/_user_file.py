"""Networks from a Python file of the user's own."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess


def import_builder(file: Path, factory_name: str) -> Callable[[int | None], nn.Module]:
    """Import a user's file and return a function that builds its network.

    The factory is called with no arguments, or with `num_classes=` where it takes that and a
    number is known.

    Args:
        file: Path of the Python file.
        factory_name: Name of the function or class in it that makes the network.

    Returns:
        A function of the number of classes, or None where that is not known.

    Raises:
        OmpqError: There is no such file or function, or the file fails (its line is named).
    """
    where = f"{file}:{factory_name}"
    if not file.is_file():
        raise OmpqError(f"network {where}: there is no file {file}")
    file = file.resolve()
    module = _run_guarded(lambda: _import(file), file)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and _is_defined_in(v, module)]
        raise OmpqError(
            f"network {where}: {file.name} has no function {factory_name!r}; "
            f"it defines {', '.join(names) or 'none'}"
        )

    def build(num_classes: int | None) -> nn.Module:
        takes_classes = "num_classes" in inspect.signature(factory).parameters
        options = {"num_classes": num_classes} if takes_classes and num_classes else {}
        network = _run_guarded(lambda: factory(**options), file)
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise OmpqError(f"network {where}: the factory gave a {kind}, not a torch.nn.Module")
        return network

    return build


def read_preprocess(module: nn.Module) -> Preprocess:
    """Return the network's attribute `preprocess` where it has one, else ImageNet's defaults."""
    own = getattr(module, "preprocess", None)
    return own if isinstance(own, Preprocess) else Preprocess()


def _is_defined_in(value: Any, module: ModuleType) -> bool:
    return getattr(value, "__module__", None) == module.__name__


def _import(file: Path) -> ModuleType:
    name = f"_network_of_user_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise OmpqError(f"{file} cannot be imported as a Python file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling inside the file look their own module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _run_guarded(action: Callable[[], Any], file: Path) -> Any:
    """Run the user's code; its neighbours are importable meanwhile, its errors name their line."""
    try:
        with _make_importable(file.parent):
            return action()
    except OmpqError:
        raise
    except SyntaxError as error:
        raise OmpqError(f"{error.filename}:{error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever the user's own code raises
        frames = traceback.extract_tb(error.__traceback__)
        line = next((f":{f.lineno}" for f in reversed(frames) if f.filename == str(file)), "")
        reason = str(error).split("\n")[0][:160]
        raise OmpqError(f"{file}{line} failed: {type(error).__name__}: {reason}") from error


@contextmanager
def _make_importable(folder: Path) -> Iterator[None]:
    """Make the files of a folder importable, behind everything that is importable anyway."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
