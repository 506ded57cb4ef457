"""A network that computes with quantized weights and activations, and the integers they are.

It simulates quantization: everything is computed in float, on values that integers stand for.
Networks that compute with the integers themselves are in `ompq.integer`; they are what is deployed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ompq.assignment import Assignment
from ompq.cost import PIXEL_BITS
from ompq.graph import (
    Exclusions,
    NetworkGraph,
    find_activation_sites,
    find_image_maps,
    find_product_sites,
    fold_batch_norm,
)
from ompq.graph.copying import copy_traced
from ompq.graph.shapes import copy_shape
from ompq.integer import IntegerNetwork, QuantizedSite
from ompq.quantizers import ActivationQuantizer, QuantParams, dequantize

# Path of the quantizers in the traced network; each is called after the node whose value it takes.
QUANTIZER_PATH = "activation_quantizers"


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers of a layer's weight, with the scale and zero point that give them their values.

    Attributes:
        integers: int8, or uint8 where the range begins at 0; of the weight's shape, on the CPU.
        params: Scale, zero point and range of the integers, on the CPU.
    """

    integers: Tensor
    params: QuantParams

    @classmethod
    def of(cls, integers: Tensor, params: QuantParams) -> QuantizedWeight:
        """Make a quantized weight from integers of any integer type and device.

        Args:
            integers: Integers of the weight, within the range of `params`.
            params: Scale, zero point and range of the integers.
        """
        kind = torch.uint8 if params.low >= 0 else torch.int8
        held = QuantParams(params.scale.cpu(), params.zero_point.cpu(), params.low, params.high)
        return cls(integers.to(device="cpu", dtype=kind), held)

    @property
    def bits(self) -> int:
        """Return the width of the integers in bits."""
        return (self.params.high - self.params.low).bit_length()

    def values(self) -> Tensor:
        """Return the float32 weights that the integers stand for."""
        return dequantize(self.integers.int(), self.params)


@dataclass
class QuantizedNetwork:
    """A traced network, batch norm folded, with a quantizer at every activation that layers read.

    The activation quantizers start disabled.

    Attributes:
        graph: Structure of the network; its module computes.
        weights: Integers of the layers that are quantized, by layer; the layers' own weights hold
            the values that these integers stand for.
        integers: Network that computes with the integers, once it is known; None before, and for
            one whose activations stay in float.
    """

    graph: NetworkGraph
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)
    integers: IntegerNetwork | None = None

    @property
    def module(self) -> GraphModule:
        """Return the module that computes the network."""
        return self.graph.module

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return channels, height and width of an image."""
        return self.graph.input_shape

    @property
    def exclusions(self) -> Exclusions:
        """Return what of the float network was left as it is."""
        return self.graph.exclusions

    @property
    def deployed(self) -> QuantizedNetwork | IntegerNetwork:
        """Return what is written and deployed: the integers, where there are any."""
        return self if self.integers is None else self.integers

    def calls(self) -> dict[str, str]:
        """Map each quantized node to the node that calls its quantizer, in execution order."""
        prefix = QUANTIZER_PATH + "."
        return {
            str(node.target).removeprefix(prefix): node.name
            for node in self.module.graph.nodes
            if node.op == "call_module" and str(node.target).startswith(prefix)
        }

    def activations(self) -> dict[str, ActivationQuantizer]:
        """Map each quantized node to the quantizer of its value, in execution order."""
        return {
            site: _get_quantizer(self.module, f"{QUANTIZER_PATH}.{site}") for site in self.calls()
        }

    def readers(self) -> dict[str, tuple[str, ...]]:
        """Map each quantized node to the layers that read its quantized value."""
        return self._find_at_sites(find_activation_sites(self.graph))

    def product_readers(self) -> dict[str, tuple[str, ...]]:
        """Map each quantized node to the layers that products of its quantized value lead to."""
        return self._find_at_sites(find_product_sites(self.graph))

    def _find_at_sites(self, readers: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        # All read the node that calls the quantizer, so that is where they are found.
        return {site: readers[call] for site, call in self.calls().items() if call in readers}

    @torch.no_grad()
    def set_weight(self, layer: str, weight: QuantizedWeight) -> None:
        """Give a layer its integers, and the values that these stand for as its weight."""
        self.weights[layer] = weight
        self.graph.layer_module(layer).weight.copy_(weight.values())

    def find_source(self, layer: str) -> ActivationQuantizer | None:
        """Find the quantizer whose values a layer reads; None where it reads floats."""
        for site, layers in self.readers().items():
            if layer in layers:
                return _get_quantizer(self.module, f"{QUANTIZER_PATH}.{site}")
        return None

    @torch.no_grad()
    def round_bias(self, layer: str) -> None:
        """Round a layer's bias to the grid of its sums, as integers of 32 bits will hold it.

        Args:
            layer: Layer with quantized weights; nothing is done where it has no bias, or reads
                floats.
        """
        bias, source = self.graph.layer_module(layer).bias, self.find_source(layer)
        if bias is None or source is None or not source.enabled:
            return
        scale = self.weights[layer].params.scale.double() * source.params.scale.double()
        scale = scale.to(bias.device)
        bias.copy_(torch.round(bias.double() / scale) * scale)

    def copy(self) -> QuantizedNetwork:
        """Return an independent copy of the network."""
        module = copy_traced(self.module)
        return QuantizedNetwork(self.graph.with_module(module), dict(self.weights))


def make_quantizable(graph: NetworkGraph, assignment: Assignment) -> QuantizedNetwork:
    """Prepare a copy of a network for quantization: fold batch norm, insert activation quantizers.

    The copy still computes what the float network computes. A value that several layers or products
    read gets the widest of their activation widths; the images, normalised by the network or not,
    keep the 8 bits of their pixels.

    Args:
        graph: Float network.
        assignment: Widths of its groups.
    """
    folded = fold_batch_norm(graph)
    act_bits = assignment.layer_act_bits()
    readers = find_activation_sites(folded)
    for site, layers in find_product_sites(folded).items():
        readers[site] = (*readers.get(site, ()), *layers)
    widths = {site: max(act_bits[layer] for layer in layers) for site, layers in readers.items()}
    images = {node.name for node in find_image_maps(folded.module)}
    widths |= {name: PIXEL_BITS for name in images if name in widths}
    return QuantizedNetwork(insert_quantizers(folded, widths))


def simulate(graph: NetworkGraph, sites: Iterable[QuantizedSite]) -> QuantizedNetwork:
    """Prepare a network to be quantized where a network of integers quantizes it.

    The traced module is changed in place; it still computes what it did.

    Args:
        graph: Float network, batch norm folded, that the network of integers was converted from.
        sites: Places at which the network of integers quantizes values, in order.
    """
    module = graph.module
    nodes = {node.name: node for node in module.graph.nodes}
    device = next(module.parameters()).device
    calls: dict[str, Node] = {}
    for site in sites:
        value = calls[site.behind] if site.behind else nodes[site.node]
        path = f"{QUANTIZER_PATH}.{site.path}"
        module.add_submodule(path, ActivationQuantizer(site.bits).to(device))
        with module.graph.inserting_after(value):
            call = calls[site.path] = module.graph.call_module(path, (value,))
        copy_shape(call, value)
        for reader in site.readers:
            nodes[reader].replace_input_with(value, call)
    module.recompile()
    return QuantizedNetwork(graph.with_module(module.eval()))


def insert_quantizers(graph: NetworkGraph, widths: Mapping[str, int]) -> NetworkGraph:
    """Insert a disabled quantizer after some nodes; whatever reads their values reads its output.

    The traced module is changed in place.

    Args:
        graph: Traced network.
        widths: Width of each value to quantize, by the name of its node.

    Returns:
        The view of the changed network.
    """
    module = graph.module
    nodes = {node.name: node for node in module.graph.nodes}
    device = next(module.parameters()).device
    for site, width in widths.items():
        node = nodes[site]
        path = f"{QUANTIZER_PATH}.{site}"
        module.add_submodule(path, ActivationQuantizer(width).to(device))
        with module.graph.inserting_after(node):
            call = module.graph.call_module(path, (node,))
        copy_shape(call, node)
        # All users of the value but the quantizer itself.
        node.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)
    module.recompile()
    return graph.with_module(module.eval())


def _get_quantizer(module: GraphModule, path: str) -> ActivationQuantizer:
    found = module.get_submodule(path)
    if not isinstance(found, ActivationQuantizer):
        raise TypeError(f"{path} is a {type(found).__name__}")
    return found
