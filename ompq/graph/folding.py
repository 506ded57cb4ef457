"""Folding of batch norm into the layer before it."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ompq.graph.copying import copy_traced
from ompq.graph.network import NetworkGraph
from ompq.graph.operations import get_layer


def fold_batch_norm(graph: NetworkGraph) -> NetworkGraph:
    """Fold each layer's own batch norm into its weights and bias, in a copy of the network.

    Batch norms that follow no layer directly stay. Layer names, groups and costs are those of the
    unfolded network.

    Args:
        graph: Traced network; it is not changed.

    Returns:
        The view of the folded copy.
    """
    module = copy_traced(graph.module)
    norms = {layer.batch_norm: layer.name for layer in graph.layers.values() if layer.batch_norm}
    for node in list(module.graph.nodes):
        if node.op == "call_module" and node.target in norms:
            name = norms[node.target]
            fused = _fuse(get_layer(module, name), module.get_submodule(node.target))
            module.set_submodule(name, fused)
            node.replace_all_uses_with(node.all_input_nodes[0])
            module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.recompile()
    return graph.with_module(module)


def _fuse(layer: nn.Conv2d | nn.Linear, norm: nn.Module) -> nn.Module:
    if not isinstance(norm, _BatchNorm):
        raise TypeError(f"{type(norm).__name__} is no batch norm")
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    return fuse_conv_bn_eval(layer, norm)
