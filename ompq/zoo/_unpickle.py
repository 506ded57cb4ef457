"""Reading a file of PyTorch or safetensors without running what is in it."""

from __future__ import annotations

import argparse
import pickle
import re
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ompq.errors import OmpqError
from ompq.zoo._formats import describe_other_format, is_safetensors

# Python's own kinds of values, which histories and settings beside the weights are made of.
_PLAIN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, range, slice)


def _make_dict(*_: Any) -> dict[Any, Any]:
    """Make what a defaultdict is filled as: the safe unpickler fills no other kinds."""
    return OrderedDict()


def _make_list(*_: Any) -> list[Any]:
    """Make what a deque is filled as."""
    return []


# NumPy's numbers and arrays are rebuilt by functions that have moved between its versions.
_REBUILDERS = {
    "scalar": np.float64(0).__reduce__()[0],
    "_reconstruct": np.zeros(0).__reduce__()[0],
}
# Training scripts save their arguments and best accuracy too; rebuilding these runs no code.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    types.SimpleNamespace,
    (_make_dict, "collections.defaultdict"),
    (_make_list, "collections.deque"),
    *_PLAIN,
    np.dtype,
    np.ndarray,
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in _REBUILDERS.items()
        for core in ("core", "_core")
    ),
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefdU"),
]
# Modules of Python whose classes hold settings; of all others of Python nothing is taken.
_SETTINGS_MODULES = ("collections", "datetime", "decimal", "enum", "pathlib", "typing", "uuid")
_MOST_STAND_INS = 64
_DAMAGE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    zipfile.BadZipFile,
    SafetensorError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        value: The object that was saved; an empty dict where it is of a class that is not known
            here.
        unread: Full names of the classes of other packages whose objects an empty dict stands in
            for.
    """

    value: Any
    unread: tuple[str, ...] = ()


class _StandIn:
    """A class of another package, as which nothing but an empty dict is ever made."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        # The safe unpickler fills dicts of exactly this class, and ignores attributes set on them.
        return OrderedDict()


def read_content(file: Path) -> Content:
    """Read a file that PyTorch or safetensors wrote; nothing in it is executed.

    Objects of classes that PyTorch's safe reading does not know (settings of a training framework
    beside the weights) are not rebuilt; an empty dict stands in for each.

    Args:
        file: Path of the file.

    Raises:
        OmpqError: The file is damaged, may not be read, is of another format (which is named), or
            would have to run code.
    """
    try:
        other = describe_other_format(file)
        if other:
            raise OmpqError(f"{file} is {other}")
        if is_safetensors(file):
            return Content(load_file(file))
        return _unpickle(file)
    except PermissionError as error:
        raise OmpqError(f"{file} may not be read; check its permissions") from error
    except _DAMAGE as error:
        raise OmpqError(_describe_damage(file)) from error


def describe_code(file: Path, name: str) -> str:
    """Describe a file with an object that only code could rebuild.

    Args:
        file: Path of the file.
        name: Full name of the object's class.
    """
    return (
        f"{file} holds pickled code ({name}) beside or instead of plain weights, which is "
        "never run; save model.state_dict() and give that file"
    )


def describe_network(file: Path, name: str) -> str:
    """Describe a file with a whole network in place of its weights.

    Args:
        file: Path of the file.
        name: Full name of the network's class.
    """
    return (
        f"{file} holds a whole network ({name}), pickled, whose code is never run; save its "
        "weights, torch.save(model.state_dict(), 'weights.pth'), and give that file"
    )


def _unpickle(file: Path) -> Content:
    """Unpickle with PyTorch's safe reader, a stand-in for one unknown class more each time."""
    stand_ins: dict[str, type] = {}
    while True:
        try:
            known = [*_HARMLESS, *stand_ins.values()]
            # Opened here, or PyTorch takes the name for the format.
            with (
                file.open("rb") as opened,
                torch.serialization.safe_globals(known),
                warnings.catch_warnings(),
            ):
                # Remarks on how the file was pickled; what matters comes as an error.
                warnings.simplefilter("ignore", UserWarning)
                value = torch.load(opened, map_location="cpu", weights_only=True)
            foreign = [name for name in stand_ins if name.split(".")[0] not in _SETTINGS_MODULES]
            return Content(value, tuple(foreign))
        except _DAMAGE as error:
            name = _find_refused(str(error)) if isinstance(error, pickle.UnpicklingError) else ""
            full = name in stand_ins or len(stand_ins) == _MOST_STAND_INS
            if name and not full and _may_hold_settings(name):
                module, _, own = name.rpartition(".")
                stand_ins[name] = type(own, (_StandIn,), {"__module__": module})
                continue
            refused = next(iter(stand_ins), name)
            if not refused:
                raise
            raise OmpqError(describe_code(file, refused)) from error


def _find_refused(reason: str) -> str:
    """Find the full name that the safe reader stopped at; empty where the bytes are no pickle."""
    found = re.search(r"GLOBAL ([\w.]+)", reason) or re.search(r"class ([\w.]+)", reason)
    return found[1] if found is not None else ""


def _may_hold_settings(name: str) -> bool:
    """Tell whether a name is of a package's class, or of Python's classes for settings.

    Whoever pickles `subprocess.run` means harm: such a file is refused as a whole.
    """
    module = name.split(".")[0]
    if "." not in name or module == "__builtin__":
        return False
    return module not in sys.stdlib_module_names or module in (*_SETTINGS_MODULES, "__main__")


def _describe_damage(file: Path) -> str:
    return (
        f"{file} ({file.stat().st_size} bytes) is damaged or no weight file that PyTorch or "
        "safetensors wrote; fetch or save it again"
    )
