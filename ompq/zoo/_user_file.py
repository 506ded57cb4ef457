"""Networks from a Python file of the user's own."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess

# Attributes in which wrappers of training keep the network itself.
_WRAPPERS = (
    ("OptimizedModule", "_orig_mod"),
    ("DataParallel", "module"),
    ("DistributedDataParallel", "module"),
)
# Folders above that of an artifact in which the user's file is looked for.
_LEVELS = 3


def find_user_file(name: str) -> Path | None:
    """Return the path in a name `FILE.py:FACTORY`; None where the name is of another kind."""
    file = name.rpartition(":")[0]
    return Path(file) if file.endswith(".py") else None


def locate_user_file(name: str, recorded: str | None, folder: Path | None) -> str:
    """Return a network's name with the path at which the user's file is found now.

    The file is looked for where it was when the network was saved, then as it is named, then
    beside the saved network and in the folders above.

    Args:
        name: Name of a network, `FILE.py:FACTORY` or any other, which is returned as it is.
        recorded: Absolute path of the file when the network was saved; None where not known.
        folder: Folder of the saved network; None where not known.

    Raises:
        OmpqError: The file is at none of these places, which are named.
    """
    file = find_user_file(name)
    if file is None:
        return name
    places = [file] if recorded is None else [Path(recorded), file]
    if folder is not None and not file.is_absolute():
        places += [above / file for above in [folder.absolute(), *folder.absolute().parents]][
            :_LEVELS
        ]
    for place in places:
        if place.is_file():
            return f"{place}:{name.rpartition(':')[2]}"
    looked = ", ".join(dict.fromkeys(os.path.abspath(place) for place in places))
    raise OmpqError(
        f"network {name}: there is no file {file.name} (looked for {looked}); put it at one of "
        "these places, or run from its folder"
    )


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
        OmpqError: There is no such file or function, or the file fails (its line is named), or
            the network has no values yet.
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
        takes = _read_parameters(factory).get("num_classes")
        if takes is not None and takes.default is takes.empty and not num_classes:
            raise OmpqError(
                f"network {where}: the factory builds nothing without a number of classes; give "
                "`num_classes`, or that parameter a default"
            )
        options = {"num_classes": num_classes} if takes is not None and num_classes else {}
        network = _run_guarded(lambda: factory(**options), file)
        if not isinstance(network, nn.Module):
            kind = type(network).__name__
            raise OmpqError(f"network {where}: the factory gave a {kind}, not a torch.nn.Module")
        network = _unwrap(network)
        _check_values(network, where)
        # Tensors of inference mode cannot be changed; copies can.
        return copy.deepcopy(network) if _is_of_inference(network) else network

    return build


def read_preprocess(module: nn.Module) -> Preprocess:
    """Return the network's attribute `preprocess` where it has one, else ImageNet's defaults."""
    own = getattr(module, "preprocess", None)
    return own if isinstance(own, Preprocess) else Preprocess()


def _read_parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except ValueError:  # a function that is not written in Python tells nothing of itself
        return {}


def _unwrap(network: nn.Module) -> nn.Module:
    """Return the network inside torch.compile and parallel training."""
    for kind, attribute in _WRAPPERS * 2:
        if type(network).__name__ == kind and isinstance(getattr(network, attribute), nn.Module):
            network = getattr(network, attribute)
    return network


def _is_of_inference(network: nn.Module) -> bool:
    """Tell whether a network holds tensors that were made in inference mode."""
    return any(tensor.is_inference() for tensor in (*network.parameters(), *network.buffers()))


def _check_values(network: nn.Module, where: str) -> None:
    """Refuse a network whose parameters or buffers have no values, or that is no Python module."""
    if isinstance(network, torch.jit.ScriptModule):
        raise OmpqError(
            f"network {where}: the factory gave a TorchScript module, which cannot be traced; "
            "return the network that it was made from, with its weights"
        )
    for layer, module in network.named_modules():
        own = [*module._parameters.items(), *module._buffers.items()]
        for name, tensor in own:
            if tensor is None:
                continue
            if is_lazy(tensor):
                raise OmpqError(
                    f"network {where}: the layer {layer or 'itself'} ({type(module).__name__}) has "
                    "no shape before its first run; let the factory run the network once, "
                    "network(torch.zeros(1, CHANNELS, HEIGHT, WIDTH)), before it returns it"
                )
            if tensor.is_meta:
                raise OmpqError(
                    f"network {where}: {layer}{'.' if layer else ''}{name} is on PyTorch's meta "
                    "device and has no values; let the factory build the network on the CPU"
                )


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
    except (Exception, SystemExit) as error:  # whatever the user's own code raises
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
