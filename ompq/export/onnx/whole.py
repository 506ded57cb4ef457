"""Integers in a graph of ONNX: as bytes that layers read, or in float64, which holds them exactly.

ONNX has no kernels that convolve or multiply anything but bytes in integers, and hardly any for
int64; float64 computes the same while integers stay below 2^53.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from torch import Tensor

from ompq.export.onnx.builder import GraphBuilder

# Bounds of a clip beyond this are none: no integer reaches them.
_UNBOUNDED = 2**61
_BYTE_REACH = 255


def fits_bytes(low: int, high: int) -> bool:
    """Tell whether integers between two bounds fit into bytes with a zero point."""
    return high - low <= _BYTE_REACH and low <= 0 <= high


@dataclass(frozen=True)
class Whole:
    """Integers of one value, or of the tensors of a tuple.

    Attributes:
        names: Names of the tensors in the graph.
        zero_point: What bytes (uint8) hold for zero; None for integers in float64.
    """

    names: tuple[str, ...]
    zero_point: int | None = None

    @property
    def name(self) -> str:
        """Return the name of the first tensor, mostly the only one."""
        return self.names[0]

    @property
    def zero(self) -> np.generic:
        """Return what stands for zero, of the tensors' type."""
        return np.float64(0) if self.zero_point is None else np.uint8(self.zero_point)


class Arithmetic:
    """Writes arithmetic on integers into a graph.

    Args:
        builder: Graph that operators are added to.
        numbers: Integers by name, of `export_integers`.
    """

    def __init__(self, builder: GraphBuilder, numbers: Mapping[str, Tensor]) -> None:
        self.builder, self.numbers = builder, numbers
        self._widened: dict[Whole, str] = {}
        self._held: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def read(self, name: str) -> NDArray[Any] | None:
        """Return the integers of a name; None where there are none."""
        held = self.numbers.get(name)
        return None if held is None else held.numpy()

    def hold(self, values: NDArray[Any], name: str) -> str:
        """Return the name of a constant, of any size, that is in the graph once."""
        key = values.dtype.str, values.shape, values.tobytes()
        if key not in self._held:
            self._held[key] = self.builder.constant(values, name)
        return self._held[key]

    def compute(self, kind: str, value: str, constant: Any, name: str) -> str:
        """Write an operator on a float64 value and a constant that broadcasts to it."""
        held = self.builder.constant(np.asarray(constant, dtype=np.float64))
        return self.builder.add(kind, [value, held], name)

    def cast(self, value: str, name: str, to: int = TensorProto.DOUBLE) -> str:
        """Write a cast, to float64 mostly."""
        return self.builder.add("Cast", [value], name, to=to)

    def widen(self, whole: Whole, name: str) -> str:
        """Return the name of a value's integers, zero point subtracted, in float64."""
        if whole.zero_point is None:
            return whole.name
        if whole not in self._widened:
            value = self.cast(whole.name, name)
            if whole.zero_point:
                value = self.compute("Sub", value, whole.zero_point, name)
            self._widened[whole] = value
        return self._widened[whole]

    def clip(self, value: str, bounds: Sequence[Any] | NDArray[Any], name: str) -> str:
        """Write a clip of float64 integers at two bounds, which broadcast to the value."""
        low, high = (np.asarray(bound, dtype=np.float64) for bound in bounds)
        has_low, has_high = bool((low > -_UNBOUNDED).any()), bool((high < _UNBOUNDED).any())
        if has_low and has_high and low.size == high.size == 1:
            held = [self.builder.constant(bound.reshape(())) for bound in (low, high)]
            return self.builder.add("Clip", [value, *held], name)
        if has_low:
            value = self.compute("Max", value, low, name)
        return self.compute("Min", value, high, name) if has_high else value

    def rescale(self, value: str, path: str, name: str) -> str:
        """Write the rescaling of float64 integers by the dyadic factor of a path.

        Float64 computes floor(x · M / 2^e + 1/2) as integers do, see ompq/integer/dyadic.py.
        """
        scaled = self.compute("Mul", value, self._read_factor(path), name)
        return self.builder.add("Floor", [self.compute("Add", scaled, 0.5, name)], name)

    def clip_before(self, value: str, path: str, name: str) -> str:
        """Write the clip of float64 integers that stands before a rescaling, where it matters.

        Rescaling keeps the order of integers: a bound that it takes beyond the bounds that follow
        changes nothing.
        """
        bounds = self.read(f"{path}.clip")
        if bounds is None:
            return value
        factor, last = self._read_factor(path), self.read(f"{path}.bounds")
        assert last is not None
        low, high = (np.floor(bound * factor + 0.5) for bound in bounds.astype(np.float64))
        needed = np.stack(np.broadcast_arrays(*bounds)).astype(np.float64)
        if bool((low <= last[0]).all()):
            needed[0] = -np.inf
        if bool((high >= last[1]).all()):
            needed[1] = np.inf
        return self.clip(value, needed, name)

    def fold(self, table: NDArray[Any], path: str) -> NDArray[Any]:
        """Requantize the entries of a table by a path, rather than what is looked up in it.

        Args:
            table: Integers, channels × levels.
            path: Path of the requantizer.

        Returns:
            Integers of bytes, less the least one.
        """
        clip, bounds = self.read(f"{path}.clip"), self.read(f"{path}.bounds")
        assert bounds is not None
        values = table.astype(np.float64) if clip is None else np.clip(table, *clip)
        low, high = (int(bound) for bound in bounds)
        rescaled = np.floor(values * self._read_factor(path) + 0.5)
        return np.clip(rescaled, low, high) - low

    def _read_factor(self, path: str) -> NDArray[np.float64]:
        """Read a dyadic factor, which float64 holds exactly."""
        multiplier, shift = self.read(f"{path}.multiplier"), self.read(f"{path}.shift")
        assert multiplier is not None
        assert shift is not None
        return np.ldexp(multiplier.astype(np.float64), -shift.astype(np.int32))

    def settle(self, value: str, path: str, name: str) -> Whole:
        """Clip float64 integers at the bounds of a path, and write them as bytes if they fit."""
        held = self.read(f"{path}.bounds")
        assert held is not None
        low, high = (int(bound) for bound in held)
        value = self.clip(value, (low, high), name)
        if not fits_bytes(low, high):
            return Whole((value,))
        if low:
            value = self.compute("Sub", value, low, name)
        return Whole((self.cast(value, name, TensorProto.UINT8),), -low)
