"""Evidence of what a converted network computes: its integers beside its simulation, node by node.

Every node's integers times their scale must be what the simulation has there, and without
quantization the network must be the float one. Where that is not so, whatever the reason, the node
is left in float, and the conversion done anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from ompq.errors import UNSUITED_ERRORS
from ompq.evaluation import find_device
from ompq.graph import NetworkGraph
from ompq.graph.operations import carries_values, operation
from ompq.integer.execution import IntegerExecution, export_node
from ompq.integer.forms import find_tensors, has_finite_bound, map_tensors
from ompq.integer.inserted import find_original, is_inserted
from ompq.integer.layers import QuantizedLayer
from ompq.integer.network import IntegerNetwork, locate

# Images that are looked at; with one alone, what mixes images would not show.
_SAMPLES = 2
# Ranges that share a scale cost the smaller one as many levels.
_FAR_APART = 8
# Images that show whether logits stay finite.
_LOOKED_AT = 32
# What float32 may change between two ways to compute one function.
_FLOAT_TOLERANCE = 1e-4
# Float64 multiples of a scale are integers but for this much, of averages too.
_INTEGER_TOLERANCE = 1e-3
_ROUNDING = 0.5
_DIFFERS = "its integers are not what is simulated"
_MOST_CONVERSIONS = 20


def prove(
    convert: Callable[[frozenset[str]], IntegerNetwork],
    calibrate: Callable[[IntegerNetwork], None],
    graph: NetworkGraph,
    images: Tensor,
) -> IntegerNetwork:
    """Convert a network so that its integers, where it has them, are what is simulated.

    Args:
        convert: Function that converts the network, with some nodes (by name) left in float.
        calibrate: Function that gives a converted network its first scales.
        graph: The float network.
        images: Images, n × channels × height × width, normalised; a few of them are used.

    Returns:
        The network, in evaluation mode, with its `float_operations` as the execution of its
        integers shows them, and `notes` that name what had to be left in float for it.
    """
    nodes = [node for node in graph.module.graph.nodes if node.op.startswith("call_")]
    names = {node.name for node in nodes if carries_values(node)}
    left: frozenset[str] = frozenset()
    notes: list[str] = []
    for _ in range(_MOST_CONVERSIONS):
        network = convert(left)
        network.samples = images[:_SAMPLES].cpu()
        faults = check_float_network(network, graph)
        # A network that computes something else, and can be mended, need not be calibrated.
        if not faults.keys() & (names - left):
            calibrate(network)
            faults |= check_integers(network)
        new = {name: why for name, why in faults.items() if name in names - left}
        if not new:
            break
        for node in nodes:
            if node.name in new:
                what = f"{locate(node)} ({operation(node, graph.module)})"
                notes.append(f"{what}: {new[node.name]}; it stays in float")
        left |= new.keys()
    # What is known to be wrong and cannot be mended is no integer network at least.
    network.float_operations |= faults
    network.notes = notes + [f"{name}: {why}" for name, why in faults.items()]
    network.notes += _describe_shared_scales(network)
    network.notes += _describe_infinite(network, images[:_LOOKED_AT])
    return network


def _describe_shared_scales(network: IntegerNetwork) -> list[str]:
    """Say which layers read values of far different ranges, at several calls, by one scale."""
    apart = {
        name: layer.source.fake_quantizer.compare_ranges()
        for name, layer in network.layers().items()
        if layer.has_source
    }
    return [
        f"{name}: what it reads at one call reaches {times:.0f} times as far as at another, and "
        "all calls have one scale; give each a layer of its own"
        for name, times in apart.items()
        if times > _FAR_APART
    ]


class _Seeking(Interpreter):
    """Looks for the first operation that gives something not finite."""

    found: Node | None = None

    def run_node(self, n: Node) -> Any:
        """Run a node and look at its value."""
        value = super().run_node(n)
        finite = all(bool(tensor.isfinite().all()) for tensor in find_tensors(value))
        if self.found is None and n.op.startswith("call_") and not finite:
            self.found = n
        return value


@torch.inference_mode()
def _describe_infinite(network: IntegerNetwork, images: Tensor) -> list[str]:
    """Say where rounded values make logits that are not finite."""
    seeking = _Seeking(network.module)
    seeking.extra_traceback = False
    try:
        logits = seeking.run(images.to(find_device(network.module)))
    except UNSUITED_ERRORS:  # what cannot be run was named before
        return []
    if seeking.found is None or all(bool(x.isfinite().all()) for x in find_tensors(logits)):
        return []
    where = f"{locate(seeking.found)} ({operation(seeking.found, network.module)})"
    return [
        f"{where}: of rounded values it gives what is not finite, and so are the logits; what it "
        "divides by, or takes the logarithm of, is to stay further from 0"
    ]


@torch.inference_mode()
def check_integers(network: IntegerNetwork) -> dict[str, str]:
    """Run a network's integers beside its simulation, on the CPU, and compare them node by node.

    The network's `float_operations` is completed by what was in float.

    Args:
        network: Network of integers, with first scales; in evaluation mode afterwards.

    Returns:
        What went wrong, by the name of the node before the conversion; each is a fault of its own,
        for the nodes after it go on with the simulation's values. Nothing is run where the settings
        are such that integers cannot follow.
    """
    network.module.eval()
    if not network.settings_allow_integers:
        return {}
    with _on_cpu(network.module):
        comparison = _Comparison(network)
        # What has no simulation is a fault; nothing behind it can be compared.
        with suppress(ArithmeticError):
            comparison.run(_find_samples(network))
    nodes = network.module.graph.nodes
    network.float_operations = {
        node.name: network.float_operations.get(node.name, operation(node, network.module))
        for node in nodes
        if node.name in comparison.floats | network.float_operations.keys()
    }
    return comparison.faults


@torch.inference_mode()
def check_float_network(network: IntegerNetwork, graph: NetworkGraph) -> dict[str, str]:
    """Compare a converted network, its quantization switched off, with the float one.

    Args:
        network: Network of integers, with or without scales; in evaluation mode afterwards.
        graph: The network that it was converted from.

    Returns:
        The first node, by its name before the conversion, whose value differs or cannot be
        computed, and the reason; nothing where the outputs agree.
    """
    network.module.eval()
    images = _find_samples(network).to(find_device(network.module))
    network.enable(False)
    try:
        expected, found = _Values(graph.module, images), _Values(network.module, images)
        agree = found.failed is None and _is_close(expected.logits, found.logits)
        return {} if agree else _find_first_difference(network, graph, images)
    finally:
        network.enable(True)


def _find_samples(network: IntegerNetwork) -> Tensor:
    """Return images to look at: those that came with the network, or random ones."""
    if network.samples is not None:
        return network.samples
    return torch.randn(_SAMPLES, *network.input_shape, generator=torch.Generator().manual_seed(0))


@contextmanager
def _on_cpu(module: nn.Module) -> Iterator[None]:
    """Hold a network on the CPU, where a float operation gives one result only."""
    device = find_device(module)
    module.cpu()
    try:
        yield
    finally:
        module.to(device)


class _Comparison(IntegerExecution):
    """Runs a network's integers and, beside them, its simulation."""

    def __init__(self, network: IntegerNetwork) -> None:
        super().__init__(network, {})
        self.faults: dict[str, str] = {}
        self._simulation = Interpreter(network.module)
        self._simulation.extra_traceback = False

    def run_node(self, n: Node) -> Any:
        """Run a node both ways and note whether the results differ."""
        simulation = self._simulation
        if n.op == "placeholder":
            value = super().run_node(n)
            # Two copies, for they may be changed in place.
            simulation.env[n] = map_tensors(value, Tensor.clone)
            return value
        state = torch.get_rng_state()
        try:
            simulated = simulation.env[n] = simulation.run_node(n)
        except ArithmeticError as error:
            self.faults[find_original(n, self.structure)] = shorten(str(error), 80)
            raise
        torch.set_rng_state(state)
        # A bound between two integers is rounded right behind the clip, or by what reads it.
        tolerance = _ROUNDING if has_finite_bound(n, self.structure) else _INTEGER_TOLERANCE
        scale_source = self.network.scale_sources.get(n.name)
        scale = None if scale_source is None else scale_source.get_scale()
        try:
            self.numbers = export_node(self.network, n)
            value = super().run_node(n)
        except UNSUITED_ERRORS as error:
            value, why = None, f"it has no run on integers ({shorten(str(error), 80)})"
        else:
            why = "" if _agree(value, simulated, scale, tolerance) else _DIFFERS
        if why:
            self.faults.setdefault(find_original(n, self.structure), why)
            value = map_tensors(simulated, lambda x: _divide(x, scale))
        for used in self.user_to_last_uses.get(n, []):
            del simulation.env[used]
        return value


def _divide(x: Tensor, scale: Tensor | None) -> Tensor:
    """Return the integers that values stand for; values without a scale as they are."""
    if scale is None or not x.is_floating_point():
        return x
    return torch.round(x.double() / scale).long()


def _agree(value: Any, simulated: Any, scale: Tensor | None, tolerance: float) -> bool:
    """Tell whether integers at a scale, or floats without one, are what the simulation has."""
    found, expected = find_tensors(value), find_tensors(simulated)
    return len(found) == len(expected) and all(
        _agree_in_tensor(one, other, scale, tolerance)
        for one, other in zip(found, expected, strict=True)
    )


def _agree_in_tensor(
    found: Tensor, expected: Tensor, scale: Tensor | None, tolerance: float
) -> bool:
    if found.shape != expected.shape:
        return False
    if scale is None or not expected.is_floating_point():
        both_nan = (found != found) & (expected != expected)
        return found.dtype == expected.dtype and bool(((found == expected) | both_nan).all())
    whole = expected.double() / scale
    equal = bool((torch.round(whole) == found).all())
    near = bool(((whole - found).abs() <= tolerance).all())
    return equal and near and not found.is_floating_point()


class _Values(Interpreter):
    """The values of all nodes of a network, by name, or of its output alone.

    Attributes:
        logits: What the network gives; None where it fails.
        failed: Node that failed; None where all went well.
    """

    def __init__(self, module: GraphModule, images: Tensor, keep: bool = False) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.values: dict[str, Any] = {}
        self.failed: Node | None = None
        self._keep = keep
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.logits: Tensor | None = self.run(images.clone())

    def run_node(self, n: Node) -> Any:
        """Run a node and keep its value; after one that failed, none is run."""
        if self.failed is not None:
            return None
        try:
            value = super().run_node(n)
        except UNSUITED_ERRORS:
            self.failed = n
            return None
        if self._keep:
            self.values[n.name] = map_tensors(value, Tensor.clone)
        return value


def _is_close(expected: Any, found: Any) -> bool:
    if not isinstance(expected, Tensor) or not isinstance(found, Tensor):
        return True
    if expected.shape != found.shape:
        return False
    size = expected.double().norm().clamp_min(1e-30)
    return not bool((found.double() - expected.double()).norm() > _FLOAT_TOLERANCE * size)


def _find_first_difference(
    network: IntegerNetwork, graph: NetworkGraph, images: Tensor
) -> dict[str, str]:
    expected = _Values(graph.module, images, keep=True).values
    found = _Values(network.module, images, keep=True)
    twins = _map_norms(graph)
    for node in network.module.graph.nodes:
        name = find_original(node, network.module)
        own = is_inserted(node, network.module) or _is_layer(node, network.module)
        twin = twins.get(name, name) if own else name
        if node is found.failed or not _is_close(expected.get(twin), found.values[node.name]):
            return {name: "without quantization it is not what the float network has"}
    return {}


def _map_norms(graph: NetworkGraph) -> Mapping[str, str]:
    """Map the node of each layer to the one of the batch norm that is folded into it."""
    norms = {layer.batch_norm: layer.nodes[0] for layer in graph.layers.values()}
    return {
        norms[str(node.target)]: node.name
        for node in graph.module.graph.nodes
        if node.op == "call_module" and str(node.target) in norms
    }


def _is_layer(node: Node, module: nn.Module) -> bool:
    return node.op == "call_module" and isinstance(
        module.get_submodule(str(node.target)), QuantizedLayer
    )
