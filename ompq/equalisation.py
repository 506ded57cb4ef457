"""Channels between two layers made even before anything is quantized.

One scale for a whole activation is as coarse as its widest channel asks for. Where nothing but
ReLU, pooling and the like lies between a layer and those that read it, channels can be divided
there by any positive number: in the weights and bias of the first layer, which the weights of the
readers undo, as in cross-layer equalisation (arXiv:1906.04721, eq. 5 to 8). That one evens out the
ranges of weights; with a scale for every channel of a weight it is the activations that gain. The
float network computes what it did. How far to go is chosen, place by place, by the readers' error.
Weights of less than 4 bits are left as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter, Node

from ompq.errors import UNSUITED_ERRORS
from ompq.graph import NetworkGraph, run_with_taps
from ompq.graph.check import measure_difference
from ompq.graph.operations import find_tensor_users, is_norm
from ompq.quantizers import ActivationQuantizer, fake_quantize, lp_scale

Candidate = TypeVar("Candidate")
# What a channel is divided by is its range to one of these powers; 0 leaves it as it is.
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
_IMAGES, _TRIED = 32, 2
# Channels of less than this share of the widest one's range count as that wide: what a few images
# hardly move may move on others.
_LEAST_RANGE = 0.01
# Readers of fewer bits lose by harder weights what they gain: measured on ResNet-20.
_LEAST_BITS = 4
# Learning leaves about this share of the error of weights that are rounded to nearest.
_LEFT_BY_LEARNING = 1 / 3
# A smaller gain than this share is not worth changing a network for.
_LEAST_GAIN = 0.05
# By this share may rounding in float32 move the outputs.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class _Place:
    """A value that comes of one layer, and that layers of one kind alone read.

    Attributes:
        chain: Nodes from the one that calls the layer to the one that gives the value.
        layer: That layer.
        readers: Layers that read the value, by name.
    """

    chain: tuple[Node, ...]
    layer: nn.Conv2d | nn.Linear
    readers: Mapping[str, nn.Conv2d | nn.Linear]

    @property
    def node(self) -> str:
        """Return the name of the node that gives the value."""
        return self.chain[-1].name

    @property
    def fits(self) -> bool:
        """Tell whether readers of one kind may read the layer's channels, each as often."""
        same = len({type(reader) for reader in self.readers.values()}) == 1
        return same and not self.channels % len(self.layer.weight)

    @property
    def channels(self) -> int:
        """Return how many channels the value has."""
        reader = next(iter(self.readers.values()))
        return reader.in_features if isinstance(reader, nn.Linear) else reader.in_channels

    @property
    def axis(self) -> int:
        """Return the dimension of the value that holds the channels, counted from the end."""
        return _find_axis(next(iter(self.readers.values())))

    def spread_divisor(self, divisor: Tensor) -> Tensor:
        """Return the divisor of the value's channels; flattening makes several of one."""
        return divisor.repeat_interleave(self.channels // len(divisor))

    @torch.no_grad()
    def divide(self, divisor: Tensor) -> None:
        """Divide the layer's channels by positive numbers, and let the readers undo it."""
        for value in (self.layer.weight, self.layer.bias):
            if value is not None:
                value.div_(divisor.view((-1,) + (1,) * (value.dim() - 1)))
        for reader in self.readers.values():
            reader.weight.mul_(_on_weight(self.spread_divisor(divisor), reader))


@torch.no_grad()
def equalise_layers(
    graph: NetworkGraph,
    bits: Mapping[str, int],
    act_bits: Mapping[str, int],
    images: Tensor,
    say: Callable[[str], None],
) -> None:
    """Make the channels between layers even where that helps the layers behind, in place.

    Args:
        graph: Float network on the device to compute on; channels before a norm, a batch norm that
            is not folded among them, stay.
        bits: Layer → width of its weight.
        act_bits: Layer → width of what it reads.
        images: Calibration images, n × channels × height × width, normalised; a few are used.
        say: Function that is told what was changed.
    """
    few = images[:_IMAGES].to(next(graph.module.parameters()).device)
    found = _find_places(graph, few[:_TRIED])
    wide = {name for name, width in bits.items() if width >= _LEAST_BITS}
    places = {place.node: place for place in found if place.readers.keys() <= wide}
    divisors: dict[str, Tensor] = {}
    gains: list[float] = []

    def read(node: str, value: Tensor) -> None:
        place = places[node]
        widths = {name: (bits[name], act_bits[name]) for name in place.readers}
        divisor, gain = _choose(value, place, widths)
        if divisor is not None:
            divisors[node] = divisor
            gains.append(gain)

    if places:
        run_with_taps(graph, few, places, read, images_first=False)
    if divisors and _divide_all(graph, places, divisors, few[:_TRIED]):
        mean = 100 * sum(gains) / len(gains)
        told = f"channels behind {len(gains)} of {len(places)} layers made even"
        say(f"{told}: {mean:.0f} % less error behind them")


def _divide_all(
    graph: NetworkGraph,
    places: Mapping[str, _Place],
    divisors: Mapping[str, Tensor],
    images: Tensor,
) -> bool:
    """Divide channels, and tell whether the network computes what it did; else undo it."""
    before = graph.module(images.clone())
    for node, divisor in divisors.items():
        places[node].divide(divisor)
    if measure_difference(graph.module(images.clone()), before) < _TOLERANCE:
        return True
    for node, divisor in divisors.items():
        places[node].divide(1 / divisor)
    return False


def choose_least(
    candidates: Sequence[Candidate], errors: Sequence[float], least_gain: float
) -> tuple[Candidate | None, float]:
    """Choose the candidate of the least error, where it is worth changing a network for.

    Args:
        candidates: What could be done; the first one changes nothing.
        errors: Error of each.
        least_gain: Share of the first one's error that another has to take away.

    Returns:
        The candidate, None to change nothing, and the share of the error that it takes away.

    >>> choose_least(["nothing", "a", "b"], [4.0, 1.0, 2.0], 0.1)
    ('a', 0.75)
    """
    best = min(range(len(errors)), key=errors.__getitem__)
    gain = 1 - errors[best] / errors[0] if errors[0] > 0 else 0.0
    return (candidates[best], gain) if gain > least_gain else (None, 0.0)


def _find_places(graph: NetworkGraph, images: Tensor) -> list[_Place]:
    """Find the layers whose channels can be divided, and where their readers undo it."""
    alone = find_unshared(graph)

    def is_layer(node: Node) -> bool:
        return node.op == "call_module" and str(node.target) in alone

    def ends(node: Node) -> bool:
        # In training a norm divides by what its channels were multiplied by.
        return is_layer(node) or is_norm(node, graph.module)

    found = []
    for node in filter(is_layer, graph.module.graph.nodes):
        chain = [node]
        while len(users := find_tensor_users(chain[-1])) == 1 and not ends(users[0]):
            chain.append(users[0])
        readers = {str(user.target): graph.layer_module(str(user.target)) for user in users
                   if is_layer(user)}  # fmt: skip
        place = _Place(tuple(chain), graph.layer_module(str(node.target)), readers)
        if readers and len(readers) == len(users) and place.fits:
            found.append(place)
    return _Trial(graph.module, found).find_divisible(images) if found else []


def find_unshared(graph: NetworkGraph) -> set[str]:
    """Find the layers that are called once, and whose parameters nothing else reads."""
    module = graph.module
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    held = Counter(id(p) for part in module.modules() for p in part._parameters.values())
    return {
        name
        for name in graph.layers
        if calls[name] == 1
        and all(
            held[id(parameter)] == 1 and f"{name}.{key}" not in read
            for key, parameter in graph.layer_module(name).named_parameters(recurse=False)
        )
    }


class _Trial(Interpreter):
    """Tries, at all places of a network, whether channels that are divided stay so.

    Beside the network's own values, which might not reach where ReLU6 and the like bend, values of
    all magnitudes go from the layer to the end of the place: as they are drawn, and divided.
    """

    def __init__(self, module: GraphModule, places: list[_Place]) -> None:
        super().__init__(module)
        self._places = {place.chain[0]: place for place in places}
        self._previous = dict(pair for place in places for pair in _pair_up(place.chain))
        self._divisible: list[_Place] = []
        self._drawn: dict[Node, tuple[_Place, list[Tensor]]] = {}
        self._generator = torch.Generator().manual_seed(0)

    def find_divisible(self, images: Tensor) -> list[_Place]:
        """Return the places where dividing the layer's channels divides those of the value."""
        self.run(images.clone())
        return self._divisible

    def run_node(self, n: Node) -> Any:
        """Run a node, and a node of a place with the values that are tried as well."""
        previous = self._previous.get(n)
        own = None if previous is None else self.env[previous]
        if previous is not None and previous in self._drawn:
            self._try_node(n, previous)
            self.env[previous] = own
        value = super().run_node(n)
        if n in self._places:
            self._draw_values(n, value)
        if n in self._drawn:
            self._compare(n)
        return value

    def _draw_values(self, node: Node, value: Tensor) -> None:
        place = self._places[node]
        divisor = self._draw(place.layer.weight.flatten(1)[:, 0]).abs()
        drawn = self._draw(value)
        divided = drawn / _along(divisor, _find_axis(place.layer))
        self._drawn[node] = place, [drawn, divided, divisor]

    def _try_node(self, node: Node, previous: Node) -> None:
        """Run a node of a place with drawn values in the place of those before it."""
        place, (drawn, divided, divisor) = self._drawn.pop(previous)
        found = []
        for value in (drawn, divided):
            self.env[previous] = value
            try:
                found.append(super().run_node(node))
            except UNSUITED_ERRORS:  # of such values it makes nothing
                return
        if all(isinstance(value, Tensor) for value in found):
            self._drawn[node] = place, [*found, divisor]

    def _compare(self, node: Node) -> None:
        place, (plain, divided, divisor) = self._drawn[node]
        if node is not place.chain[-1]:
            return
        del self._drawn[node]
        restored = divided * _along(place.spread_divisor(divisor), place.axis)
        close = (restored - plain).abs() <= 1e-6 * plain.abs().max() + 1e-4 * plain.abs()
        if bool(close.all()):  # of NaN nothing is
            self._divisible.append(place)

    def _draw(self, like: Tensor) -> Tensor:
        """Draw numbers of both signs and of magnitudes from 0.001 to 1000, in the shape of some."""
        shape = like.shape
        magnitudes = 10 ** (torch.rand(shape, generator=self._generator) * 6 - 3)
        return (magnitudes * torch.randn(shape, generator=self._generator).sign()).to(like)


def _pair_up(chain: tuple[Node, ...]) -> Iterator[tuple[Node, Node]]:
    """Pair every node of a place but the first with the one before it."""
    return zip(chain[1:], chain[:-1], strict=True)


def _find_axis(layer: nn.Module) -> int:
    """Return the dimension of a layer's input and output that holds the channels."""
    return -1 if isinstance(layer, nn.Linear) else -3


def _along(numbers: Tensor, axis: int) -> Tensor:
    """Shape one number per channel to broadcast along a dimension, counted from the end."""
    return numbers.view((-1,) + (1,) * (-axis - 1))


def _choose(
    value: Tensor, place: _Place, widths: Mapping[str, tuple[int, int]]
) -> tuple[Tensor | None, float]:
    """Choose what to divide the channels by, by the error of the readers' outputs.

    Args:
        value: The value at the place, of a few images.
        place: The place.
        widths: Reader → width of its weight, width of what it reads.

    Returns:
        The best divisor, None to leave the channels, and the share of the error that it takes away.
    """
    if not value.isfinite().all():
        return None, 0.0
    ranges = value.movedim(place.axis, 0).flatten(1).abs().amax(1)
    ranges = ranges.view(len(place.layer.weight), -1).amax(1)
    ranges = ranges.clamp_min(float(ranges.max()) * _LEAST_RANGE + 1e-12)
    ranges = ranges / ranges.log().mean().exp()
    candidates = [ranges**power for power in _POWERS]
    exact = {name: reader(value) for name, reader in place.readers.items()}
    errors = [_measure_error(value, exact, place, widths, divisor) for divisor in candidates]
    return choose_least(candidates, errors, _LEAST_GAIN)


def _measure_error(
    value: Tensor,
    exact: Mapping[str, Tensor],
    place: _Place,
    widths: Mapping[str, tuple[int, int]],
    divisor: Tensor,
) -> float:
    """Measure the mean square error of the readers from rounded values and rounded weights."""
    divisor = place.spread_divisor(divisor)
    even, total = value / _along(divisor, place.axis), 0.0
    for name, reader in place.readers.items():
        bits, act_bits = widths[name]
        quantizer = ActivationQuantizer(act_bits).to(value.device)
        quantizer.fit(even)
        quantizer.enabled = True
        weight = reader.weight * _on_weight(divisor, reader)
        rounded = fake_quantize(weight, lp_scale(weight, bits))
        of_values = functional_call(reader, {"weight": weight}, (quantizer(even),)) - exact[name]
        of_weights = functional_call(reader, {"weight": rounded}, (even,)) - exact[name]
        total += float(of_values.square().mean())
        total += float(of_weights.square().mean()) * _LEFT_BY_LEARNING
    return total


def _on_weight(divisor: Tensor, reader: nn.Conv2d | nn.Linear) -> Tensor:
    """Shape one number per input channel so that it broadcasts to the weight that reads them."""
    if isinstance(reader, nn.Linear):
        return divisor
    groups = divisor.view(reader.groups, -1)
    each = groups.repeat_interleave(reader.out_channels // reader.groups, 0)
    return each[:, :, None, None]
