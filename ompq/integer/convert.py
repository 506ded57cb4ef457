"""Any traced network rewritten to compute with integers where it can."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm

from ompq.graph import NetworkGraph, find_image_maps
from ompq.graph.copying import copy_traced
from ompq.graph.operations import carries_values, get_layer, operation
from ompq.integer.batch_norm import replace_standalone_norms
from ompq.integer.fake_quantizers import WeightFakeQuantizer
from ompq.integer.forms import CASTS
from ompq.integer.layers import QuantizedLayer
from ompq.integer.merging import merge_operations, restore_merged
from ompq.integer.network import ConversionSettings, IntegerNetwork
from ompq.integer.rewrite import Rewriter
from ompq.integer.substitution import Substitution


def convert_to_integers(
    graph: NetworkGraph,
    weight_bits: Mapping[str, int],
    act_bits: Mapping[str, int],
    settings: ConversionSettings,
    left_in_float: Collection[str] = (),
    merge: Collection[str] | None = None,
) -> IntegerNetwork:
    """Copy a network, with its layers, sums and concatenations quantized.

    Every layer reads integers of its activation width; a value that several layers read gets the
    widest of theirs, and the images, normalised by the network or not, keep the 8 bits of their
    pixels. Sums, concatenations and averages read 8 bits, and are taken on 24; with `quantize_sums`
    off they read what layers give, a shortcut keeps its scale, and sums are taken on 16 bits.
    Products of matrices read a width of their own, other products and what works value by value 8
    bits; norms and softmax read sums as they are.
    What has no form on integers is computed in float32.

    Args:
        graph: The float network.
        weight_bits: Layer → width of its weight.
        act_bits: Layer → width of what it reads; products of two values, by their nodes, may be
            among them, and read 8 bits where they are not.
        settings: Settings of the conversion.
        left_in_float: Names of nodes of the graph whose values are to stay in float.
        merge: Names of the last nodes of what may be made one operation; None for all that can be.
    """
    module = copy_traced(graph.module)
    image_maps = frozenset(node.name for node in find_image_maps(module))
    left = frozenset(left_in_float)
    _drop_casts(module, left)
    _quantize_layers(module, graph, weight_bits, settings)
    products = [name for group in graph.groups for name in group.products]
    product_bits = {name: act_bits[name] for name in products if name in act_bits}
    probabilities = {name for group in graph.groups for name in group.probabilities}
    substitution = Substitution(module, left, product_bits, probabilities)
    merged = merge_operations(module, left, merge)
    rewriter = Rewriter(module, settings, act_bits, image_maps, substitution)
    rewriter.run()
    restore_merged(module)
    float_operations = rewriter.find_float_operations()
    replace_standalone_norms(module)
    module.delete_all_unused_submodules()
    for parameter in module.parameters():
        # Integers, such as places to gather values from, have no gradient.
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    module.graph.lint()
    module.recompile()
    sources = {node.name: source for node, source in rewriter.scale_sources.items()}
    return IntegerNetwork(
        module=module,
        input_shape=graph.input_shape,
        float_operations=float_operations,
        scale_sources=sources,
        image_maps=image_maps,
        left_in_float=left,
        exclusions=graph.exclusions,
        sites=tuple(rewriter.sites),
        quantize_sums=settings.quantize_sums,
        product_bits=product_bits,
        merged=merged,
    )


def _drop_casts(module: GraphModule, left_in_float: frozenset[str]) -> None:
    """Remove casts to the type that a value has, and read the types of values in advance.

    In evaluation values are float64 multiples of a scale, integers in integer arithmetic; what the
    network does with their types must not depend on that.
    """
    for node in list(module.graph.nodes):
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if source is None or node.name in left_in_float:
            continue
        kind = source.meta.get("dtype")
        name = operation(node, module)
        if kind is not None and node.kwargs.get("dtype") == kind and name == "mean":
            node.kwargs = {key: value for key, value in node.kwargs.items() if key != "dtype"}
        if name == "getattr" and node.args[1:] == ("dtype",) and kind is not None:
            _put_constant(node, kind)
        elif name in CASTS and node.op != "call_module" and carries_values(source):
            if kind is not None and node.meta.get("dtype") == kind:
                node.replace_all_uses_with(source)
        else:
            continue
        if not node.users:
            module.graph.erase_node(node)


def _put_constant(node: Node, value: Any) -> None:
    """Put a value in the place of a node, wherever others take it for an argument."""
    for user in list(node.users):
        user.args = map_arg(user.args, lambda given: value if given is node else given)
        user.kwargs = map_arg(user.kwargs, lambda given: value if given is node else given)


def _quantize_layers(
    module: GraphModule, graph: NetworkGraph, bits: Mapping[str, int], settings: ConversionSettings
) -> None:
    """Put quantized layers in the place of the float ones and their batch norms."""
    norms: dict[str, str] = {}
    by_weight: dict[int, list[QuantizedLayer]] = {}
    for name, layer in graph.layers.items():
        norm = None
        if layer.batch_norm is not None:
            found = module.get_submodule(layer.batch_norm)
            norm = found if isinstance(found, _BatchNorm) else None
            norms[layer.batch_norm] = name
        float_layer = get_layer(module, name)
        sharers = by_weight.setdefault(id(float_layer.weight), [])
        fake_quantizer = (
            sharers[0].fake_quantizer if sharers else WeightFakeQuantizer(bits[name], settings.rule)
        )
        fake_quantizer.to(float_layer.weight.device)
        quantized = QuantizedLayer(float_layer, norm, fake_quantizer, settings.bias_bits)
        sharers.append(quantized)
        module.set_submodule(name, quantized)
    for layers in by_weight.values():
        for quantized in layers:
            quantized.share_weight(layers)
    _call_by_position(module, norms)


def _call_by_position(module: GraphModule, norms: Mapping[str, str]) -> None:
    """Let layers take their input by its place, and skip the norms that are in them now."""
    for node in list(module.graph.nodes):
        if node.op != "call_module":
            continue
        if node.target in norms:
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
        elif isinstance(module.get_submodule(str(node.target)), QuantizedLayer):
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
