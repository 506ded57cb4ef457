"""Any traced network rewritten to compute with integers where it can."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.errors import OmpqError
from ompq.fixed_point.grids import ActivationGrid, LearnedActivationGrid, RangeRule, WeightGrid
from ompq.fixed_point.modules import Exact, Joint, Origin, QuantizedLayer, Requantizer
from ompq.fixed_point.nodes import AVERAGES, CLIPS, clip_bounds, pooling_window
from ompq.fixed_point.norms import FreeNorm
from ompq.graph import NetworkGraph
from ompq.graph.operations import (
    ADDITIONS,
    IDENTITIES,
    LAYOUTS,
    MAX_POOLS,
    carries_values,
    layer_of,
    operation,
    tensor_shape,
)
from ompq.widths import PIXEL_BITS, SUM_BITS

# Paths of what is set into the traced network.
READ, JOINED = "requantizers", "joints"
# These hand on integers of their input's grid, whatever it is.
_KEEPING = CLIPS | MAX_POOLS | (IDENTITIES - {"to", "type_as", "float"})
# These take integers apart, or arrange them anew; they need one grid for all channels.
_ARRANGING = LAYOUTS | frozenset("chunk split unbind getitem".split())
_CONCATENATIONS = frozenset("cat concat".split())


@dataclass(frozen=True)
class Scheme:
    """How a network is rewritten.

    Attributes:
        rule: how ranges become scales.
        bias_bits: width of the biases' integers; 0 leaves them in float.
        dyadic: rescale by integers and shifts.
        learned: step sizes are learned (LSQ) instead of following ranges.
    """

    rule: RangeRule = field(default_factory=RangeRule)
    bias_bits: int = 32
    dyadic: bool = True
    learned: bool = False

    def __post_init__(self) -> None:
        if self.bias_bits and not 2 <= self.bias_bits <= 32:
            raise OmpqError(f"--bias_bit is {self.bias_bits}; it is 2 to 32, or 0 for float")


@dataclass
class IntegerNetwork:
    """A network of quantized layers, requantizations and joints.

    `float_operations` names what has no integer form, and why; with an entry the network does not
    run on integers alone. `input_shape` is channels × height × width.
    """

    module: GraphModule
    input_shape: tuple[int, int, int]
    float_operations: dict[str, str]
    origins: dict[str, Origin | None]

    @property
    def runs_on_integers(self) -> bool:
        """Whether nothing between images and logits needs floats."""
        return (
            not self.float_operations
            and all(not layer.has_float_bias for layer in self.layers().values())
            and all(requantizer.dyadic for requantizer in self.requantizers().values())
        )

    def layers(self) -> dict[str, QuantizedLayer]:
        """Layer name → its module, in execution order."""
        return {n: m for n, m in _called(self.module).items() if isinstance(m, QuantizedLayer)}

    def requantizers(self) -> dict[str, Requantizer]:
        """Path → requantization (joints included), in execution order."""
        return {n: m for n, m in _called(self.module).items() if isinstance(m, Requantizer)}

    def enable(self, state: bool) -> None:
        """Switch all quantization on or off."""
        for module in [*self.layers().values(), *self.requantizers().values()]:
            module.enabled = state  # type: ignore[assignment]

    def freeze_norms(self) -> None:
        """From now on batch norms keep their statistics."""
        for module in _called(self.module).values():
            if isinstance(module, QuantizedLayer | FreeNorm):
                module.freeze_norm = True


def to_integers(
    graph: NetworkGraph,
    weight_bits: Mapping[str, int],
    act_bits: Mapping[str, int],
    scheme: Scheme,
) -> IntegerNetwork:
    """A copy of a network in which layers, sums and concatenations are quantized.

    Every layer reads integers of its activation width; a value that several layers read gets the
    widest of theirs, and the images keep the 8 bits of their pixels. Sums and concatenations are
    taken on 16 bits. Values that layers do not read (a shortcut) stay on the grid that they are on.

    Args:
        graph: the float network.
        weight_bits: layer → width of its weight.
        act_bits: layer → width of what it reads.
        scheme: see `Scheme`.
    """
    module = GraphModule(copy.deepcopy(graph.module), copy.deepcopy(graph.module.graph))
    _swap_layers(module, graph, weight_bits, scheme)
    rewriting = _Rewriting(module, scheme, act_bits)
    for node in list(module.graph.nodes):
        rewriting.visit(node)
    _swap_free_norms(module)
    module.delete_all_unused_submodules()
    module.requires_grad_(True)
    module.graph.lint()
    module.recompile()
    origins = {node.name: origin for node, origin in rewriting.origins.items()}
    return IntegerNetwork(module, graph.input_shape, rewriting.in_float, origins)


def _called(module: GraphModule) -> dict[str, nn.Module]:
    return {
        str(node.target): module.get_submodule(str(node.target))
        for node in module.graph.nodes
        if node.op == "call_module"
    }


def _swap_layers(
    module: GraphModule, graph: NetworkGraph, bits: Mapping[str, int], scheme: Scheme
) -> None:
    """Put quantized layers in the place of the float ones and their batch norms."""
    norms: dict[str, str] = {}
    for name, layer in graph.layers.items():
        norm = None
        if layer.batch_norm is not None:
            found = module.get_submodule(layer.batch_norm)
            norm = found if isinstance(found, _BatchNorm) else None
            norms[layer.batch_norm] = name
        float_layer = layer_of(module, name)
        grid = WeightGrid(bits[name], scheme.rule).to(float_layer.weight.device)
        module.set_submodule(name, QuantizedLayer(float_layer, norm, grid, scheme.bias_bits))
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target in norms:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)


def _swap_free_norms(module: GraphModule) -> None:
    """Batch norms that follow no layer are trained like those that do: over all ranks."""
    for path, found in _called(module).items():
        if isinstance(found, _BatchNorm):
            module.set_submodule(path, FreeNorm(found))


class _Rewriting:
    """Walks a network in execution order, knowing on which grid every value is."""

    def __init__(self, module: GraphModule, scheme: Scheme, act_bits: Mapping[str, int]) -> None:
        self.module, self.scheme = module, scheme
        self.origins: dict[Node, Origin | None] = {}
        self.in_float: dict[str, str] = {}
        self.widths = self._read_widths(act_bits)

    def _read_widths(self, act_bits: Mapping[str, int]) -> dict[Node, int]:
        """Node → width of the integers that layers read from it, reshaping aside."""
        widths: dict[Node, int] = {}
        for call in filter(self._is_layer, self.module.graph.nodes):
            source = call.all_input_nodes[0]
            while source.op.startswith("call_") and self._leads_to_layers(source):
                source = source.all_input_nodes[0]
            widths[source] = max(widths.get(source, 0), act_bits[str(call.target)])
        images = {node: PIXEL_BITS for node in widths if node.op == "placeholder"}
        return widths | images

    def visit(self, node: Node) -> None:
        """Find the node's grid, set in what it needs, and hand its integers to the layers."""
        if node.op in ("output", "get_attr"):
            self.origins[node] = None
            self._make_exact(node)
            return
        node = self._joined(node)
        self.origins[node] = self._origin(node)
        if node in self.widths:
            self._requantize_for_layers(node, self.widths[node])

    def _make_exact(self, output: Node) -> None:
        """The network's output is to be exact multiples of its grid."""
        for source in output.all_input_nodes:
            origin = self.origins.get(source)
            if origin is not None and origin.divisor > 1:
                call = self._insert(source, "output_grid", Exact(origin), (source,))
                output.replace_input_with(source, call)
                self.origins[call] = origin

    def _joined(self, node: Node) -> Node:
        """A sum or concatenation of integers becomes a joint."""
        name = operation(node, self.module)
        if name not in ADDITIONS | _CONCATENATIONS or node.op == "call_module":
            return node
        if name in ADDITIONS:
            given: Any = node.args
        else:
            given = node.args[0] if node.args else node.kwargs["tensors"]
        parts = [part for part in given if isinstance(part, Node)]
        origins = [self.origins.get(part) for part in parts]
        if len(parts) < len(given) or None in origins or node.kwargs.get("alpha", 1) != 1:
            return node
        shapes = {tensor_shape(part) for part in parts}
        if name in ADDITIONS and len(shapes) > 1:
            return node
        dim = node.kwargs.get(
            "dim", node.args[1] if name in _CONCATENATIONS and node.args[1:] else 0
        )
        kind = "cat" if name in _CONCATENATIONS else "add"
        joint = Joint(self._grid(SUM_BITS), self.scheme.dyadic, kind, int(dim or 0))  # type: ignore[arg-type]
        joint.origins = tuple(origin for origin in origins if origin is not None)
        call = self._insert(node, f"{JOINED}.{node.name}", joint, tuple(parts))
        node.replace_all_uses_with(call)
        if node in self.widths:
            self.widths[call] = self.widths.pop(node)
        self.module.graph.erase_node(node)
        return call

    def _origin(self, node: Node) -> Origin | None:
        """The grid of a node's value; None in float."""
        if node.op == "placeholder":
            return None
        if node.op == "call_module":
            found = self.module.get_submodule(str(node.target))
            if isinstance(found, QuantizedLayer):
                return None if found.has_float_bias else Origin(found)
            if isinstance(found, Requantizer):
                return Origin(found)
        values = [n for n in node.all_input_nodes if n.op == "get_attr" or carries_values(n)]
        sources = [source for source in values if self.origins.get(source)]
        if not sources or not carries_values(node):
            return None
        name = operation(node, self.module)
        origin = self.origins[sources[0]]
        if len(values) == 1 and origin is not None:
            if name in _KEEPING or (name in _ARRANGING and not origin.per_channel):
                return origin
            if name in AVERAGES:
                window = pooling_window(node, self.module)
                if window is not None:
                    return self._average(node, sources[0], origin, prod(window[0]))
        self._leave_in_float(node, sources, name)
        return None

    def _average(self, node: Node, source: Node, origin: Origin, divisor: int) -> Origin:
        """Sums of a layer's wide integers would overflow: they are requantized first."""
        if origin.per_channel:
            requantizer = Requantizer(self._grid(SUM_BITS), self.scheme.dyadic)
            requantizer.origin = origin
            call = self._insert(source, f"{JOINED}.{source.name}", requantizer, (source,))
            node.replace_input_with(source, call)
            origin = self.origins[call] = Origin(requantizer)
        return Origin(origin.module, origin.divisor * divisor)

    def _requantize_for_layers(self, node: Node, bits: int) -> None:
        users = [user for user in node.users if self._is_layer(user) or self._leads_to_layers(user)]
        layers = [layer for user in users for layer in self._layers_behind(user)]
        shared = next((layer.source.grid for layer in layers if layer.has_source), None)
        requantizer = Requantizer(shared or self._grid(bits), self.scheme.dyadic)
        requantizer.origin = self.origins[node]
        call = self._insert(node, f"{READ}.{node.name}", requantizer, (node,))
        self.origins[call] = Origin(requantizer)
        for user in users:
            user.replace_input_with(node, call)
        self._merge_clip(node, call, requantizer)
        for layer in layers:
            layer.read_from(requantizer)

    def _merge_clip(self, node: Node, call: Node, requantizer: Requantizer) -> None:
        """A ReLU whose value nobody else reads becomes part of the requantization."""
        if requantizer.origin is None or operation(node, self.module) not in CLIPS:
            return
        bounds = clip_bounds(node, self.module)
        source = node.all_input_nodes[0]
        alone = set(node.users) == {call} and set(source.users) == {node}
        if alone and len(node.all_input_nodes) == 1 and bounds[0] == 0:
            call.replace_input_with(node, source)
            requantizer.clip = bounds
            self.module.graph.erase_node(node)

    def _layers_behind(self, user: Node) -> list[QuantizedLayer]:
        if self._is_layer(user):
            layer = self.module.get_submodule(str(user.target))
            return [layer] if isinstance(layer, QuantizedLayer) else []
        return [layer for further in user.users for layer in self._layers_behind(further)]

    def _is_layer(self, node: Node) -> bool:
        return node.op == "call_module" and isinstance(
            self.module.get_submodule(str(node.target)), QuantizedLayer
        )

    def _leads_to_layers(self, node: Node) -> bool:
        """Whether `node` hands its input on as it is, and to layers alone."""
        if not node.op.startswith("call_"):
            return False
        handing_on = operation(node, self.module) in (LAYOUTS | IDENTITIES)
        return bool(handing_on and node.users) and all(
            self._is_layer(user) or self._leads_to_layers(user) for user in node.users
        )

    def _grid(self, bits: int) -> ActivationGrid:
        kind: Callable[[int, RangeRule], ActivationGrid] = ActivationGrid
        if self.scheme.learned and bits < SUM_BITS:
            kind = LearnedActivationGrid
        device = next(self.module.parameters()).device
        return kind(bits, self.scheme.rule).to(device)

    def _insert(
        self, after: Node, path: str, module: nn.Module, arguments: tuple[Node, ...]
    ) -> Node:
        self.module.add_submodule(path, module)
        with self.module.graph.inserting_after(after):
            call = self.module.graph.call_module(path, arguments)
        call.meta["shape"] = after.meta.get("shape")
        return call

    def _leave_in_float(self, node: Node, sources: list[Node], name: str) -> None:
        """Integers that go into a float operation go there as float32."""
        self.in_float[node.name] = name
        for source in sources:
            with self.module.graph.inserting_before(node):
                cast = self.module.graph.call_method("float", (source,))
            cast.meta["shape"] = source.meta.get("shape")
            node.replace_input_with(source, cast)
