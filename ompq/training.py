"""Plain float training, for networks that come without weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ompq.data import Loader
from ompq.runtime import progress


def train_float(
    network: nn.Module,
    loader: Loader,
    epochs: int,
    device: torch.device,
    *,
    learning_rate: float = 0.1,
    weight_decay: float = 5e-4,
) -> nn.Module:
    """Train in place: SGD with momentum 0.9, one-cycle learning rate per step, cross entropy.

    Returns:
        The network, on `device`, in evaluation mode.
    """
    network = network.to(device).train()
    parameters = network.parameters()
    optimizer = torch.optim.SGD(
        parameters, learning_rate, momentum=0.9, weight_decay=weight_decay, nesterov=True
    )
    steps = epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    for epoch in progress(range(epochs), "training the float network", epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            loss = cross_entropy(network(images.to(device)), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()
