"""The layers of a quantized network beside those of the float one, on the same images."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ompq.debug.noise import Noise, count_dead_channels, measure_clipped_share
from ompq.errors import OmpqError
from ompq.evaluation import find_device
from ompq.graph import NetworkGraph, fold_batch_norm, trace_for
from ompq.integer import IntegerNetwork
from ompq.quantized import QuantizedNetwork
from ompq.quantizers import QuantParams, dequantize, lp_scale, quantize
from ompq.runtime import progress

_BATCH = 4
# Decibels by which a remedy must win to be worth its name: one bit is worth six.
_WORTH_SAYING = 1.0
_MUCH = 10.0
_CLIPPED = 0.01
_GOOD = 30.0


@dataclass(frozen=True)
class LayerComparison:
    """What quantization does to one layer; ratios are of signal to noise, in decibels.

    A ratio is infinite where nothing differs, and None where nothing was seen: a layer that no
    image reaches as a layer, such as those whose weight attention reads by itself.

    Attributes:
        name: Name of the layer.
        bits: Width of its weight.
        act_bits: Width of what it reads; None where that is in float.
        weight: Ratio of its weight.
        given: Ratio of what it reads in the quantized network: the noise of all before it.
        own: Ratio of what it gives for exact inputs, which it quantizes: its own noise.
        own_weight: The same with its inputs in float.
        own_input: The same with its weight in float.
        output: Ratio of what it gives in the quantized network.
        clipped: Share of the exact inputs beyond the range of what it reads.
        dead_channels: Output channels whose integers are all 0, though their weights are not.
        hint: What would help, in words; empty where little is lost.
    """

    name: str
    bits: int
    act_bits: int | None
    weight: float | None
    given: float | None
    own: float | None
    own_weight: float | None
    own_input: float | None
    output: float | None
    clipped: float
    dead_channels: int
    hint: str = ""


@dataclass(frozen=True)
class _QuantizedLayer:
    """A layer of the quantized network: its module, its weight, and what quantizes its inputs."""

    module: nn.Module
    integers: Tensor
    params: QuantParams
    bias: Tensor | None
    source: QuantParams | None

    @property
    def weight(self) -> Tensor:
        return dequantize(self.integers, self.params)

    def quantize_input(self, x: Tensor) -> Tensor:
        return x if self.source is None else dequantize(quantize(x, self.source), self.source)


@dataclass
class _Measured:
    """Noise of one layer, added up over batches."""

    given: Noise = field(default_factory=Noise)
    own: Noise = field(default_factory=Noise)
    own_weight: Noise = field(default_factory=Noise)
    own_input: Noise = field(default_factory=Noise)
    output: Noise = field(default_factory=Noise)
    clipped: float = 0.0
    images: int = 0


@torch.no_grad()
def compare_layers(
    network: nn.Module | NetworkGraph,
    quantized: QuantizedNetwork | IntegerNetwork,
    images: Tensor,
) -> list[LayerComparison]:
    """Compare every layer of a quantized network with the float one, on some images.

    Args:
        network: Float network, a module or its traced graph.
        quantized: Quantized network that was made of it, on the same device.
        images: Images, n × channels × height × width, normalised.

    Returns:
        One entry per layer of the quantized network, in execution order.

    Raises:
        OmpqError: The quantized network is of another one.
    """
    folded = fold_batch_norm(trace_for(network, images, say=_keep_silent))
    layers = _collect_layers(quantized)
    unknown = [name for name in layers if name not in folded.layers]
    if unknown or not layers:
        missing = unknown[0] if unknown else "any layer"
        raise OmpqError(f"the quantized network is of another one: this one lacks {missing}")
    quantized.module.eval()
    device = find_device(quantized.module)
    measured: dict[str, _Measured] = defaultdict(_Measured)
    batches = images.split(_BATCH)
    for batch in progress(batches, "images", len(batches)):
        exact = _record(folded, {n: folded.layer_module(n) for n in layers}, batch.to(device))
        found = _record(quantized, {n: of.module for n, of in layers.items()}, batch.to(device))
        for name, layer in layers.items():
            module = folded.layer_module(name)
            for (x, y), (given, output) in zip(exact[name], found[name], strict=True):
                _measure(measured[name], module, layer, (x, y), (given, output))
    return [
        _conclude(name, folded.layer_module(name), layer, measured[name])
        for name, layer in layers.items()
    ]


def _keep_silent(_line: str) -> None:
    """Say nothing: what the check of the network found was said when it was quantized."""


def _collect_layers(quantized: QuantizedNetwork | IntegerNetwork) -> dict[str, _QuantizedLayer]:
    if isinstance(quantized, QuantizedNetwork):
        return {name: _collect_simulated(quantized, name) for name in quantized.weights}
    found = {}
    for name, layer in quantized.layers().items():
        integers, params = layer.quantize_weight()
        source = None
        if layer.has_source:
            held = layer.source.fake_quantizer
            zero_point = torch.tensor(int(held.zero_point), dtype=torch.int32)
            source = QuantParams(held.get_scale().float(), zero_point, held.low, held.high)
        found[name] = _QuantizedLayer(layer, integers, params, layer.fold()[1], source)
    return found


def _collect_simulated(quantized: QuantizedNetwork, name: str) -> _QuantizedLayer:
    weight, module = quantized.weights[name], quantized.graph.layer_module(name)
    quantizer = quantized.find_source(name)
    source = quantizer.params if quantizer is not None and quantizer.enabled else None
    return _QuantizedLayer(module, weight.integers.int(), weight.params, module.bias, source)


def _record(
    network: NetworkGraph | QuantizedNetwork | IntegerNetwork,
    modules: dict[str, nn.Module],
    images: Tensor,
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Run a network and record what modules read and give, call by call."""
    recorded: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in modules}
    with ExitStack() as held:
        for name, module in modules.items():
            held.enter_context(_recording(module, recorded[name]))
        network.module(images)
    return recorded


@contextmanager
def _recording(module: nn.Module, into: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    def record(_module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        # Copies: what follows may change them in place.
        into.append((given[0].clone(), output.clone()))

    handle = module.register_forward_hook(record)
    try:
        yield
    finally:
        handle.remove()


def _measure(
    into: _Measured,
    module: nn.Module,
    layer: _QuantizedLayer,
    exact: tuple[Tensor, Tensor],
    found: tuple[Tensor, Tensor],
) -> None:
    """Add what one call of a layer shows."""
    (x, y), (given, output) = exact, found
    into.given.add(x, given)
    into.output.add(y, output)
    rounded, weight = layer.quantize_input(x), layer.weight.to(x.device)
    quantized = {"weight": weight} | ({} if layer.bias is None else {"bias": layer.bias})
    into.own.add(y, functional_call(module, quantized, (rounded,)))
    into.own_weight.add(y, functional_call(module, quantized, (x,)))
    into.own_input.add(y, module(rounded))
    if layer.source is not None:
        source = layer.source
        share = measure_clipped_share(
            x, source.scale, int(source.zero_point), source.low, source.high
        )
        into.clipped += share * len(x)
    into.images += len(x)


def _conclude(
    name: str, module: nn.Module, layer: _QuantizedLayer, measured: _Measured
) -> LayerComparison:
    weight = module.weight.detach()  # type: ignore[operator]
    noise = Noise()
    noise.add(weight, layer.weight.to(weight.device))
    zero_point = layer.params.zero_point.to(layer.integers.device)
    centred = layer.integers - zero_point.view(-1, *[1] * (weight.dim() - 1))
    found = LayerComparison(
        name=name,
        bits=(layer.params.high - layer.params.low).bit_length(),
        act_bits=None
        if layer.source is None
        else (layer.source.high - layer.source.low).bit_length(),
        weight=noise.decibels,
        given=measured.given.decibels,
        own=measured.own.decibels,
        own_weight=measured.own_weight.decibels,
        own_input=measured.own_input.decibels,
        output=measured.output.decibels,
        clipped=measured.clipped / measured.images if measured.images else 0.0,
        dead_channels=count_dead_channels(weight.to(centred.device), centred),
    )
    hint = _find_hint(found, weight, layer.params)
    return LayerComparison(**{**vars(found), "hint": hint})


def _find_hint(found: LayerComparison, weight: Tensor, params: QuantParams) -> str:
    """Find what would help a layer most, by what its noise consists of."""
    if found.own is None or found.own_weight is None or found.own_input is None:
        return "its weight is read by what is no layer; only the weight was compared"
    if found.own >= _GOOD:
        if found.given is not None and found.given + _MUCH < found.own:
            return "the noise comes from the layers before"
        return ""
    if found.own_input < found.own_weight:
        if found.clipped > _CLIPPED:
            return (
                f"{100 * found.clipped:.1f} % of its inputs are clipped: calibrate on more images"
            )
        return f"rounding of its inputs: more activation bits (now {found.act_bits})"
    return _find_weight_hint(found, weight, params)


def _find_weight_hint(found: LayerComparison, weight: Tensor, params: QuantParams) -> str:
    """Find what would help a weight, by trying it."""
    dead = f"{found.dead_channels} channels vanished; " if found.dead_channels else ""
    per_channel, symmetric = bool(params.scale.dim()), params.low < 0
    best = _try(weight, found.bits, symmetric=symmetric, per_channel=per_channel)
    if not per_channel:
        gain = _try(weight, found.bits, symmetric=symmetric, per_channel=True) - best
        if gain > _WORTH_SAYING:
            return f"{dead}one scale per channel: {gain:.0f} dB more of its weight"
    if symmetric:
        gain = _try(weight, found.bits, symmetric=False, per_channel=per_channel) - best
        if gain > _WORTH_SAYING:
            return f"{dead}a zero point (asymmetric weights): {gain:.0f} dB more of its weight"
    gain = _try(weight, found.bits + 1, symmetric=symmetric, per_channel=per_channel) - best
    return f"{dead}rounding of its weight: more weight bits (now {found.bits}; {gain:.0f} dB a bit)"


def _try(weight: Tensor, bits: int, *, symmetric: bool, per_channel: bool) -> float:
    """Return the ratio of a weight that is rounded to nearest at the best scale."""
    params = lp_scale(weight, bits, symmetric=symmetric, per_channel=per_channel)
    noise = Noise()
    noise.add(weight, dequantize(quantize(weight, params), params))
    return math.inf if noise.decibels is None else noise.decibels
