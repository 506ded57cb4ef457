"""A network run on integers that were written down before, with float32 where it must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Interpreter, Node
from torch.nn.functional import pad

from ompq.errors import OmpqError
from ompq.evaluation import find_device
from ompq.graph.arguments import read_clip_bounds
from ompq.graph.operations import carries_values
from ompq.integer.dyadic import ACCUMULATOR_LIMIT, Dyadic
from ompq.integer.forms import (
    Form,
    find_form,
    find_tensors,
    map_tensors,
    run_on_copies,
    sum_integers,
)
from ompq.integer.inserted import is_inserted
from ompq.integer.layers import QuantizedLayer
from ompq.integer.network import IntegerNetwork, summarise_operations
from ompq.integer.operations import IntegerOperation, QuantizedConstant
from ompq.integer.requantization import (
    Dequantizer,
    QuantizedAdd,
    Requantizer,
    ScaleSource,
)

# Beyond every sum of integers, and far enough from the limits of int64.
_UNBOUNDED = 2**62


def export_integers(network: IntegerNetwork, mixed: bool = False) -> dict[str, Tensor]:
    """Return every number that integer hardware needs to run a network, by name.

    `LAYER.weight` (int16, zero point subtracted) and `LAYER.bias` (int32); `PATH.multiplier`
    (int32) and `PATH.shift` (int8) of a requantizer, with `.0`, `.1`, … after the path for the
    parts of a sum or concatenation, and `PATH.bounds` (int32, 2); `NODE.clip` or `PATH.clip`
    (int64, 2 × …) of a clipping activation. Floats occur at the ends only: `PATH.scale` where
    images become integers, and `output.scale`, which turns the last sums into logits; and in a
    mixed network `PATH.scale` where values in float become integers, or integers such values.

    Args:
        network: Network of integers, in evaluation mode.
        mixed: Whether a network that computes in float in part is exported as well.

    Raises:
        OmpqError: The network does not run on integers alone (names an operation that does not),
            or a layer's sums could exceed 32 bits.
    """
    _check_integers_suffice(network, mixed)
    numbers: dict[str, Tensor] = {}
    for node in network.module.graph.nodes:
        numbers |= export_node(network, node)
    return numbers


def _check_integers_suffice(network: IntegerNetwork, mixed: bool) -> None:
    if any(layer.has_float_bias for layer in network.layers().values()):
        raise OmpqError("`bias_bits` is 0, for biases in float; integers alone need 2 to 32")
    if not network.settings_allow_integers:
        raise OmpqError(
            "rescaling is by real factors, which integers alone cannot follow; convert the "
            "network with the default of `dyadic`"
        )
    if network.float_operations and not mixed:
        found = summarise_operations(network.module, network.float_operations)
        raise OmpqError(
            f"operations of this network have no integer form: {found}; evaluate its `module`, "
            "which computes them in float"
        )


def export_node(network: IntegerNetwork, node: Node) -> dict[str, Tensor]:
    """Return the numbers that integer hardware needs to run a single node, as `export_integers`.

    Args:
        network: Network of integers, in evaluation mode.
        node: Node of its module.

    Raises:
        OmpqError: A layer's sums could exceed 32 bits.
    """
    scale_source = network.scale_sources.get(node.name)
    if node.op == "call_module":
        path = str(node.target)
        module = network.module.get_submodule(path)
        if isinstance(module, QuantizedLayer):
            return {} if module.gives_floats else _export_layer(path, module)
        if isinstance(module, Requantizer):
            return _export_requantizer(path, module)
        if isinstance(module, IntegerOperation):
            held = module.compute_numbers()
            return {f"{path}.{name}": value.cpu() for name, value in held.items()}
        if isinstance(module, QuantizedConstant):
            return {f"{path}.scale": module.get_scale().cpu()}
        if isinstance(module, Dequantizer) and module.scale_source is not None:
            return {f"{path}.scale": module.scale_source.get_scale().cpu()}
    if node.op == "output":
        last = network.scale_sources.get(node.all_input_nodes[0].name)
        return {} if last is None else {"output.scale": last.get_scale().cpu()}
    if scale_source is not None and find_form(node, network.module) is Form.CLIP:
        bounds = read_clip_bounds(node, network.module)
        assert bounds is not None
        return {f"{node.name}.clip": _export_clip(bounds, scale_source)}
    return {}


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

    Images become integers at the first requantizer, the last sums become logits at the output
    (float64). Between these no float is computed, but for what has no form on integers: float32,
    made of integers by `Dequantizer`, which becomes integers again at the next requantizer. Floats
    are on the network's device, integers on the CPU.

    Args:
        network: Network whose structure is run; its own numbers are not looked at, those of what
            computes in float aside.
        numbers: Integers by name, from `export_integers`.

    Attributes:
        floats: Names of the nodes whose values depend on the images and were in float; the images
            themselves, normalised or not, do not count.
    """

    def __init__(self, network: IntegerNetwork, numbers: Mapping[str, Tensor]) -> None:
        super().__init__(network.module)
        self.extra_traceback = False
        self.network, self.structure = network, network.module
        self.numbers: Mapping[str, Tensor] = numbers
        self.floats: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Return the device of what computes in float."""
        return find_device(self.structure)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Compute logits (n × classes, on the CPU) of images (n × channels × height × width)."""
        out: Tensor = self.run(images.to(self.device))
        return out

    def run_node(self, n: Node) -> Any:
        """Run an operation, on integers in its integer form, and note values in float."""
        value = self._run(n)
        own = n.op.startswith("call_") and not is_inserted(n, self.structure)
        depends = carries_values(n) and n.name not in self.network.image_maps
        if own and depends and any(x.is_floating_point() for x in find_tensors(value)):
            self.floats.add(n.name)
        return value

    def _run(self, n: Node) -> Any:
        inputs = [self.env[source] for source in n.all_input_nodes if source in self.env]
        if n.op == "output":
            scale = self.numbers.get("output.scale")
            return inputs[0].cpu() if scale is None else inputs[0].double() * scale
        if n.op == "call_module":
            module = self.fetch_attr(str(n.target))
            if is_inserted(n, self.structure) or isinstance(module, QuantizedLayer):
                return self._run_module(n, module)
        if n.op.startswith("call_") and self.network.scale_sources.get(n.name) is not None:
            return self._run_operation(n)
        return super().run_node(n)

    def _run_module(self, n: Node, module: nn.Module) -> Any:
        parts = self.fetch_args_kwargs_from_env(n)[0]
        path, x = str(n.target), parts[0]
        if isinstance(module, QuantizedLayer):
            if module.gives_floats:
                return module(x.double().to(self.device) * module.source.get_scale())
            return self._run_layer(path, module, x)
        if isinstance(module, IntegerOperation):
            prefix = f"{path}."
            own = [name for name in self.numbers if name.startswith(prefix)]
            held = {name.removeprefix(prefix): self.numbers[name] for name in own}
            return module.compute(held, *parts)
        if isinstance(module, QuantizedConstant):
            return module.quantize(x, self.numbers[f"{path}.scale"]).cpu()
        # Before `Requantizer`, of which it is one.
        if isinstance(module, QuantizedAdd):
            return self._run_combination(path, module, parts)
        if isinstance(module, Requantizer):
            return self._requantize(path, x)
        if isinstance(module, Dequantizer):
            return map_tensors(x, partial(self._dequantize, path))
        return x

    def _dequantize(self, path: str, x: Tensor) -> Tensor:
        values = (x.double() * self.numbers[f"{path}.scale"]).float()
        return values.contiguous().to(self.device)

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
            return torch.round(x.cpu().double() / scale).clamp_(low, high).long()
        clip = self.numbers.get(f"{path}.clip")
        x = x if clip is None else torch.clamp(x, clip[0], clip[1])
        return self._read_factor(path).apply(x).clamp_(low, high)

    def _run_combination(self, path: str, module: QuantizedAdd, parts: Any) -> Tensor:
        low, high = self.numbers[f"{path}.bounds"].tolist()
        scaled = [self._read_factor(f"{path}.{k}").apply(part) for k, part in enumerate(parts)]
        return module.combine(scaled).clamp_(low, high)

    def _run_operation(self, n: Node) -> Any:
        """Run an operation that has a form on integers."""
        form = find_form(n, self.structure)
        sources = [s for s in n.all_input_nodes if self.network.scale_sources.get(s.name)]
        x = self.env[sources[0]]
        if form is Form.CLIP:
            low, high = self.numbers[f"{n.name}.clip"]
            return torch.clamp(x, low, high)
        if form in (Form.SUM, Form.AVERAGE):
            return sum_integers(n, self.structure, x)
        if form in (Form.KEEP, Form.SCALE):
            return map_tensors(x, Tensor.contiguous)
        kept = {source: self.env[source] for source in n.all_input_nodes}

        def run(change: Callable[[Tensor], Tensor]) -> Any:
            # Indices may be on the network's device; integers are on the CPU.
            self.env |= {source: map_tensors(value, Tensor.cpu) for source, value in kept.items()}
            self.env[sources[0]] = map_tensors(x, change)
            return super(IntegerExecution, self).run_node(n)

        try:
            return run_on_copies(run)
        finally:
            self.env |= kept


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
