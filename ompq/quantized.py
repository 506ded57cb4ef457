"""A network that computes with quantized weights and activations, and the integers behind it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule

from ompq.bitconfig import Assignment
from ompq.graph import NetworkGraph, activation_sites, fold_batch_norm
from ompq.quantizers import ActivationQuantizer, QuantParams, dequantize
from ompq.widths import PIXEL_BITS

# Path of the quantizers in the traced network; each is called after the node whose value it takes.
ACTIVATIONS = "activation_quantizers"


@dataclass(frozen=True)
class QuantizedWeight:
    """Integers of a layer's weight (int8, or uint8 where the range begins at 0) and their grid."""

    integers: Tensor
    params: QuantParams

    @classmethod
    def of(cls, integers: Tensor, params: QuantParams) -> QuantizedWeight:
        """From integers of any type, put on the CPU."""
        kind = torch.uint8 if params.low >= 0 else torch.int8
        grid = QuantParams(params.scale.cpu(), params.zero_point.cpu(), params.low, params.high)
        return cls(integers.to(device="cpu", dtype=kind), grid)

    @property
    def bits(self) -> int:
        """Width of the integers."""
        return (self.params.high - self.params.low).bit_length()

    def values(self) -> Tensor:
        """The float32 weights that the integers stand for."""
        return dequantize(self.integers.int(), self.params)


@dataclass
class QuantizedNetwork:
    """A traced network, batch norm folded, with a quantizer at every activation that layers read.

    `weights` holds the integers of the layers that are quantized; the layers' own weights are what
    these stand for. The activation quantizers start disabled.
    """

    graph: NetworkGraph
    weights: dict[str, QuantizedWeight] = field(default_factory=dict)

    @property
    def module(self) -> GraphModule:
        """What computes."""
        return self.graph.module

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels × height × width of an image."""
        return self.graph.input_shape

    def calls(self) -> dict[str, str]:
        """Node → the node that calls its quantizer, in execution order."""
        prefix = ACTIVATIONS + "."
        return {
            str(node.target).removeprefix(prefix): node.name
            for node in self.module.graph.nodes
            if node.op == "call_module" and str(node.target).startswith(prefix)
        }

    def activations(self) -> dict[str, ActivationQuantizer]:
        """Node → the quantizer of its value, in execution order."""
        return {site: _quantizer(self.module, f"{ACTIVATIONS}.{site}") for site in self.calls()}

    def readers(self) -> dict[str, tuple[str, ...]]:
        """Node → the layers that read its quantized value."""
        layers = activation_sites(self.graph)
        return {site: layers[call] for site, call in self.calls().items() if call in layers}

    @torch.no_grad()
    def set_weight(self, layer: str, weight: QuantizedWeight) -> None:
        """Give a layer its integers."""
        self.weights[layer] = weight
        self.graph.layer_module(layer).weight.copy_(weight.values())

    def copy(self) -> QuantizedNetwork:
        """One that shares nothing with this."""
        module = GraphModule(copy.deepcopy(self.module), copy.deepcopy(self.module.graph))
        return QuantizedNetwork(self.graph.with_module(module), dict(self.weights))


def prepare(graph: NetworkGraph, assignment: Assignment) -> QuantizedNetwork:
    """A copy of a network, ready to be quantized: batch norm folded, activation quantizers set in.

    It still computes what the float network computes. A value that several layers read gets the
    widest of their activation widths; the images keep the 8 bits of their pixels.

    Args:
        graph: the float network.
        assignment: the widths of its groups.
    """
    folded = fold_batch_norm(graph)
    act_bits = assignment.layer_act_bits()
    widths = {
        site: max(act_bits[layer] for layer in readers)
        for site, readers in activation_sites(folded).items()
    }
    images = [node.name for node in folded.module.graph.nodes if node.op == "placeholder"]
    widths |= {name: PIXEL_BITS for name in images if name in widths}
    return QuantizedNetwork(insert_quantizers(folded, widths))


def insert_quantizers(graph: NetworkGraph, widths: Mapping[str, int]) -> NetworkGraph:
    """Set a disabled quantizer behind some values; whoever reads them, reads them quantized.

    The traced module is changed in place.

    Args:
        graph: the network.
        widths: node → width of its value.
    """
    module = graph.module
    nodes = {node.name: node for node in module.graph.nodes}
    device = next(module.parameters()).device
    for site, width in widths.items():
        node = nodes[site]
        path = f"{ACTIVATIONS}.{site}"
        module.add_submodule(path, ActivationQuantizer(width).to(device))
        with module.graph.inserting_after(node):
            call = module.graph.call_module(path, (node,))
        call.meta["shape"] = node.meta["shape"]
        node.replace_all_uses_with(call, delete_user_cb=lambda user, call=call: user is not call)
    module.recompile()
    return graph.with_module(module.eval())


def _quantizer(module: GraphModule, path: str) -> ActivationQuantizer:
    found = module.get_submodule(path)
    if not isinstance(found, ActivationQuantizer):
        raise TypeError(f"{path} is a {type(found).__name__}")
    return found
