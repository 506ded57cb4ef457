"""Any traced network rewritten to compute with integers where it can."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.cost import PIXEL_BITS, SUM_BITS
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph
from ompq.graph.network import copy_traced
from ompq.graph.operations import (
    ADDITIONS,
    AVERAGES,
    CLIPS,
    IDENTITIES,
    LAYOUTS,
    MAX_POOLS,
    carries_values,
    get_layer,
    operation,
    read_clip_bounds,
    read_pooling_window,
    tensor_shape,
)
from ompq.integer.batch_norm import StandaloneBatchNorm
from ompq.integer.fake_quantizers import (
    ActivationFakeQuantizer,
    LearnedActivationFakeQuantizer,
    RangeRule,
    WeightFakeQuantizer,
)
from ompq.integer.layers import QuantizedLayer
from ompq.integer.requantization import (
    OutputRounding,
    QuantizedAdd,
    QuantizedCat,
    Requantizer,
    ScaleSource,
)

# Paths of what is set into the traced network: requantizers that layers read; sums,
# concatenations, and requantizers that averages are taken of. They begin the names of tensors in
# QAT's checkpoints and in `quantized.safetensors`, and so must stay as they are.
REQUANTIZER_PATH = "requantizers"
COMBINATION_PATH = "joints"
_OUTPUT_PATH = "output_rounding"
# These hand on their input's integers, or some of them, whatever the scale.
_KEEPING = CLIPS | MAX_POOLS | (IDENTITIES - {"to", "type_as", "float"})
# These take integers apart, or arrange them anew; they need one scale for all channels.
_ARRANGING = LAYOUTS | frozenset("chunk split unbind getitem".split())
_CONCATENATIONS = frozenset("cat concat".split())


@dataclass(frozen=True)
class ConversionSettings:
    """Settings of the conversion to integers.

    Attributes:
        rule: Rule by which ranges become scales.
        bias_bits: Width of the biases' integers, 2 to 32; 0 leaves them in float.
        dyadic: Whether rescaling is by integers and shifts, rather than by real factors.
        learned: Whether step sizes are learned (LSQ), rather than follow ranges.

    Raises:
        OmpqError: `bias_bits` is no width of a bias.
    """

    rule: RangeRule = field(default_factory=RangeRule)
    bias_bits: int = 32
    dyadic: bool = True
    learned: bool = False

    def __post_init__(self) -> None:
        if self.bias_bits and not 2 <= self.bias_bits <= 32:
            raise OmpqError(f"`bias_bits` is {self.bias_bits}; it is 2 to 32, or 0 for float")


@dataclass
class IntegerNetwork:
    """A network of quantized layers and requantizers, quantized sums and concatenations included.

    Attributes:
        module: The rewritten network.
        input_shape: Channels × height × width of its images.
        float_operations: Node name → operation that has no integer form; with an entry the network
            does not run on integers alone.
        scale_sources: Node name → source of the scale of its value; None for one in float.
    """

    module: GraphModule
    input_shape: tuple[int, int, int]
    float_operations: dict[str, str]
    scale_sources: dict[str, ScaleSource | None]

    @property
    def runs_on_integers(self) -> bool:
        """Tell whether nothing between images and logits needs floats."""
        return (
            not self.float_operations
            and all(not layer.has_float_bias for layer in self.layers().values())
            and all(requantizer.dyadic for requantizer in self.requantizers().values())
        )

    def layers(self) -> dict[str, QuantizedLayer]:
        """Return layer name → quantized layer, in execution order."""
        called = _collect_called_modules(self.module)
        return {
            name: module for name, module in called.items() if isinstance(module, QuantizedLayer)
        }

    def requantizers(self) -> dict[str, Requantizer]:
        """Return path → requantizer, sums and concatenations included, in execution order."""
        called = _collect_called_modules(self.module)
        return {path: module for path, module in called.items() if isinstance(module, Requantizer)}

    def enable(self, state: bool) -> None:
        """Switch all quantization on or off."""
        for module in [*self.layers().values(), *self.requantizers().values()]:
            module.enabled = state  # type: ignore[assignment]

    def freeze_norms(self) -> None:
        """Make batch norms keep and use their running statistics from now on."""
        for module in _collect_called_modules(self.module).values():
            if isinstance(module, QuantizedLayer | StandaloneBatchNorm):
                module.freeze_norm = True


def convert_to_integers(
    graph: NetworkGraph,
    weight_bits: Mapping[str, int],
    act_bits: Mapping[str, int],
    settings: ConversionSettings,
) -> IntegerNetwork:
    """Copy a network, with its layers, sums and concatenations quantized.

    Every layer reads integers of its activation width; a value that several layers read gets the
    widest of theirs, and the images keep the 8 bits of their pixels. Sums and concatenations are
    taken on 16 bits. Values that layers do not read (a shortcut) keep their scale.

    Args:
        graph: The float network.
        weight_bits: Layer → width of its weight.
        act_bits: Layer → width of what it reads.
        settings: Settings of the conversion.
    """
    module = copy_traced(graph.module)
    _quantize_layers(module, graph, weight_bits, settings)
    rewriter = _Rewriter(module, settings, act_bits)
    for node in list(module.graph.nodes):
        rewriter.visit(node)
    _replace_standalone_norms(module)
    module.delete_all_unused_submodules()
    module.requires_grad_(True)
    module.graph.lint()
    module.recompile()
    scale_sources = {
        node.name: scale_source for node, scale_source in rewriter.scale_sources.items()
    }
    return IntegerNetwork(module, graph.input_shape, rewriter.float_operations, scale_sources)


def _collect_called_modules(module: GraphModule) -> dict[str, nn.Module]:
    return {
        str(node.target): module.get_submodule(str(node.target))
        for node in module.graph.nodes
        if node.op == "call_module"
    }


def _quantize_layers(
    module: GraphModule, graph: NetworkGraph, bits: Mapping[str, int], settings: ConversionSettings
) -> None:
    """Put quantized layers in the place of the float ones and their batch norms."""
    norms: dict[str, str] = {}
    for name, layer in graph.layers.items():
        norm = None
        if layer.batch_norm is not None:
            found = module.get_submodule(layer.batch_norm)
            norm = found if isinstance(found, _BatchNorm) else None
            norms[layer.batch_norm] = name
        float_layer = get_layer(module, name)
        fake_quantizer = WeightFakeQuantizer(bits[name], settings.rule)
        fake_quantizer.to(float_layer.weight.device)
        quantized = QuantizedLayer(float_layer, norm, fake_quantizer, settings.bias_bits)
        module.set_submodule(name, quantized)
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target in norms:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)


def _replace_standalone_norms(module: GraphModule) -> None:
    """Let batch norms that follow no layer be trained like those that do: over all ranks."""
    for path, found in _collect_called_modules(module).items():
        if isinstance(found, _BatchNorm):
            module.set_submodule(path, StandaloneBatchNorm(found))


class _Rewriter:
    """Walks a network in execution order, knowing the source of every value's scale."""

    def __init__(
        self, module: GraphModule, settings: ConversionSettings, act_bits: Mapping[str, int]
    ) -> None:
        self.module, self.settings = module, settings
        self.scale_sources: dict[Node, ScaleSource | None] = {}
        self.float_operations: dict[str, str] = {}
        self.widths = self._read_widths(act_bits)

    def _read_widths(self, act_bits: Mapping[str, int]) -> dict[Node, int]:
        """Return node → width of the integers that layers read from it.

        Where reshaping lies between, the node is the one before: what is requantized is the value
        that was computed, once, and not every shape of it.
        """
        widths: dict[Node, int] = {}
        for call in filter(self._is_layer, self.module.graph.nodes):
            source = call.all_input_nodes[0]
            while source.op.startswith("call_") and self._leads_to_layers(source):
                source = source.all_input_nodes[0]
            widths[source] = max(widths.get(source, 0), act_bits[str(call.target)])
        images = {node: PIXEL_BITS for node in widths if node.op == "placeholder"}
        return widths | images

    def visit(self, node: Node) -> None:
        """Find a node's scale source, insert what it needs, and hand its integers to the layers."""
        if node.op in ("output", "get_attr"):
            self.scale_sources[node] = None
            self._round_output(node)
            return
        node = self._quantize_combination(node)
        self.scale_sources[node] = self._find_scale_source(node)
        if node in self.widths:
            self._requantize_for_layers(node, self.widths[node])

    def _round_output(self, output: Node) -> None:
        """Make the network's output exact multiples of its scale, where it is an average."""
        for source in output.all_input_nodes:
            scale_source = self.scale_sources.get(source)
            if scale_source is not None and scale_source.divisor > 1:
                rounding = OutputRounding(scale_source)
                call = self._insert(source, _OUTPUT_PATH, rounding, (source,))
                output.replace_input_with(source, call)
                self.scale_sources[call] = scale_source

    def _quantize_combination(self, node: Node) -> Node:
        """Replace a sum or concatenation of integers by its quantized form; return its node."""
        name = operation(node, self.module)
        if name not in ADDITIONS | _CONCATENATIONS or node.op == "call_module":
            return node
        given = node.args
        if name in _CONCATENATIONS:
            given = node.args[0] if node.args else node.kwargs["tensors"]  # type: ignore[assignment]
        parts = [part for part in given if isinstance(part, Node)]
        found = [self.scale_sources.get(part) for part in parts]
        scale_sources = tuple(source for source in found if source is not None)
        if len(scale_sources) < len(given) or node.kwargs.get("alpha", 1) != 1:
            return node
        if name in ADDITIONS and len({tensor_shape(part) for part in parts}) > 1:
            return node
        common = self._build_fake_quantizer(SUM_BITS), self.settings.dyadic, scale_sources
        if name in ADDITIONS:
            combination = QuantizedAdd(*common)
        else:
            dim = node.kwargs.get("dim", node.args[1] if node.args[1:] else 0)
            combination = QuantizedCat(*common, dim=int(dim or 0))  # type: ignore[arg-type]
        path = f"{COMBINATION_PATH}.{node.name}"
        call = self._insert(node, path, combination, tuple(parts))
        node.replace_all_uses_with(call)
        if node in self.widths:
            self.widths[call] = self.widths.pop(node)
        self.module.graph.erase_node(node)
        return call

    def _find_scale_source(self, node: Node) -> ScaleSource | None:
        """Return the source of the scale of a node's value; None where the value is in float."""
        if node.op == "placeholder":
            return None
        if node.op == "call_module":
            found = self.module.get_submodule(str(node.target))
            if isinstance(found, QuantizedLayer):
                return None if found.has_float_bias else ScaleSource(found)
            if isinstance(found, Requantizer):
                return ScaleSource(found)
        values = [n for n in node.all_input_nodes if n.op == "get_attr" or carries_values(n)]
        sources = [source for source in values if self.scale_sources.get(source)]
        if not sources or not carries_values(node):
            return None
        name = operation(node, self.module)
        scale_source = self.scale_sources[sources[0]]
        if len(values) == 1 and scale_source is not None:
            if name in _KEEPING or (name in _ARRANGING and not scale_source.per_channel):
                return scale_source
            if name in AVERAGES:
                window = read_pooling_window(node, self.module)
                if window is not None:
                    return self._scale_average(node, sources[0], scale_source, prod(window[0]))
        self._leave_in_float(node, sources, name)
        return None

    def _scale_average(
        self, node: Node, source: Node, scale_source: ScaleSource, divisor: int
    ) -> ScaleSource:
        """Return the scale source of an average over `divisor` values of `source`.

        Sums of a layer's wide integers would overflow, so these are requantized first.
        """
        if scale_source.per_channel:
            fake_quantizer = self._build_fake_quantizer(SUM_BITS)
            requantizer = Requantizer(fake_quantizer, self.settings.dyadic)
            requantizer.scale_source = scale_source
            path = f"{COMBINATION_PATH}.{source.name}"
            call = self._insert(source, path, requantizer, (source,))
            node.replace_input_with(source, call)
            scale_source = self.scale_sources[call] = ScaleSource(requantizer)
        return ScaleSource(scale_source.module, scale_source.divisor * divisor)

    def _requantize_for_layers(self, node: Node, bits: int) -> None:
        users = [user for user in node.users if self._is_layer(user) or self._leads_to_layers(user)]
        layers = [layer for user in users for layer in self._find_layers_behind(user)]
        # A layer that is called twice has one scale of sums, and so must read one scale.
        shared = next((layer.source.fake_quantizer for layer in layers if layer.has_source), None)
        fake_quantizer = shared or self._build_fake_quantizer(bits)
        requantizer = Requantizer(fake_quantizer, self.settings.dyadic)
        requantizer.scale_source = self.scale_sources[node]
        call = self._insert(node, f"{REQUANTIZER_PATH}.{node.name}", requantizer, (node,))
        self.scale_sources[call] = ScaleSource(requantizer)
        for user in users:
            user.replace_input_with(node, call)
        self._merge_clip(node, call, requantizer)
        for layer in layers:
            layer.read_from(requantizer)

    def _merge_clip(self, node: Node, call: Node, requantizer: Requantizer) -> None:
        """Make a ReLU whose value nobody else reads part of the requantization."""
        if requantizer.scale_source is None or operation(node, self.module) not in CLIPS:
            return
        bounds = read_clip_bounds(node, self.module)
        source = node.all_input_nodes[0]
        alone = set(node.users) == {call} and set(source.users) == {node}
        if alone and len(node.all_input_nodes) == 1 and bounds[0] == 0:
            call.replace_input_with(node, source)
            requantizer.clip = bounds
            self.module.graph.erase_node(node)

    def _find_layers_behind(self, user: Node) -> list[QuantizedLayer]:
        if self._is_layer(user):
            layer = self.module.get_submodule(str(user.target))
            return [layer] if isinstance(layer, QuantizedLayer) else []
        return [layer for further in user.users for layer in self._find_layers_behind(further)]

    def _is_layer(self, node: Node) -> bool:
        return node.op == "call_module" and isinstance(
            self.module.get_submodule(str(node.target)), QuantizedLayer
        )

    def _leads_to_layers(self, node: Node) -> bool:
        """Tell whether `node` hands its input on as it is, and to layers alone."""
        if not node.op.startswith("call_"):
            return False
        handing_on = operation(node, self.module) in (LAYOUTS | IDENTITIES)
        return bool(handing_on and node.users) and all(
            self._is_layer(user) or self._leads_to_layers(user) for user in node.users
        )

    def _build_fake_quantizer(self, bits: int) -> ActivationFakeQuantizer:
        # 16 bits are too fine for a learned step size to matter.
        learned = self.settings.learned and bits < SUM_BITS
        kind = LearnedActivationFakeQuantizer if learned else ActivationFakeQuantizer
        return kind(bits, self.settings.rule).to(next(self.module.parameters()).device)

    def _insert(
        self, after: Node, path: str, module: nn.Module, arguments: tuple[Node, ...]
    ) -> Node:
        self.module.add_submodule(path, module)
        with self.module.graph.inserting_after(after):
            call = self.module.graph.call_module(path, arguments)
        call.meta["shape"] = after.meta.get("shape")
        return call

    def _leave_in_float(self, node: Node, sources: list[Node], name: str) -> None:
        """Cast the integers that go into a float operation to float32, and note the operation."""
        self.float_operations[node.name] = name
        for source in sources:
            with self.module.graph.inserting_before(node):
                cast = self.module.graph.call_method("float", (source,))
            cast.meta["shape"] = source.meta.get("shape")
            node.replace_input_with(source, cast)
