"""Layers as steps: their integers packed, their geometry in numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from ompq.bitstream import pack_bits
from ompq.export.c.copies import find_zero_padding
from ompq.export.c.program import Bounds, Task, View
from ompq.integer.layers import QuantizedLayer

# Results of a convolution by points that are summed at a time.
_ROW = 64


@dataclass(frozen=True)
class Weights:
    """Integers of a weight, packed.

    Attributes:
        packed: Stream of bits, uint8: values less their base.
        bits: Width of a value, 1 to 8.
        bases: Base of every output channel, or one for all, int64.
        is_narrow: Whether every weight fits into 8 bits.
    """

    packed: NDArray[np.uint8]
    bits: int
    bases: Tensor
    is_narrow: bool


@dataclass(frozen=True)
class Layer(Task):
    """What convolutions and linear layers have.

    Attributes:
        weights: The packed weight.
        bias: Bias, int64, one per output channel; None without one.
        outputs: Output channels.
        inputs: Input channels of an output channel.
    """

    weights: Weights
    bias: Tensor | None
    outputs: int
    inputs: int

    @property
    def filter_size(self) -> int:
        """Return the number of weights of an output channel."""
        return self.inputs


@dataclass(frozen=True)
class Product(Layer):
    """A linear layer over the last dimension.

    Attributes:
        positions: How many rows of inputs there are.
    """

    positions: int


@dataclass(frozen=True)
class Convolution(Layer):
    """A convolution of one or several maps.

    Attributes:
        batch: How many maps there are for one image.
        groups: Groups of channels.
        size: Height and width of the input.
        results: Rows and columns of the output.
        kernel: Height and width of the kernel.
        stride: Rows and columns from one window to the next.
        padding: Zeros above and to the left.
        dilation: Rows and columns from one value of a window to the next.
    """

    batch: int
    groups: int
    size: tuple[int, int]
    results: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def filter_size(self) -> int:
        """Return the number of weights of an output channel."""
        return self.inputs * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class LoweredLayer:
    """A layer as a task.

    Attributes:
        task: What is computed.
        view: What it reads: the layer's input, with copies for padding where it takes them.
        shape: Shape of the sums for one image.
        bounds: The least and the largest sum.
    """

    task: Layer
    view: View
    shape: tuple[int, ...]
    bounds: Bounds


def lower_layer(
    layer: QuantizedLayer, weight: Tensor, bias: Tensor | None, view: View
) -> LoweredLayer:
    """Make a task of a layer.

    Args:
        layer: The layer.
        weight: Its weight less the zero point, integers.
        bias: Its bias, integers; None without one.
        view: What it reads.
    """
    weight = weight.long()
    bias = None if bias is None else bias.long()
    assert view.buffer is not None
    bounds = _bound_sums(weight, bias, view.buffer.bounds)
    if isinstance(layer.layer, nn.Linear):
        positions = view.places.numel() // weight.shape[1]
        outputs, inputs = weight.shape
        task = Product(pack_weights(weight), bias, outputs, inputs, positions)
        return LoweredLayer(task, view, (*view.shape[:-1], outputs), bounds)
    return _lower_convolution(layer.layer, weight, bias, view, bounds)


def pack_weights(weight: Tensor) -> Weights:
    """Pack a weight into as few bits as its values need, with one base for all or per channel.

    Args:
        weight: Integers, channels × …, at most 255 apart within a channel.

    >>> packed = pack_weights(torch.tensor([[-1, 0, 1, 1], [0, 1, -1, 0]]))
    >>> packed.bits, packed.bases, packed.packed
    (2, tensor(-1), array([164,  73], dtype=uint8))
    """
    rows = weight.flatten(1)
    least, largest = torch.aminmax(rows, dim=1)
    bases = least.min()
    common = max(1, int(largest.max() - bases).bit_length())
    own = max(1, int((largest - least).max()).bit_length())
    # A base per channel takes 16 bits.
    if common > 8 or (common - own) * rows.numel() > 16 * len(rows):
        bases, common = least, own
    values = rows - (bases[:, None] if bases.dim() else bases)
    narrow = bool(least.min() >= -128) and bool(largest.max() < 128)
    return Weights(pack_bits(values.numpy().astype(np.uint8), common), common, bases, narrow)


def _bound_sums(weight: Tensor, bias: Tensor | None, bounds: Bounds) -> Bounds:
    """Return what sums lie between for inputs that do; 0 lies between these."""
    low, high = bounds
    rows = weight.flatten(1)
    positive, negative = rows.clamp(min=0).sum(dim=1), rows.clamp(max=0).sum(dim=1)
    shift = 0 if bias is None else bias
    least, largest = positive * low + negative * high, positive * high + negative * low
    return int((least + shift).min()), int((largest + shift).max())


def _lower_convolution(
    layer: nn.Conv2d, weight: Tensor, bias: Tensor | None, view: View, bounds: Bounds
) -> LoweredLayer:
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    if layer.padding_mode != "zeros":
        sides = (left, right, top, bottom)
        copies = pad(view.places.double(), sides, mode=layer.padding_mode).long()
        view, left, right, top, bottom = View(view.buffer, copies), 0, 0, 0, 0
    inner = find_zero_padding(view)
    padded = view.shape[-2] + top + bottom, view.shape[-1] + left + right
    if inner is not None:
        view, above, before = inner
        top, left = top + above, left + before
    kernel, stride, dilation = weight.shape[2:], layer.stride, layer.dilation
    rows, columns = (
        (padded[k] - dilation[k] * (kernel[k] - 1) - 1) // stride[k] + 1 for k in range(2)
    )
    task = Convolution(
        pack_weights(weight), bias, outputs=weight.shape[0], inputs=weight.shape[1],
        batch=view.shape[0], groups=layer.groups, size=(view.shape[2], view.shape[3]),
        results=(rows, columns), kernel=(kernel[0], kernel[1]), stride=_pair(stride),
        padding=(top, left), dilation=_pair(dilation),
    )  # fmt: skip
    shape = task.batch, task.outputs, rows, columns
    return LoweredLayer(_simplify(task), view, shape, bounds)


def _simplify(task: Convolution) -> Layer:
    """Compute windows that are whole maps as a product, and points in rows of a good length."""
    whole = task.kernel == task.size and task.results == (1, 1) and task.padding == (0, 0)
    if whole and task.groups == 1 and task.dilation == (1, 1):
        return Product(task.weights, task.bias, task.outputs, task.filter_size, task.batch)
    points = task.kernel == task.stride == (1, 1) and task.padding == (0, 0)
    height, width = task.size
    if not points or width >= _ROW:
        return task
    row = max(length for length in range(1, _ROW + 1) if height * width % length == 0)
    size = (height * width // row, row)
    return replace(task, size=size, results=size)


def _pair(numbers: tuple[int, ...]) -> tuple[int, int]:
    return int(numbers[0]), int(numbers[-1])
