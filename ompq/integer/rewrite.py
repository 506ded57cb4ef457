"""The walk over a traced network that sets requantizations, sums and casts into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from ompq.cost import SUM_BITS
from ompq.graph.arguments import read_arguments, read_clip_bounds, read_factor
from ompq.graph.operations import (
    ADDITIONS,
    CLIPS,
    CONCATENATIONS,
    carries_values,
    find_values,
    operation,
    tensor_shape,
)
from ompq.graph.shapes import copy_shape
from ompq.integer.fake_quantizers import ActivationFakeQuantizer, LearnedActivationFakeQuantizer
from ompq.integer.forms import Form, count_summed, find_form, has_finite_bound, holds_floats
from ompq.integer.inserted import (
    CAST_PATH,
    CLIP_PATH,
    COMBINATION_PATH,
    CONSTANT_PATH,
    OPERATION_PATH,
    OUTPUT_PATH,
    REQUANTIZER_PATH,
    VALUE_PATH,
    find_original,
    is_inserted,
    make_path,
)
from ompq.integer.layers import QuantizedLayer
from ompq.integer.merging import find_entries
from ompq.integer.network import ConversionSettings
from ompq.integer.operations import IntegerOperation, QuantizedConstant, isolate_constant
from ompq.integer.readers import LayerReaders, QuantizedSite, find_read_values
from ompq.integer.requantization import (
    Dequantizer,
    OutputRounding,
    QuantizedAdd,
    QuantizedCat,
    Requantizer,
    ScaleSource,
)
from ompq.integer.sharing import ValueReaders, flattens_pixels, has_channels_second
from ompq.integer.substitution import Substitution

# Width of sums of 8-bit values, of which none of a sum's bits is lost before it is quantized again.
FINE_SUM_BITS = 24
# Sums of averages stay below 32 bits.
_LARGEST_SUM = 2**31


class Rewriter:
    """Walks a network in execution order, knowing the source of every value's scale.

    Args:
        module: Copy of the traced network, with quantized layers; it is changed in place.
        settings: Settings of the conversion.
        act_bits: Layer → width of what it reads.
        image_maps: Names of the nodes whose values are the images.
        substitution: Source of the forms of operations between layers; what it leaves in float
            stays so.

    Attributes:
        scale_sources: Source of the scale of each node's value; None for one in float.
        sites: Where values are quantized for layers, and for what reads 8 bits; in order.
    """

    def __init__(
        self,
        module: GraphModule,
        settings: ConversionSettings,
        act_bits: Mapping[str, int],
        image_maps: frozenset[str],
        substitution: Substitution,
    ) -> None:
        self.module, self.settings = module, settings
        self.image_maps, self.left_in_float = image_maps, substitution.left_in_float
        self.readers = LayerReaders(module, self.left_in_float)
        self._substitution = substitution
        self.scale_sources: dict[Node, ScaleSource | None] = {}
        self._read = self._make_read_quantizers(act_bits)
        self.sites: list[QuantizedSite] = []
        self._inserted: dict[str, Node] = {}

    def run(self) -> None:
        """Rewrite the network."""
        for call in self.readers.calls():
            self.readers.get_layer(call).in_float |= call.name in self.left_in_float
        for node in list(self.module.graph.nodes):
            self._visit(node)

    def find_float_operations(self) -> dict[str, str]:
        """Find, once all is rewritten, whose values depend on the images and are in float.

        Returns:
            Node name → operation, or class of a layer.
        """
        found = {}
        for node in self.module.graph.nodes:
            own = node.op.startswith("call_") and not is_inserted(node, self.module)
            in_float = self.scale_sources.get(node) is None and node.name not in self.image_maps
            if own and in_float and carries_values(node):
                found[node.name] = self._name(node)
        return found

    def _name(self, node: Node) -> str:
        """Name what a node computes: a layer by its class, anything else by its operation."""
        if self.readers.is_layer(node):
            return type(self.readers.get_layer(node).layer).__name__
        if node.op == "call_module":
            found = self.module.get_submodule(str(node.target))
            if next(found.parameters(), None) is not None:
                return type(found).__name__
        return operation(node, self.module)

    def _make_read_quantizers(
        self, act_bits: Mapping[str, int]
    ) -> dict[Node, ActivationFakeQuantizer]:
        """Make a fake quantizer for every node whose value layers read as integers."""
        made: dict[Node, ActivationFakeQuantizer] = {}
        for nodes, bits in find_read_values(self.readers, act_bits, self.image_maps):
            made |= dict.fromkeys(nodes, self._build_fake_quantizer(bits))
        return made

    def _visit(self, node: Node) -> None:
        """Find a node's scale source, insert what it needs, and hand its integers on."""
        if node.op == "output":
            self.scale_sources[node] = None
            self._round_output(node)
            return
        node = self._substitute(self._quantize_combination(node))
        self.scale_sources[node] = self._find_scale_source(node)
        values = ValueReaders(self.readers, self._substitution, self.scale_sources, self._read)
        shared_bits = values.find_shared_bits(node, self.settings.quantize_sums)
        if shared_bits is not None:
            node = self._requantize_for_all(node, shared_bits)
        elif node in self._read and self._requantize_for_layers(node):
            return
        self._round_clip(node)

    def _round_output(self, output: Node) -> None:
        """Make the network's output exact multiples of its scale, an average for instance."""
        for source in output.all_input_nodes:
            scale_source = self.scale_sources.get(source)
            if scale_source is not None and not scale_source.is_rounded:
                rounding = OutputRounding(scale_source)
                call = self._insert(source, OUTPUT_PATH, rounding, (source,))
                output.replace_input_with(source, call)
                self.scale_sources[call] = scale_source

    def _round_clip(self, node: Node) -> None:
        """Let a clip that others than requantizers read clip at a multiple of the scale."""
        scale_source = self.scale_sources[node]
        if scale_source is None or not has_finite_bound(node, self.module):
            return
        users = [user for user in node.users if not is_inserted(user, self.module)]
        if users:
            path = make_path(CLIP_PATH, node.name)
            call = self._insert(node, path, OutputRounding(scale_source), (node,))
            self.scale_sources[call] = scale_source
            for user in users:
                user.replace_input_with(node, call)

    def _quantize_combination(self, node: Node) -> Node:
        """Replace a sum or concatenation of integers by its quantized form; return its node."""
        name = operation(node, self.module)
        known = name in ADDITIONS | CONCATENATIONS
        if not known or node.op not in ("call_function", "call_method"):
            return node
        if node.name in self.left_in_float or node.kwargs.get("out") is not None:
            return node
        arguments = read_arguments(node, self.module)
        adds = name in ADDITIONS
        given: Any = (
            [arguments.get("input"), arguments.get("other")] if adds else arguments.get("tensors")
        )
        usual = arguments.get("alpha", 1) == 1 and isinstance(arguments.get("dim", 0), int)
        if not isinstance(given, tuple | list) or not usual:
            return node
        parts = [part for part in given if isinstance(part, Node)]
        if any(self.scale_sources.get(part) is not None for part in parts):
            parts = list(map(self._quantize_constant, parts))
        found = [self.scale_sources.get(part) for part in parts]
        scale_sources = tuple(source for source in found if source is not None)
        if len(scale_sources) < len(given) or tensor_shape(node) is None:
            return node
        bits = FINE_SUM_BITS if self.settings.quantize_sums else SUM_BITS
        common = self._build_fake_quantizer(bits), self.settings.dyadic, scale_sources
        if adds:
            combination = QuantizedAdd(*common)
        else:
            combination = QuantizedCat(*common, arguments.get("dim", 0), stacks=name == "stack")
        return self._replace(
            node, make_path(COMBINATION_PATH, node.name), combination, tuple(parts)
        )

    def _quantize_constant(self, node: Node) -> Node:
        """Quantize a value that no image changes; return the node of its integers."""
        if carries_values(node) or tensor_shape(node) is None or not holds_floats(node):
            return node
        path = make_path(CONSTANT_PATH, node.name)
        if path not in self._inserted:
            isolated = isolate_constant(node, self.module)
            if isolated is None:
                return node
            constant = QuantizedConstant(*isolated)
            self._inserted[path] = self._insert(node, path, constant, (node,))
            self.scale_sources[self._inserted[path]] = ScaleSource(constant)
        return self._inserted[path]

    def _substitute(self, node: Node) -> Node:
        """Replace an operation that has an integer form of its own by it; return its node."""
        made = self._substitution.make(node, self.scale_sources)
        if made is None:
            return node
        values = tuple(find_values(node))
        return self._replace(node, make_path(OPERATION_PATH, node.name), made, values)

    def _replace(self, node: Node, path: str, module: nn.Module, values: tuple[Node, ...]) -> Node:
        """Put a module of some values in a node's place; return the node that calls it."""
        call = self._insert(node, path, module, values)
        node.replace_all_uses_with(call)
        if node in self._read:
            self._read[call] = self._read.pop(node)
        self.module.graph.erase_node(node)
        return call

    def _find_scale_source(self, node: Node) -> ScaleSource | None:
        """Return the source of the scale of a node's value; None where the value is in float."""
        if node.op in ("placeholder", "get_attr"):
            return None
        if node.op == "call_module":
            found = self.module.get_submodule(str(node.target))
            if isinstance(found, QuantizedLayer):
                return None if found.gives_floats else ScaleSource(found)
            if isinstance(found, Requantizer | IntegerOperation):
                return ScaleSource(found)
        sources = [source for source in node.all_input_nodes if self._is_wide(source)]
        if not sources or not carries_values(node):
            return None
        if len(sources) == 1 and not self._reads_other_values(node, sources[0]):
            scale_source = self._keep_scale(node, sources[0])
            if scale_source is not None:
                return scale_source
        self._leave_in_float(node, sources)
        return None

    def _is_wide(self, node: Node) -> bool:
        """Tell whether values are float64 in evaluation: integers, or sums with a float bias."""
        biased = self.readers.is_layer(node) and self.readers.get_layer(node).has_float_bias
        return biased or self.scale_sources.get(node) is not None

    def _reads_other_values(self, node: Node, source: Node) -> bool:
        """Tell whether an operation computes with other tensors than one; indices do not count."""
        others = [other for other in node.all_input_nodes if other is not source]
        return any(carries_values(other) or holds_floats(other) for other in others)

    def _keep_scale(self, node: Node, source: Node) -> ScaleSource | None:
        """Return the scale source of what an operation makes of one value; None without a form."""
        form = None if node.name in self.left_in_float else find_form(node, self.module)
        scale_source = self.scale_sources[source]
        if form is None or scale_source is None or not holds_floats(node):
            return None
        if form in (Form.CLIP, Form.KEEP):
            return scale_source
        if form is Form.SCALE:
            factor = read_factor(node, self.module)
            return replace(scale_source, factor=scale_source.factor * (factor or 1.0))
        shares = scale_source.per_channel
        if shares and form is Form.POOL and has_channels_second(scale_source, source):
            return scale_source
        if shares and form is Form.ARRANGE and flattens_pixels(node, source):
            return replace(scale_source, flat=True)
        sums = form in (Form.SUM, Form.AVERAGE)
        # Wide integers cannot be summed either: they would exceed 32 bits.
        shares |= sums and scale_source.module.bits > FINE_SUM_BITS
        count = count_summed(node, self.module) if sums else 1
        bits = SUM_BITS if shares else scale_source.module.bits
        if count is None or 2**bits * scale_source.count * count > _LARGEST_SUM:
            return None
        if shares:
            scale_source = self._share_scale(node, source, scale_source)
        divisor = scale_source.divisor * (count if form is Form.AVERAGE else 1)
        return replace(scale_source, divisor=divisor, count=scale_source.count * count)

    def _share_scale(self, node: Node, source: Node, scale_source: ScaleSource) -> ScaleSource:
        """Requantize a value whose channels have scales of their own to one scale, of 16 bits.

        A layer's wide integers cannot be summed either: they would exceed 32 bits.
        """
        path = make_path(COMBINATION_PATH, find_original(source, self.module))
        if path not in self._inserted:
            fake_quantizer = self._build_fake_quantizer(SUM_BITS)
            requantizer = Requantizer(fake_quantizer, self.settings.dyadic)
            requantizer.scale_source = scale_source
            call = self._inserted[path] = self._insert(source, path, requantizer, (source,))
            self.scale_sources[call] = ScaleSource(requantizer)
        call = self._inserted[path]
        node.replace_input_with(source, call)
        found = self.scale_sources[call]
        assert found is not None
        return found

    def _is_requantized_for_all(self, node: Node) -> bool:
        return node.op == "call_module" and str(node.target).startswith(f"{VALUE_PATH}.")

    def _requantize_for_all(self, node: Node, bits: int) -> Node:
        """Quantize a value for all who read it, layers of narrower widths anew behind that."""
        own = self._read.pop(node, None)
        wide = own is not None and own.bits >= bits
        fake_quantizer = own if own is not None and wide else self._build_fake_quantizer(bits)
        users = list(node.users)
        path = make_path(VALUE_PATH, find_original(node, self.module))
        call = self._requantize(node, path, fake_quantizer, users)
        if own is not None and not wide:
            self._read[call] = own
            self._requantize_for_layers(call)
        return call

    def _requantize_for_layers(self, node: Node) -> bool:
        """Let layers read a node's value requantized; tell whether the node is gone by that."""
        users = [user for user in node.users if self.readers.is_or_leads_to_layer(user)]
        behind = self._is_requantized_for_all(node)
        name = find_original(node, self.module) if behind else node.name
        self._requantize(node, make_path(REQUANTIZER_PATH, name), self._read[node], users)
        return not node.users

    def _requantize(
        self, node: Node, path: str, fake_quantizer: ActivationFakeQuantizer, users: list[Node]
    ) -> Node:
        """Let users read a node's value requantized; the node is gone if it is a clip of theirs."""
        original = find_original(node, self.module)
        readers = tuple(name for user in users for name in find_entries(user, self.module))
        behind = str(node.target) if self._is_requantized_for_all(node) else ""
        self.sites.append(QuantizedSite(path, original, readers, fake_quantizer.bits, behind))
        requantizer = Requantizer(fake_quantizer, self.settings.dyadic)
        requantizer.scale_source = self.scale_sources[node]
        call = self._insert(node, path, requantizer, (node,))
        self.scale_sources[call] = ScaleSource(requantizer)
        for user in users:
            user.replace_input_with(node, call)
            for layer in self.readers.find_layers_behind(user):
                layer.read_from(requantizer)
        self._merge_clip(node, call, requantizer)
        return call

    def _merge_clip(self, node: Node, call: Node, requantizer: Requantizer) -> bool:
        """Make a ReLU whose value nobody else reads part of the requantization."""
        if requantizer.scale_source is None or operation(node, self.module) not in CLIPS:
            return False
        bounds = read_clip_bounds(node, self.module)
        source = node.all_input_nodes[0]
        alone = set(node.users) == {call} and set(source.users) == {node}
        if bounds is None or not alone or len(node.all_input_nodes) != 1 or bounds[0] != 0:
            return False
        call.replace_input_with(node, source)
        requantizer.clip = bounds
        self.module.graph.erase_node(node)
        return True

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
        copy_shape(call, after)
        return call

    def _leave_in_float(self, node: Node, sources: list[Node]) -> None:
        """Cast the integers that go into a float operation to float32."""
        for source in sources:
            scale_source = self.scale_sources[source]
            path = make_path(CAST_PATH, find_original(source, self.module))
            if path not in self._inserted:
                cast = self._insert(source, path, Dequantizer(scale_source), (source,))
                self._inserted[path] = cast
            node.replace_input_with(source, self._inserted[path])
