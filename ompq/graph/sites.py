"""Where activations are quantized: the values that layers read."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from ompq.graph.network import NetworkGraph
from ompq.graph.operations import IDENTITIES, LAYOUTS, MAX_POOLS, operation

# These hand on their input's values, so that these are quantized already where they come out.
_SELECTING = LAYOUTS | IDENTITIES | MAX_POOLS


def activation_sites(graph: NetworkGraph) -> dict[str, tuple[str, ...]]:
    """Node whose value is to be quantized → the layers that read it, in execution order.

    Every layer reads a quantized value: the network's input, or what was computed last before it,
    reshaping and max pooling aside. Whoever else reads that value (a residual add) reads it
    quantized too. The network's output is read by no layer and stays as it is.
    """
    nodes = {node.name: node for node in graph.module.graph.nodes}
    readers: dict[str, list[str]] = {}
    for layer in graph.layers.values():
        for call in layer.nodes:
            source = _producer(nodes[call], graph.module)
            if source is not None and layer.name not in readers.setdefault(source.name, []):
                readers[source.name].append(layer.name)
    return {name: tuple(readers[name]) for name in nodes if name in readers}


def _producer(call: Node, module: GraphModule) -> Node | None:
    source = call.all_input_nodes[0]
    while source.op not in ("placeholder", "get_attr") and operation(source, module) in _SELECTING:
        source = source.all_input_nodes[0]
    return None if source.op == "get_attr" else source
