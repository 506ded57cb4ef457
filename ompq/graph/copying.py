"""Copies of networks and of traced networks, which share nothing with them or what they are to."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule


def copy_traced(module: GraphModule) -> GraphModule:
    """Return a copy of a traced network that shares nothing with it, graph and name included."""
    return GraphModule(copy_module(module), copy.deepcopy(module.graph), module._get_name())


def copy_with_original(original: nn.Module, traced: GraphModule) -> tuple[nn.Module, GraphModule]:
    """Return copies of a network and of the traced one, which share what these share."""
    network, module = copy_module(nn.ModuleList((original, traced))).children()
    return network, GraphModule(module, copy.deepcopy(traced.graph), traced._get_name())


def copy_structure(network: nn.Module) -> nn.Module:
    """Return a copy of a module whose parameters and buffers are those of the original."""
    return copy_module(network, (*network.parameters(), *network.buffers()))


def copy_module(module: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """Return a copy of a module, whatever its hooks have computed (pruned or normalised weights).

    Args:
        module: Module to copy.
        shared: Tensors of it that the copy is to share.
    """
    memo = {id(value): value for value in shared}
    for part in module.modules():
        for value in vars(part).values():
            # PyTorch copies no tensor that was computed with gradients.
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    with torch.no_grad():  # the parameters of a TorchScript module would not be leaves
        return copy.deepcopy(module, memo)
