"""A network run with integer arithmetic alone, on integers that were written down before."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.nn.functional import pad

from ompq.errors import OmpqError
from ompq.graph.operations import AVERAGES, CLIPS, operation, read_clip_bounds, read_pooling_window
from ompq.integer.convert import IntegerNetwork
from ompq.integer.dyadic import ACCUMULATOR_LIMIT, Dyadic
from ompq.integer.layers import QuantizedLayer
from ompq.integer.requantization import (
    OutputRounding,
    QuantizedAdd,
    Requantizer,
    ScaleSource,
)

# Beyond every sum of integers, and far enough from the limits of int64.
_UNBOUNDED = 2**62


def export_integers(network: IntegerNetwork) -> dict[str, Tensor]:
    """Return every number that integer hardware needs to run a network, by name.

    `LAYER.weight` (int16, zero point subtracted) and `LAYER.bias` (int32); `PATH.multiplier`
    (int32) and `PATH.shift` (int8) of a requantizer, with `.0`, `.1`, … after the path for the
    parts of a sum or concatenation, and `PATH.bounds` (int32, 2); `NODE.clip` or `PATH.clip`
    (int64, 2 × …) of a clipping activation. Floats occur at the ends only: `PATH.scale` where
    images become integers, and `output.scale`, which turns the last sums into logits.

    Args:
        network: Network of integers, in evaluation mode.

    Raises:
        OmpqError: The network does not run on integers alone (names an operation that does not),
            or a layer's sums could exceed 32 bits.
    """
    _check_integers_suffice(network)
    numbers: dict[str, Tensor] = {}
    for name, layer in network.layers().items():
        numbers |= _export_layer(name, layer)
    for path, requantizer in network.requantizers().items():
        numbers |= _export_requantizer(path, requantizer)
    for node in network.module.graph.nodes:
        scale_source = network.scale_sources.get(node.name)
        if operation(node, network.module) in CLIPS and scale_source is not None:
            bounds = read_clip_bounds(node, network.module)
            numbers[f"{node.name}.clip"] = _export_clip(bounds, scale_source)
        if node.op == "output":
            last = network.scale_sources.get(node.all_input_nodes[0].name)
            assert last is not None
            numbers["output.scale"] = last.get_scale().cpu()
    return numbers


def _check_integers_suffice(network: IntegerNetwork) -> None:
    if network.float_operations:
        shown = [f"{name} ({what})" for name, what in list(network.float_operations.items())[:3]]
        raise OmpqError(
            f"{len(network.float_operations)} operations of this network have no integer form: "
            f"{', '.join(shown)}; evaluate its `module`, which computes them in float"
        )
    layers, requantizers = network.layers(), network.requantizers()
    if any(layer.has_float_bias for layer in layers.values()):
        raise OmpqError("`bias_bits` is 0, for biases in float; integers alone need 2 to 32")
    if not all(requantizer.dyadic for requantizer in requantizers.values()):
        raise OmpqError(
            "rescaling is by real factors, which integers alone cannot follow; convert the "
            "network with the default of `dyadic`"
        )


def _export_layer(name: str, layer: QuantizedLayer) -> dict[str, Tensor]:
    held = layer.compute_integers()
    if int(held.bound_sums(layer.source.largest).max()) >= ACCUMULATOR_LIMIT:
        raise OmpqError(f"the sums of {name} could exceed 32 bits; give it fewer bits")
    numbers = {f"{name}.weight": held.weight.to(device="cpu", dtype=torch.int16)}
    if held.bias is not None:
        numbers[f"{name}.bias"] = held.bias.to(device="cpu", dtype=torch.int32)
    return numbers


def _export_requantizer(path: str, requantizer: Requantizer) -> dict[str, Tensor]:
    numbers = {f"{path}.bounds": torch.tensor(requantizer.reach, dtype=torch.int32)}
    if isinstance(requantizer, QuantizedAdd):
        for number, scale_source in enumerate(requantizer.scale_sources):
            factor = requantizer.compute_factor(scale_source)
            numbers |= _export_factor(f"{path}.{number}", factor)
        return numbers
    if requantizer.scale_source is None:
        numbers[f"{path}.scale"] = requantizer.get_scale().cpu()
        return numbers
    if requantizer.clip is not None:
        numbers[f"{path}.clip"] = _export_clip(requantizer.clip, requantizer.scale_source)
    return numbers | _export_factor(path, requantizer.compute_factor(requantizer.scale_source))


def _export_factor(path: str, factor: Dyadic) -> dict[str, Tensor]:
    return {
        f"{path}.multiplier": factor.multiplier.to(device="cpu", dtype=torch.int32),
        f"{path}.shift": factor.shift.to(device="cpu", dtype=torch.int8),
    }


def _export_clip(bounds: tuple[float, float], scale_source: ScaleSource) -> Tensor:
    scale = scale_source.get_scale().cpu()
    low, high = bounds
    return torch.stack(
        [_quantize_bound(low, scale, -_UNBOUNDED), _quantize_bound(high, scale, _UNBOUNDED)]
    )


def _quantize_bound(bound: float, scale: Tensor, unbounded: int) -> Tensor:
    if abs(bound) == inf:
        return torch.full_like(scale, unbounded, dtype=torch.int64)
    return torch.round(bound / scale).long()


class IntegerExecution(Interpreter):
    """Runs the structure of a network on exported integers; int64 tensors between operations.

    Images become integers at the first requantizer, the last sums become logits (float64) at the
    output; between these no float is computed.

    Args:
        network: Network whose structure is run; its own numbers are not looked at.
        numbers: Integers by name, from `export_integers`.
    """

    def __init__(self, network: IntegerNetwork, numbers: Mapping[str, Tensor]) -> None:
        super().__init__(network.module)
        self.structure = network.module
        self.numbers = numbers

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Compute logits (n × classes, float64) of images (n × channels × height × width)."""
        out: Tensor = self.run(images.cpu())
        return out

    def run_node(self, n: Node) -> Any:
        """Run an operation: on integers in its integer form, on images as it is."""
        inputs = [self.env[source] for source in n.all_input_nodes if source in self.env]
        if n.op == "output":
            return inputs[0].double() * self.numbers["output.scale"]
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            if isinstance(module, QuantizedLayer):
                return self._run_layer(str(n.target), module, inputs[0])
            # Before `Requantizer`, of which it is one.
            if isinstance(module, QuantizedAdd):
                parts = self.fetch_args_kwargs_from_env(n)[0]
                return self._run_combination(str(n.target), module, parts)
            if isinstance(module, OutputRounding):
                return inputs[0]
            if isinstance(module, Requantizer):
                return self._requantize(str(n.target), inputs[0])
        first = next((value for value in inputs if isinstance(value, Tensor)), None)
        if first is not None and n.op.startswith("call_") and not first.is_floating_point():
            return self._run_operation(n, first)
        return super().run_node(n)

    def _run_layer(self, name: str, module: QuantizedLayer, x: Tensor) -> Tensor:
        weight = self.numbers[f"{name}.weight"].int()
        # int32 products and sums suffice: `export_integers` has checked that none exceeds it.
        if isinstance(module.layer, nn.Linear):
            sums = torch.matmul(x.int(), weight.t()).long()
        else:
            sums = convolve_integers(x.int(), weight, module.layer).long()
        bias = self.numbers.get(f"{name}.bias")
        if bias is None:
            return sums
        linear = isinstance(module.layer, nn.Linear)
        return sums + (bias.long() if linear else bias.long().view(-1, 1, 1))

    def _read_factor(self, path: str) -> Dyadic:
        multiplier, shift = self.numbers[f"{path}.multiplier"], self.numbers[f"{path}.shift"]
        return Dyadic(multiplier.long(), shift.long())

    def _requantize(self, path: str, x: Tensor) -> Tensor:
        low, high = self.numbers[f"{path}.bounds"].tolist()
        scale = self.numbers.get(f"{path}.scale")
        if scale is not None:
            return torch.round(x.double() / scale).clamp_(low, high).long()
        clip = self.numbers.get(f"{path}.clip")
        x = x if clip is None else torch.clamp(x, clip[0], clip[1])
        return self._read_factor(path).apply(x).clamp_(low, high)

    def _run_combination(self, path: str, module: QuantizedAdd, parts: Any) -> Tensor:
        low, high = self.numbers[f"{path}.bounds"].tolist()
        scaled = [self._read_factor(f"{path}.{k}").apply(part) for k, part in enumerate(parts)]
        return module.combine(scaled).clamp_(low, high)

    def _run_operation(self, node: Node, x: Tensor) -> Any:
        name = operation(node, self.structure)
        if name in CLIPS:
            low, high = self.numbers[f"{node.name}.clip"]
            return torch.clamp(x, low, high)
        if name in AVERAGES:
            return self._sum_windows(node, x)
        # Identities in evaluation.
        if "dropout" in name or name in ("identity", "stochastic_depth"):
            return x
        return super().run_node(node)

    def _sum_windows(self, node: Node, x: Tensor) -> Tensor:
        """Sum what an average averages; its scale source holds the divisor."""
        window = read_pooling_window(node, self.structure)
        assert window is not None
        kernel, stride, padding = window
        padded = pad(x, (padding[1], padding[1], padding[0], padding[0]))
        windows = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
        return windows.sum(dim=(4, 5)).view(len(x), *node.meta["shape"][1:])


def convolve_integers(x: Tensor, weight: Tensor, layer: nn.Conv2d) -> Tensor:
    """Convolve int32 tensors by int32 products and sums, one kernel position at a time.

    PyTorch has no convolution of integers, but a matrix product.

    Args:
        x: Input, int32, n × channels × height × width.
        weight: Weight, int32, outputs × channels per group × kernel height × kernel width.
        layer: Layer whose stride, padding, dilation and groups are used.

    Returns:
        Sums, int32, n × outputs × rows × columns.

    >>> x = torch.arange(9, dtype=torch.int32).view(1, 1, 3, 3)
    >>> convolve_integers(x, torch.ones(1, 1, 2, 2, dtype=torch.int32), nn.Conv2d(1, 1, 2))
    tensor([[[[ 8, 12],
              [20, 24]]]], dtype=torch.int32)
    """
    x = _pad_input(x, layer)
    count, _, height, width = x.shape
    outputs, per_group, kernel_height, kernel_width = weight.shape
    groups = layer.groups
    (down, across), (reach_down, reach_across) = layer.stride, layer.dilation
    rows = (height - reach_down * (kernel_height - 1) - 1) // down + 1
    columns = (width - reach_across * (kernel_width - 1) - 1) // across + 1
    by_group = weight.view(groups, outputs // groups, per_group, kernel_height, kernel_width)
    sums = x.new_zeros(count, groups, outputs // groups, rows * columns)
    for i, j in product(range(kernel_height), range(kernel_width)):
        first, last = i * reach_down, i * reach_down + down * (rows - 1) + 1
        begin, end = j * reach_across, j * reach_across + across * (columns - 1) + 1
        seen = x[:, :, first:last:down, begin:end:across]
        seen = seen.reshape(count, groups, per_group, rows * columns)
        factor = by_group[..., i, j]
        sums += factor * seen if per_group == 1 else torch.matmul(factor, seen)
    return sums.view(count, outputs, rows, columns)


def _pad_input(x: Tensor, layer: nn.Conv2d) -> Tensor:
    sides = layer._reversed_padding_repeated_twice
    if layer.padding_mode == "zeros":
        return pad(x, sides)
    # Padding by copies of values has no integer kernel; float64 copies them exactly.
    return pad(x.double(), sides, mode=layer.padding_mode).to(x.dtype)
