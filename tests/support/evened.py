"""What reconstruction gains where channels are made even first, and that it stays in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ompq import load_quantized, save_quantized
from ompq.assignment import uniform
from ompq.graph import trace
from PTQ import Settings, quantize_network
from QAT import prepare


def check_gain_and_file(
    network: nn.Module, option: str, bits: int, act_bits: int, images: Tensor, folder: Path
) -> None:
    """Check that a setting takes a seventh of the rounding error, and lasts in file and training.

    Args:
        network: Network in evaluation mode.
        option: Field of `Settings` that is turned off and on.
        bits: Width of weights.
        act_bits: Width of activations.
        images: Images to calibrate and to judge by.
        folder: Folder for the file.
    """
    graph = trace(network, tuple(images.shape[1:]))
    widths, errors = uniform(graph.groups, bits, act_bits), []
    with torch.inference_mode():
        expected = network(images)
    for asked in (False, True):
        chosen: dict[str, Any] = {"equalise_norms": False, "equalise_layers": False, option: asked}
        settings = Settings(weight_iterations=0, act_iterations=0, correct_biases=False, **chosen)
        quantized, _ = quantize_network(graph, widths, images, settings)
        with torch.inference_mode():
            logits = quantized.deployed.module(images)
        errors.append(float((logits - expected).norm() / expected.norm()))
    assert errors[1] < 0.86 * errors[0]
    file = folder / "quantized.safetensors"
    save_quantized(file, quantized, widths)
    read = load_quantized(file, network)
    assert torch.equal(read.network.module(images), logits)
    tuned = prepare(graph, widths, images, source=read)
    tuned.module.eval()
    with torch.inference_mode():
        torch.testing.assert_close(tuned.module(images), logits)
