"""What a C program of a network is made of: values in memory, and steps that compute them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor
from torch.fx import Node

_TYPES = {"U8": 1, "I8": 1, "U16": 2, "I16": 2, "I32": 4}
C_TYPES = {
    "U8": "uint8_t",
    "I8": "int8_t",
    "U16": "uint16_t",
    "I16": "int16_t",
    "I32": "int32_t",
}
Bounds = tuple[int, int]


@dataclass(eq=False)
class Buffer:
    """Integers that lie in memory one after another.

    Attributes:
        count: How many there are.
        bounds: The least and the largest that occur, 0 included.
        pointer: Name of the array that they lie in, the caller's or a table; empty for one of the
            program's own memory.
        values: What a table holds, int64; None of other arrays.
    """

    count: int
    bounds: Bounds
    pointer: str = ""
    values: Tensor | None = None

    def __post_init__(self) -> None:
        low, high = self.bounds
        self.bounds = min(low, 0), max(high, 0)

    @property
    def type(self) -> str:
        """Return the narrowest type that holds the integers, less `low`.

        >>> [Buffer(1, bounds).type for bounds in [(0, 255), (-8, 7), (-117, 138), (-4, 2**20)]]
        ['U8', 'I8', 'U8', 'I32']
        """
        low, high = self.bounds
        if self.pointer == "sums":
            return "I32"
        for bits in (8, 16):
            if -(2 ** (bits - 1)) <= low and high < 2 ** (bits - 1) and low < 0:
                return f"I{bits}"
            if high - low < 2**bits:
                return f"U{bits}"
        return "I32"

    @classmethod
    def hold(cls, values: Tensor, name: str) -> Buffer:
        """Make a table of integers, int64.

        Args:
            values: The integers.
            name: Name of the table.
        """
        low, high = torch.aminmax(values)
        return cls(values.numel(), (int(low), int(high)), name, values.flatten())

    @property
    def low(self) -> int:
        """Return what is subtracted from integers in memory: the least, of unsigned ones."""
        return self.bounds[0] if self.type.startswith("U") else 0

    @property
    def item_bytes(self) -> int:
        """Return the bytes of an integer."""
        return _TYPES[self.type]


@dataclass(frozen=True, eq=False)
class View:
    """A tensor whose elements are integers of a buffer, in any order, or zeros.

    Attributes:
        buffer: The buffer; None where nobody may read the tensor.
        places: Place of each element in the buffer, int64, -1 for zero; of the tensor's shape for
            one image.
    """

    buffer: Buffer | None
    places: Tensor

    @classmethod
    def of(cls, buffer: Buffer | None, shape: tuple[int, ...]) -> View:
        """Return a view of all integers of a buffer, in their order."""
        return cls(buffer, torch.arange(prod(shape)).view(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the tensor's shape."""
        return tuple(self.places.shape)

    @property
    def start(self) -> int | None:
        """Return where its elements begin in the buffer; None if they are not neighbours."""
        flat = self.places.flatten()
        first = int(flat[0])
        neighbours = first >= 0 and torch.equal(flat, torch.arange(first, first + len(flat)))
        return first if neighbours else None


@dataclass(frozen=True, eq=False)
class Region:
    """Neighbouring integers of a buffer.

    Attributes:
        buffer: The buffer.
        start: Place of the first one.
    """

    buffer: Buffer
    start: int = 0


@dataclass(frozen=True)
class Factor:
    """Factors multiplier / 2^shift: one, or one per channel.

    Attributes:
        multiplier: int64, flat.
        shift: int64, of the multiplier's shape.
    """

    multiplier: Tensor
    shift: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Rescale integers, int64, one per channel or one for all."""
        half = torch.ones_like(self.shift) << (self.shift - 1)
        return (values * self.multiplier + half) >> self.shift


@dataclass(frozen=True)
class Channels:
    """Where the channels of results are: result i is of channel ⌊i / inner⌋ mod count.

    Attributes:
        count: Number of channels.
        inner: Neighbouring results of one channel.
    """

    count: int
    inner: int


@dataclass(frozen=True)
class Operand:
    """A second value of a sum or product, which lies in memory as the first one is computed.

    Attributes:
        region: The value.
        spread: Which of its integers a result reads: the one of its channel.
        factor: What it is rescaled by; None for nothing.
    """

    region: Region
    spread: Channels
    factor: Factor | None = None


class Action(ABC):
    """What is done to a result; a dataclass of each kind tells how."""

    operand: Operand | None = None

    @property
    @abstractmethod
    def keeps_zero(self) -> bool:
        """Tell whether 0 stays 0, wherever it is."""

    @abstractmethod
    def bound(self, bounds: Bounds) -> Bounds:
        """Return what results lie between that lay between others before."""


@dataclass(frozen=True)
class Stage(Action):
    """Rescaling, adding another value, clamping, in this order.

    Attributes:
        factor: What it is rescaled by; None for nothing.
        low: Least integers, int64, one or one per channel.
        high: Largest integers, like `low`.
        operand: What is added; None for nothing.
    """

    factor: Factor | None
    low: Tensor
    high: Tensor
    operand: Operand | None = None

    @property
    def keeps_zero(self) -> bool:
        """Tell whether 0 stays 0, wherever it is."""
        within = bool((self.low <= 0).all() and (self.high >= 0).all())
        return within and self.operand is None

    def apply(self, values: Tensor) -> Tensor:
        """Rescale and clamp integers, int64, … × channels."""
        values = values if self.factor is None else self.factor.apply(values)
        return torch.clamp(values, self.low, self.high)

    def bound(self, bounds: Bounds) -> Bounds:
        """Return what results lie between that lay between others before."""
        if self.operand is not None:
            return int(self.low.min()), int(self.high.max())
        low, high = (self.apply(torch.tensor([bound])) for bound in bounds)
        return int(low.min()), int(high.max())


class Task:
    """What a step computes, before its stages; a dataclass of each kind tells how.

    Attributes:
        second: A second value that it is computed from; None for none.
    """

    second: Region | None = None


@dataclass(frozen=True)
class Map(Task):
    """Values taken through the stages one by one."""


@dataclass
class Computation:
    """Results that are yet to be stored: stages may still be added to what is done to them.

    Attributes:
        task: What is computed.
        source: Integers that it is computed from.
        results: Shape of the results for one image.
        bounds: The least and the largest result.
        place: Name of the place in the network, for comments and messages.
        number: Place in the order of the network's nodes.
        channels: Where channels are; None where no stage needs them.
        stages: What is done to the results, one after another.
        arranged: Place of each element of the tensor in the results, int64, -1 for zero; None for
            the results as they are.
    """

    task: Task
    source: Region
    results: tuple[int, ...]
    bounds: Bounds
    place: str
    number: int
    channels: Channels | None = None
    stages: list[Action] = field(default_factory=list)
    arranged: Tensor | None = None

    @property
    def count(self) -> int:
        """Return the number of results."""
        return prod(self.results)

    @property
    def places(self) -> Tensor:
        """Return the place of each element of the tensor in the results."""
        if self.arranged is not None:
            return self.arranged
        return torch.arange(self.count).view(self.results)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the tensor's shape for one image."""
        return self.results if self.arranged is None else tuple(self.arranged.shape)


@dataclass(eq=False)
class Step:
    """A computation, or a copy, and where its results go.

    Attributes:
        computation: What is computed.
        target: Where the results are stored.
    """

    computation: Computation
    target: Region

    def reads(self) -> list[Buffer]:
        """List the buffers that are read."""
        operands = [stage.operand for stage in self.computation.stages]
        regions = [operand.region for operand in operands if operand is not None]
        second = self.computation.task.second
        regions += [] if second is None else [second]
        return [self.computation.source.buffer, *(region.buffer for region in regions)]


@dataclass(frozen=True)
class Input:
    """Integers that the caller hands in: images, quantized.

    Attributes:
        buffer: Where they lie.
        shape: Their shape for one image.
        scale: What an integer is multiplied by to give the value that it stands for.
        node: Node of the network whose value they are, quantized.
        bounds: The least and the largest.
        normalised: Whether the network computes something of the pixels before, rather than arrange
            them.
    """

    buffer: Buffer
    shape: tuple[int, ...]
    scale: float
    node: Node
    bounds: Bounds
    normalised: bool


@dataclass(frozen=True)
class Program:
    """A network as steps.

    Attributes:
        inputs: What the caller hands in.
        steps: What is computed, in order.
        output: Buffer that the last sums are stored in.
        output_shape: Shape of the logits for one image.
        output_scale: What turns sums into logits, float64, one per logit.
    """

    inputs: list[Input]
    steps: list[Step]
    output: Buffer
    output_shape: tuple[int, ...]
    output_scale: Tensor
