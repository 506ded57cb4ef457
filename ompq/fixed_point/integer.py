"""A network run with integer arithmetic alone, from integers that were written down before."""

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
from ompq.fixed_point.convert import IntegerNetwork
from ompq.fixed_point.dyadic import ACCUMULATOR_LIMIT, Dyadic
from ompq.fixed_point.modules import Exact, Joint, Origin, QuantizedLayer, Requantizer
from ompq.fixed_point.nodes import AVERAGES, CLIPS, clip_bounds, pooling_window
from ompq.graph.operations import operation

_WIDEST = 2**62


def export_integers(network: IntegerNetwork) -> dict[str, Tensor]:
    """Every number that integer hardware needs to run a network, by name.

    `LAYER.weight` (int16, zero point subtracted) and `LAYER.bias` (int32); `PATH.multiplier`
    (int32) and `PATH.shift` (int8) of a requantization, with `.0`, `.1`, … after the path for the
    parts of a sum or concatenation, and `PATH.bounds` (int32, 2); `NODE.clip` or `PATH.clip`
    (int64, 2 × …) of a clipping activation. Floats occur at the ends only: `PATH.scale` where
    images become integers, and `output.scale`, which turns the last sums into logits.

    Raises:
        OmpqError: the network does not run on integers alone (says which operation does not), or
            a layer's sums could exceed 32 bits.
    """
    _check_integers_suffice(network)
    numbers: dict[str, Tensor] = {}
    for name, layer in network.layers().items():
        numbers |= _layer_numbers(name, layer)
    for path, requantizer in network.requantizers().items():
        numbers |= _requantizer_numbers(path, requantizer)
    for node in network.module.graph.nodes:
        origin = network.origins.get(node.name)
        if operation(node, network.module) in CLIPS and origin is not None:
            bounds = clip_bounds(node, network.module)
            numbers[f"{node.name}.clip"] = _clip_numbers(bounds, origin)
        if node.op == "output":
            last = network.origins.get(node.all_input_nodes[0].name)
            assert last is not None
            numbers["output.scale"] = last.step().cpu()
    return numbers


def _check_integers_suffice(network: IntegerNetwork) -> None:
    if network.float_operations:
        shown = [f"{name} ({what})" for name, what in list(network.float_operations.items())[:3]]
        raise OmpqError(
            f"{len(network.float_operations)} operations of this network have no integer form: "
            f"{', '.join(shown)}; leave --integer_only out"
        )
    layers, requantizers = network.layers(), network.requantizers()
    if any(layer.has_float_bias for layer in layers.values()):
        raise OmpqError("the biases are in float; integers alone need --bias_bit 32")
    if not all(requantizer.dyadic for requantizer in requantizers.values()):
        raise OmpqError(
            "--fixed_point_quantization rescales by real factors; integers alone need it left out"
        )


def _layer_numbers(name: str, layer: QuantizedLayer) -> dict[str, Tensor]:
    held = layer.integers()
    if int(held.largest_sums(layer.source.largest).max()) >= ACCUMULATOR_LIMIT:
        raise OmpqError(f"the sums of {name} could exceed 32 bits; give it fewer bits")
    numbers = {f"{name}.weight": held.weight.to(device="cpu", dtype=torch.int16)}
    if held.bias is not None:
        numbers[f"{name}.bias"] = held.bias.to(device="cpu", dtype=torch.int32)
    return numbers


def _requantizer_numbers(path: str, requantizer: Requantizer) -> dict[str, Tensor]:
    numbers = {f"{path}.bounds": torch.tensor(requantizer.reach, dtype=torch.int32)}
    if isinstance(requantizer, Joint):
        for number, origin in enumerate(requantizer.origins):
            numbers |= _dyadic_numbers(f"{path}.{number}", requantizer.factor(origin))
        return numbers
    if requantizer.origin is None:
        numbers[f"{path}.scale"] = requantizer.step().cpu()
        return numbers
    if requantizer.clip is not None:
        numbers[f"{path}.clip"] = _clip_numbers(requantizer.clip, requantizer.origin)
    return numbers | _dyadic_numbers(path, requantizer.factor(requantizer.origin))


def _dyadic_numbers(path: str, factor: Dyadic) -> dict[str, Tensor]:
    return {
        f"{path}.multiplier": factor.multiplier.to(device="cpu", dtype=torch.int32),
        f"{path}.shift": factor.shift.to(device="cpu", dtype=torch.int8),
    }


def _clip_numbers(bounds: tuple[float, float], origin: Origin) -> Tensor:
    low, high = bounds
    return torch.stack([_clip(low, -_WIDEST, origin), _clip(high, _WIDEST, origin)])


def _clip(bound: float, unbounded: int, origin: Origin) -> Tensor:
    step = origin.step().cpu()
    if abs(bound) == inf:
        return torch.full_like(step, unbounded, dtype=torch.int64)
    return torch.round(bound / step).long()


class IntegerExecution(Interpreter):
    """Runs the structure of a network on exported integers; int64 tensors between operations.

    Images become integers at the first requantization, the last sums become logits (float64) at
    the output; between these no float is computed.

    Args:
        network: whose structure is run; its own numbers are not looked at.
        numbers: of `export_integers`.
    """

    def __init__(self, network: IntegerNetwork, numbers: Mapping[str, Tensor]) -> None:
        super().__init__(network.module)
        self.structure = network.module
        self.numbers = numbers

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Images (n × channels × height × width, float32) → logits (n × classes, float64)."""
        out: Tensor = self.run(images.cpu())
        return out

    def run_node(self, n: Node) -> Any:
        """An operation on integers has its integer form; one on images stays as it is."""
        inputs = [self.env[source] for source in n.all_input_nodes if source in self.env]
        if n.op == "output":
            return inputs[0].double() * self.numbers["output.scale"]
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            if isinstance(module, QuantizedLayer):
                return self._layer(str(n.target), module, inputs[0])
            if isinstance(module, Joint):
                return self._joint(str(n.target), module, self.fetch_args_kwargs_from_env(n)[0])
            if isinstance(module, Exact):
                return inputs[0]
            if isinstance(module, Requantizer):
                return self._requantize(str(n.target), inputs[0])
        first = next((value for value in inputs if isinstance(value, Tensor)), None)
        if first is not None and n.op.startswith("call_") and not first.is_floating_point():
            return self._operation(n, first)
        return super().run_node(n)

    def _layer(self, name: str, module: QuantizedLayer, x: Tensor) -> Tensor:
        weight = self.numbers[f"{name}.weight"].int()
        if isinstance(module.layer, nn.Linear):
            sums = torch.matmul(x.int(), weight.t()).long()
        else:
            sums = integer_convolution(x.int(), weight, module.layer).long()
        bias = self.numbers.get(f"{name}.bias")
        if bias is None:
            return sums
        linear = isinstance(module.layer, nn.Linear)
        return sums + (bias.long() if linear else bias.long().view(-1, 1, 1))

    def _dyadic(self, path: str) -> Dyadic:
        multiplier, shift = self.numbers[f"{path}.multiplier"], self.numbers[f"{path}.shift"]
        return Dyadic(multiplier.long(), shift.long())

    def _requantize(self, path: str, x: Tensor) -> Tensor:
        low, high = self.numbers[f"{path}.bounds"].tolist()
        scale = self.numbers.get(f"{path}.scale")
        if scale is not None:
            return torch.round(x.double() / scale).clamp_(low, high).long()
        clip = self.numbers.get(f"{path}.clip")
        x = x if clip is None else torch.clamp(x, clip[0], clip[1])
        return self._dyadic(path).apply(x).clamp_(low, high)

    def _joint(self, path: str, module: Joint, parts: Any) -> Tensor:
        low, high = self.numbers[f"{path}.bounds"].tolist()
        scaled = [self._dyadic(f"{path}.{k}").apply(part) for k, part in enumerate(parts)]
        return module.join(scaled).clamp_(low, high)

    def _operation(self, node: Node, x: Tensor) -> Any:
        name = operation(node, self.structure)
        if name in CLIPS:
            low, high = self.numbers[f"{node.name}.clip"]
            return torch.clamp(x, low, high)
        if name in AVERAGES:
            return self._sums(node, x)
        if "dropout" in name or name in ("identity", "stochastic_depth"):
            return x
        return super().run_node(node)

    def _sums(self, node: Node, x: Tensor) -> Tensor:
        """The sum over what the average averages (its divisor is in the grid)."""
        window = pooling_window(node, self.structure)
        assert window is not None
        kernel, stride, padding = window
        padded = pad(x, (padding[1], padding[1], padding[0], padding[0]))
        windows = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
        return windows.sum(dim=(4, 5)).view(len(x), *node.meta["shape"][1:])


def integer_convolution(x: Tensor, weight: Tensor, layer: nn.Conv2d) -> Tensor:
    """Convolution of int32 tensors by int32 products and sums, one kernel position at a time.

    Args:
        x: n × channels × height × width.
        weight: outputs × channels per group × kernel height × kernel width.
        layer: its stride, padding, dilation and groups.
    """
    x = _padded(x, layer)
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


def _padded(x: Tensor, layer: nn.Conv2d) -> Tensor:
    sides = layer._reversed_padding_repeated_twice
    if layer.padding_mode == "zeros":
        return pad(x, sides)
    # Padding by copies of values has no integer kernel; float64 copies them exactly.
    return pad(x.double(), sides, mode=layer.padding_mode).to(x.dtype)
