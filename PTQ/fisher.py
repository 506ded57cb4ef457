"""Diagonal Fisher information of the values between blocks.

With g the gradient of the log-likelihood of a label that is drawn from the network's own
prediction, E[g²] of a value is its entry on the diagonal of the Fisher information matrix; BRECQ
(arXiv:2102.05426), equation 10, weights the error of a block's output with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.functional import cross_entropy

from ompq.evaluation import draw_labels
from ompq.graph import Subgraph
from PTQ.activation_cache import ActivationCache

_BATCH = 32


class _GradientRecorder(Interpreter):
    """An interpreter of a network that keeps the gradients of some values."""

    def __init__(self, module: GraphModule, watched: Sequence[str]) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self._watched = set(watched)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if n.name in self._watched and isinstance(value, Tensor):
            # The first watched value starts the autograd graph: no parameter requires a gradient.
            if not value.requires_grad:
                value = value.detach().requires_grad_(True)
            value.retain_grad()
            # A copy goes on, so that in-place operations leave the watched value alone.
            self.values[n.name] = value
            return value.clone()
        return value


def measure_output_importances(
    module: GraphModule,
    blocks: Sequence[Subgraph],
    images: Tensor,
    cache: ActivationCache,
    seed: int,
) -> dict[str, Tensor]:
    """Measure E[g²] of every value that leaves a block, by one backward pass per batch.

    Every tensor of importances is scaled to mean 1.

    Args:
        module: Float network.
        blocks: Blocks of that network.
        images: Calibration images, n × channels × height × width, normalised.
        cache: Source of room for the importances.
        seed: Seed of the labels that are drawn.

    Returns:
        Output name → importances, n × the value's shape, float32. The network's output is among
        them.
    """
    device = next(module.parameters()).device
    layouts = {name: block.layouts[name] for block in blocks for name in block.outputs}
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, Tensor] = {}
    for index in torch.arange(len(images)).split(_BATCH):
        recorder = _GradientRecorder(module, list(layouts))
        logits = recorder.run(images[index].to(device))
        labels = draw_labels(logits, generator)
        # A sum keeps the gradients of the images apart; a mean would divide them by the batch.
        cross_entropy(logits, labels, reduction="sum").backward()
        for name, value in recorder.values.items():
            squares = torch.zeros_like(value) if value.grad is None else value.grad.square()
            squares = layouts[name].split(squares)
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
