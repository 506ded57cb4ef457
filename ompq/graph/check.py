"""A prepared network checked against the one that the user gave.

Folding and rewriting trust what a module is; here its values are looked at. Three passes of a few
images suffice where all is well: the user's network, the prepared one, and the prepared one with
all layers at 8 bits. Where outputs differ, the first module that differs is found and left as it
is.
"""

from __future__ import annotations

import copy
import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from ompq.errors import OmpqError
from ompq.graph.copying import copy_with_original
from ompq.graph.exclusions import Exclusions
from ompq.graph.folding import fold_batch_norm
from ompq.graph.network import NetworkGraph
from ompq.graph.operations import carries_values
from ompq.graph.run import run_with_taps
from ompq.graph.trace import trace
from ompq.graph.training_mode import describe_node
from ompq.runtime import say

_IMAGES = 2
_TOLERANCE = 1e-4
# In float64, where rounding cannot be the cause of a difference.
_EXACT_TOLERANCE = 1e-8
# What 8-bit weights, scales per channel, may change of the outputs, and of one layer's: far more
# than the few per cent that rounding costs, also where outputs are small differences.
_ROUNDING_TOLERANCE = 0.25
_LAYER_TOLERANCE = 0.1
_MOST_REPAIRS = 100


def trace_for(
    network: nn.Module | NetworkGraph, images: Tensor, say: Callable[[str], None] = say
) -> NetworkGraph:
    """Trace a network for images of the size of these, and check the result on some of them.

    Args:
        network: Network; one that is traced already is only checked, once.
        images: Images, n × channels × height × width, normalised.
        say: Function that is told what had to be left as it is.

    Raises:
        OmpqError: The images are of another shape, the network cannot be traced, or what was
            traced computes something else.
    """
    if images.dim() != 4:
        shape = "×".join(map(str, images.shape))
        raise OmpqError(f"`images` is {shape}; give n × channels × height × width")
    if isinstance(network, NetworkGraph):
        return check_network(network, images, say)
    channels, height, width = images.shape[1:]
    return check_network(trace(network, (channels, height, width)), images, say)


@torch.inference_mode()
def check_network(
    graph: NetworkGraph, images: Tensor, say: Callable[[str], None] = say
) -> NetworkGraph:
    """Check that a traced network computes, folded and at 8 bits, what the user's network does.

    Args:
        graph: Traced network; it is not changed.
        images: Images, n × channels × height × width, normalised; two of them are used.
        say: Function that is told what had to be left as it is, one line each.

    Returns:
        The network, traced anew without what did not compute the same.

    Raises:
        OmpqError: The network gives NaN, or the traced one computes something else, and nothing
            mends it; the first module that does is named.
    """
    if graph.checked:
        return graph
    parameter = next(graph.original.parameters(), None)
    images = images[:_IMAGES].to(images.device if parameter is None else parameter.device)
    expected = _run(graph.original, images)
    if expected.isnan().any():
        raise OmpqError(
            f"the network gives NaN, first at {_find_nan(graph, images)}; check the weights up to "
            "there (variances of batch norms are positive) and the images"
        )
    if not expected.isfinite().all():
        # The stages name the layer whose feature is not finite.
        return replace(graph, checked=True)
    graph, folded = _mend(graph, images, expected, say)
    difference = _measure_rounding(folded, images, expected)
    if difference > _ROUNDING_TOLERANCE:
        # Of a large network no more copies than one at a time; cycles hold them until then.
        del folded
        gc.collect()
        graph = _leave_out_spoilt_layers(graph, images, difference, say)
    return replace(graph, checked=True)


def measure_difference(found: Tensor, expected: Tensor) -> float:
    """Measure ‖found − expected‖ / ‖expected‖, in float64.

    >>> measure_difference(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    0.1
    """
    if found.shape != expected.shape:
        return float("inf")
    scale = expected.double().norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float((found.double() - expected.double()).norm() / scale)


def _run(network: nn.Module, images: Tensor) -> Tensor:
    """Run a network on copies of the images; logits n × classes × 1 × 1 become n × classes."""
    output = network(images.clone())
    if not isinstance(output, Tensor):
        raise OmpqError(f"the network gives a {type(output).__name__}; wrap it to give the logits")
    return output.flatten(1) if output.dim() > 2 and output[0, 0].numel() == 1 else output


class _NanSeeker(Interpreter):
    """Notes the nodes that hold NaN."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.found: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        """Run a node and look at its value."""
        value = super().run_node(n)
        parts = value if isinstance(value, tuple | list) else (value,)
        if any(isinstance(part, Tensor) and bool(part.isnan().any()) for part in parts):
            self.found.add(n)
        return value


def _find_nan(graph: NetworkGraph, images: Tensor) -> str:
    """Name the operation that the NaN of the outputs came from."""
    seeker = _NanSeeker(graph.module)
    seeker.run(images.clone())
    # NaN elsewhere may be taken away by what follows.
    sources = [node for node in graph.module.graph.nodes if node.op == "output"]
    while sources:
        node = sources[0]
        sources = [source for source in node.all_input_nodes if source in seeker.found]
    return "an operation that was not traced" if node.op == "output" else describe_node(node)


def _mend(
    graph: NetworkGraph, images: Tensor, expected: Tensor, say: Callable[[str], None]
) -> tuple[NetworkGraph, NetworkGraph]:
    """Leave folds and modules out until the prepared network gives the expected outputs.

    Returns:
        The network, and the same with its batch norms folded.
    """
    for _ in range(_MOST_REPAIRS):
        folded = fold_batch_norm(graph)
        difference = measure_difference(_run(folded.module, images), expected)
        if difference <= _TOLERANCE:
            return graph, folded
        again = measure_difference(_run(graph.original, images), expected)
        if again > _TOLERANCE:
            say(f"the network itself gives other outputs at every run ({again:.1e} apart)")
            return graph, folded
        # Of a large network no more copies than are needed; cycles hold them until then.
        del folded
        gc.collect()
        exclusions, where = _find_cause(graph, images)
        gc.collect()
        if exclusions is None and where is None:
            say(f"rounding in float32 alone moves the outputs by {difference:.1e}")
            return graph, fold_batch_norm(graph)
        if exclusions is None:
            where = f", first at {where}" if where else ""
            raise OmpqError(
                f"the traced network computes something else than the network itself (outputs "
                f"differ by {100 * difference:.2g} %{where}); a step there is not what torch.fx "
                "saw: move it into a function marked with torch.fx.wrap"
            )
        say(_describe_exclusion(graph.exclusions, exclusions))
        graph = trace(graph.original, graph.input_shape, exclusions)
    raise OmpqError("too many parts of the traced network compute something else")


def _find_cause(graph: NetworkGraph, images: Tensor) -> tuple[Exclusions | None, str | None]:
    """Find the first module that differs, by itself or because of a batch norm folded into it.

    Values are compared in float64 where the network can be run so, else in float32.

    Returns:
        What is to be left out, None where that would not help; and the path of the module, empty
        where none is found, None where in float64 the outputs agree.
    """
    original, prepared, exact = _to_double(graph, images)
    images = images.double() if exact else images
    tolerance = _EXACT_TOLERANCE if exact else _TOLERANCE
    alone = _compare(original, prepared, images, {}, tolerance)
    if alone is not None:
        if alone in graph.exclusions.modules:
            return None, alone
        reason = "it computes otherwise than it seems to"
        return graph.exclusions.with_module(alone, reason), alone
    norms = {n: layer.batch_norm for n, layer in graph.layers.items() if layer.batch_norm}
    folded = fold_batch_norm(prepared)
    layer = _compare(original, folded, images, norms, tolerance)
    if layer is None and exact:
        found, expected = _run(folded.module, images), _run(original, images)
        return None, None if measure_difference(found, expected) <= tolerance else ""
    norm = graph.layers[layer].batch_norm if layer in graph.layers else None
    return None if norm is None else graph.exclusions.with_norm(norm), layer or ""


def _to_double(graph: NetworkGraph, images: Tensor) -> tuple[nn.Module, NetworkGraph, bool]:
    """Copy the user's network and the traced one in float64, which share parameters still.

    Returns:
        Both, and True; both as they are, and False, where they cannot be run so.
    """
    original, module = copy_with_original(graph.original, graph.module)
    try:
        _run(original.double(), images.double())
        _run(module.double(), images.double())
    except (RuntimeError, TypeError):  # a network that mixes types by itself
        return graph.original, graph, False
    return original, replace(graph, module=module), True


def _compare(
    original: nn.Module,
    prepared: NetworkGraph,
    images: Tensor,
    stand_ins: Mapping[str, str],
    tolerance: float,
) -> str | None:
    """Run both networks and return the path of the first module whose outputs differ.

    Args:
        original: The user's network.
        prepared: The traced network, folded or not.
        images: Images, of the type that both compute in.
        stand_ins: Module of the prepared network → module of the original one that gives its value,
            where it is another one: a folded batch norm.
        tolerance: Relative error that counts as a difference.
    """
    taps = {
        node.name: str(node.target)
        for node in prepared.module.graph.nodes
        if node.op == "call_module" and carries_values(node)
    }
    with _recording(original, {stand_ins.get(path, path) for path in taps.values()}) as outputs:
        _run(original, images)
    differing: list[str] = []

    def read(tap: str, value: Tensor) -> None:
        path = taps[tap]
        known = outputs[stand_ins.get(path, path)]
        expected = known.pop(0) if known else None
        if not (isinstance(value, Tensor) and isinstance(expected, Tensor)):
            return
        if measure_difference(value, expected) > tolerance:
            differing.append(path)

    run_with_taps(prepared, images.clone(), taps, read, images_first=False)
    return differing[0] if differing else None


@contextmanager
def _recording(network: nn.Module, paths: set[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Keep the outputs of some modules, call by call, while the body runs."""
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    handles = [
        module.register_forward_hook(
            lambda _module, _inputs, output, path=path: outputs[path].append(_copy(output))
        )
        for path, module in network.named_modules(remove_duplicate=False)
        if path in paths
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _copy(output: Any) -> Any:
    """Copy a tensor, which may be changed in place later; leave anything else."""
    return output.clone() if isinstance(output, Tensor) else output


def _describe_exclusion(before: Exclusions, after: Exclusions) -> str:
    """Say in one line what was left out."""
    for norm in after.norms - before.norms:
        return f"{norm} is not folded: the layer before it would compute something else"
    (path,) = set(after.modules) - set(before.modules)
    return f"{path} stays in float: {after.modules[path]}"


def _measure_rounding(folded: NetworkGraph, images: Tensor, expected: Tensor) -> float:
    """Round all layers to 8 bits, in place, and measure the relative change of the outputs."""
    for name in folded.layers:
        _round_to_8_bits(folded.layer_module(name).weight)
    return measure_difference(_run(folded.module, images), expected)


def _leave_out_spoilt_layers(
    graph: NetworkGraph, images: Tensor, difference: float, say: Callable[[str], None]
) -> NetworkGraph:
    """Leave layers in float which 8 bits spoil; `difference` is what all at 8 bits change."""
    spoilt = _find_spoilt_layers(graph, images)
    if not spoilt:
        say(f"all layers at 8 bits change the outputs by {100 * difference:.2g} %")
        return graph
    exclusions = graph.exclusions
    for name, error in spoilt.items():
        reason = f"8 bits change its output by {100 * error:.2g} %"
        say(f"{name} stays in float: {reason}")
        exclusions = exclusions.with_module(name, reason)
    return trace(graph.original, graph.input_shape, exclusions)


def _round_to_8_bits(weight: Tensor) -> None:
    """Round a weight to 8 bits, symmetric, per output channel, in place."""
    scale = weight.flatten(1).abs().amax(dim=1).float().clamp_min(1e-30) / 127
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    weight.copy_(
        torch.fake_quantize_per_channel_affine(weight.float(), scale, zero_point, 0, -127, 127)
    )


def _find_spoilt_layers(graph: NetworkGraph, images: Tensor) -> dict[str, float]:
    """Find the layers whose outputs 8-bit weights change much, given exact inputs."""
    folded = fold_batch_norm(graph)
    module: GraphModule = folded.module
    calls = {node: layer.name for layer in folded.layers.values() for node in layer.nodes}
    inputs = {
        next(n for n in module.graph.nodes if n.name == call).all_input_nodes[0].name: call
        for call in calls
    }
    errors: dict[str, float] = {}

    def read(tap: str, value: Tensor) -> None:
        layer = calls[inputs[tap]]
        exact = folded.layer_module(layer)
        rounded = copy.deepcopy(exact)
        _round_to_8_bits(rounded.weight)
        error = measure_difference(rounded(value), exact(value))
        if error > _LAYER_TOLERANCE:
            errors[layer] = error

    run_with_taps(folded, images.clone(), inputs, read, images_first=False)
    return errors
