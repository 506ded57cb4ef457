"""Diagonal Fisher information of the values between blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.functional import cross_entropy

from ompq.graph import Part
from ompq.metrics import drawn_labels
from PTQ.cache import Cache

_BATCH = 32


class _Watching(Interpreter):
    """Runs a network and keeps the gradients of some values."""

    def __init__(self, module: GraphModule, watched: Sequence[str]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._watched = set(watched)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if n.name in self._watched and isinstance(value, Tensor):
            if not value.requires_grad:
                value = value.detach().requires_grad_(True)
            value.retain_grad()
            # A copy goes on, so that in-place operations leave the watched value alone.
            self.values[n.name] = value
            return value.clone()
        return value


def output_importances(
    module: GraphModule, parts: Sequence[Part], images: Tensor, cache: Cache, seed: int
) -> dict[str, Tensor]:
    """E[g²] of every value that leaves a part, scaled to mean 1, from one backward pass per batch.

    g is the gradient of the log-likelihood of a label drawn from the network's own prediction, so
    that E[g²] is the diagonal Fisher information (BRECQ equation 10, arXiv:2102.05426).

    Args:
        module: the float network.
        parts: of that network.
        images: n × channels × height × width.
        cache: gives the room.
        seed: of the labels.

    Returns:
        output name → importances, n × the value's shape. The network's output is among them.
    """
    device = next(module.parameters()).device
    names = [name for part in parts for name in part.outputs]
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, Tensor] = {}
    for index in torch.arange(len(images)).split(_BATCH):
        run = _Watching(module, names)
        logits = run.run(images[index].to(device))
        labels = drawn_labels(logits, generator)
        cross_entropy(logits, labels, reduction="sum").backward()
        for name, value in run.values.items():
            squares = torch.zeros_like(value) if value.grad is None else value.grad.square()
            if name not in kept:
                kept[name] = cache.allocate((len(images), *squares.shape[1:]))
            kept[name][index.to(kept[name].device)] = squares.to(kept[name].device)
    for squares in kept.values():
        mean = float(squares.mean())
        if mean > 0:
            squares.div_(mean)
        else:
            squares.fill_(1.0)
    return kept
