"""Norms whose channels differ much in range, made even before anything is quantized.

One scale for a whole activation is as coarse as its widest channel asks for. What a norm multiplies
by and adds is free to move: channels are divided by their ranges, and shifted to their middles, in
the norm, and the weights and biases of the layers that read them undo it (RepQ-ViT,
arXiv:2212.08254, eq. 5 to 8). The float network computes what it did. The weights get harder to
quantize by it; how far to go is chosen, norm by norm, by the error of the layers' outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from ompq.equalisation import choose_least, find_unshared
from ompq.errors import UNSUITED_ERRORS
from ompq.graph import NetworkGraph, run_with_taps
from ompq.graph.operations import (
    IDENTITIES,
    find_tensor_users,
    operation,
    tensor_shape,
)
from ompq.quantizers import ActivationQuantizer, fake_quantize, lp_scale

# What a channel is divided by is its range to one of these powers; 0 leaves it as it is.
_POWERS = (0.0, 0.5, 1.0)
_IMAGES, _ROWS = 64, 4096
# Channels of less than this share of the widest one's range count as that wide: what a few images
# hardly move may move on others.
_LEAST_RANGE = 0.01
# A smaller gain than this share is not worth changing a network for.
_LEAST_GAIN = 0.02


@dataclass(frozen=True)
class _Pair:
    """A norm over the last dimension, and the linear layers that alone read it.

    Attributes:
        node: Name of the node that calls the norm.
        norm: The norm; it multiplies channels by its weight, and adds its bias if it has one.
        layers: Layers, by name.
    """

    node: str
    norm: nn.Module
    layers: Mapping[str, nn.Linear]

    @property
    def can_shift(self) -> bool:
        """Tell whether norm and layers have the biases that a shift moves through."""
        parts = (self.norm, *self.layers.values())
        return all(getattr(part, "bias", None) is not None for part in parts)


@dataclass(frozen=True)
class _Change:
    """What channels are divided by, after something is subtracted; one number per channel."""

    divisor: Tensor
    shift: Tensor

    @torch.no_grad()
    def apply(self, norm: nn.Module) -> None:
        """Divide and shift the channels that a norm gives, in place."""
        values = dict(norm.named_parameters())
        if "bias" in values:
            values["bias"].sub_(self.shift).div_(self.divisor)
        values["weight"].div_(self.divisor)


@torch.no_grad()
def equalise_norms(
    folded: NetworkGraph,
    bits: Mapping[str, int],
    act_bits: Mapping[str, int],
    images: Tensor,
    say: Callable[[str], None],
) -> None:
    """Make the channels of norms even where that helps the layers behind them, in place.

    Args:
        folded: Float network, batch norm folded, on the device to compute on.
        bits: Layer → width of its weight.
        act_bits: Layer → width of what it reads.
        images: Calibration images, n × channels × height × width, normalised; a few are used.
        say: Function that is told what was changed.
    """
    pairs = {pair.node: pair for pair in _find_pairs(folded)}
    device = next(folded.module.parameters()).device
    changes: dict[str, _Change] = {}
    gains: list[float] = []

    def read(node: str, value: Tensor) -> None:
        pair = pairs[node]
        rows = value.flatten(0, -2)
        rows = rows[torch.linspace(0, len(rows) - 1, min(len(rows), _ROWS)).long()]
        layers = [(bits[name], act_bits[name], layer) for name, layer in pair.layers.items()]
        change, gain = _choose(rows, layers, pair.can_shift)
        if change is not None:
            changes[node] = change
            gains.append(gain)

    if pairs:
        run_with_taps(folded, images[:_IMAGES].to(device), pairs, read, images_first=False)
    for node, change in changes.items():
        _apply(pairs[node], change)
    if gains:
        mean = 100 * sum(gains) / len(gains)
        say(f"{len(gains)} of {len(pairs)} norms made even: {mean:.0f} % less error behind them")


def _find_pairs(folded: NetworkGraph) -> Iterator[_Pair]:
    """Find the norms that linear layers alone read, and that share nothing with others."""
    module = folded.module
    unshared = find_unshared(folded)
    parameters = [id(p) for part in module.modules() for p in part.parameters(recurse=False)]
    calls = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for node in module.graph.nodes:
        if node.op != "call_module" or calls.count(str(node.target)) > 1:
            continue
        norm, shape = module.get_submodule(str(node.target)), tensor_shape(node)
        own = dict(norm.named_parameters())
        if "weight" not in own or not own.keys() <= {"weight", "bias"} or shape is None:
            continue
        shared = any(
            parameters.count(id(p)) > 1 or f"{node.target}.{key}" in read for key, p in own.items()
        )
        if shared or str(node.target) in folded.layers or not _follows(norm, shape):
            continue
        readers = _find_readers(node, module)
        # Methods and the output have targets too, which may be called as a layer is.
        names = [str(reader.target) for reader in readers if reader.op == "call_module"]
        layers = {name: module.get_submodule(name) for name in names if name in folded.layers}
        if not names or len(layers) < len(readers):
            continue
        linear = {name: part for name, part in layers.items() if isinstance(part, nn.Linear)}
        if layers.keys() <= unshared and len(linear) == len(layers):
            yield _Pair(node.name, norm, linear)


def _follows(norm: nn.Module, shape: tuple[int, ...]) -> bool:
    """Tell, by trying, whether a module multiplies channels by its weight and adds its bias."""
    parameters = dict(norm.named_parameters())
    channels = (shape[-1],)
    if any(parameter.shape != channels for parameter in parameters.values()):
        return False
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.rand(channels, generator=generator) + 0.5 for _ in range(2)]
    divisor, shift = (each.to(parameters["weight"].device) for each in drawn)
    change = _Change(divisor, shift if "bias" in parameters else torch.zeros_like(shift))
    x = torch.randn(shape, generator=generator).to(divisor.device)
    changed = copy.deepcopy(norm)
    change.apply(changed)
    with torch.no_grad():
        try:
            before, after = norm(x), changed(x)
        except UNSUITED_ERRORS:
            return False
    same = isinstance(before, Tensor) and before.shape == x.shape
    return same and torch.allclose(after, (before - change.shift) / divisor, 1e-4, 1e-5)


def _find_readers(node: Node, module: GraphModule) -> list[Node]:
    """Find the nodes that compute with a value; dropout and the like hand it on."""
    found = []
    for user in find_tensor_users(node):
        if user.op.startswith("call_") and operation(user, module) in IDENTITIES:
            found += _find_readers(user, module)
        else:
            found.append(user)
    return found


def _choose(
    rows: Tensor, layers: list[tuple[int, int, nn.Linear]], can_shift: bool
) -> tuple[_Change | None, float]:
    """Choose what to do with the channels, by the error of the layers' outputs.

    Args:
        rows: Values of the norm, rows × channels.
        layers: Width of the weight, width of what is read, and layer.
        can_shift: Whether channels may be shifted too.

    Returns:
        The best change, None to leave everything, and the share of the error that it takes away.
    """
    low, high = rows.amin(0), rows.amax(0)
    spread = high - low
    spread = spread.clamp_min(float(spread.max()) * _LEAST_RANGE + 1e-12)
    spread = spread / spread.log().mean().exp()
    middle = (high + low) / 2
    nothing = torch.zeros_like(middle)
    candidates = [
        _Change(spread**power, shift)
        for power in _POWERS
        for shift in ((nothing, middle) if can_shift else (nothing,))
    ]
    errors = [_measure_error(rows, layers, change) for change in candidates]
    return choose_least(candidates, errors, _LEAST_GAIN)


def _measure_error(
    rows: Tensor, layers: list[tuple[int, int, nn.Linear]], change: _Change
) -> float:
    """Measure the mean square error of layers whose weight and activation are rounded."""
    total = 0.0
    even = (rows - change.shift) / change.divisor
    for bits, act_bits, layer in layers:
        quantizer = ActivationQuantizer(act_bits).to(rows.device)
        quantizer.fit(even)
        quantizer.enabled = True
        weight = layer.weight * change.divisor
        rounded = fake_quantize(weight, lp_scale(weight, bits))
        error = quantizer(even) @ rounded.t() - even @ weight.t()
        total += float(error.square().mean())
    return total


def _apply(pair: _Pair, change: _Change) -> None:
    """Divide and shift channels in the norm, and undo it in the layers."""
    for layer in pair.layers.values():
        if pair.can_shift:
            layer.bias.add_(layer.weight @ change.shift)
        layer.weight.mul_(change.divisor)
    change.apply(pair.norm)
