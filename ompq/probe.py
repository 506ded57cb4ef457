"""What a network gives for one fixed image: by that its code is known again.

A file of a quantized network holds its numbers, and not the code of a user's own module. Where that
was changed since (a stride, a padding), the numbers fit, and the network computes something else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ompq.errors import OmpqError
from ompq.evaluation import find_device, in_evaluation
from ompq.integer import IntegerNetwork
from ompq.quantized import QuantizedNetwork

# Outputs that are remembered, spread over all of them, and their significant digits.
_COUNT = 8
_DIGITS = 7
# Largest difference, in standard deviations of the outputs: where all machines compute alike, and
# where a float that differs by its last bit may be rounded to the next step of an activation.
_ALIKE, _ROUNDED = 0.02, 0.5


def probe(network: QuantizedNetwork | IntegerNetwork) -> list[float]:
    """Compute a few outputs for a fixed image; none where they do not stay the same.

    Args:
        network: Quantized network on any device; its modules are left in the mode they are in.
    """
    module = network.module
    image = _make_image(network.input_shape).to(find_device(module))
    with in_evaluation(module), torch.inference_mode():
        outputs = [_select(module(image)) for _ in range(2)]
    return outputs[0] if outputs[0] == outputs[1] else []


def check_probe(
    network: QuantizedNetwork | IntegerNetwork, expected: Sequence[float], name: str
) -> None:
    """Refuse a network that gives other outputs for the fixed image than are expected.

    Args:
        network: Quantized network.
        expected: Outputs that `probe` gave where it was written; none to accept every network.
        name: Name of its file and its own, for the error.

    Raises:
        OmpqError: They differ by more than machines do.
    """
    if not expected:
        return
    found = probe(network)
    told = torch.tensor(expected, dtype=torch.float64)
    spread = max(float(told.std(correction=0)), 1e-3 * float(told.abs().max()), 1e-9)
    allowed = spread * (_ROUNDED if _may_round_otherwise(network) else _ALIKE)
    pairs = list(zip(found, expected, strict=False))
    if len(found) == len(expected) and all(abs(a - b) <= allowed for a, b in pairs):
        return
    other = next((f"{a:g} for {b:g}" for a, b in pairs if abs(a - b) > allowed), "their number")
    raise OmpqError(
        f"{name} computes something else than when the file was written ({other} on the same "
        "image): its code was changed since; give the code of that time, or quantize it again"
    )


def _may_round_otherwise(network: QuantizedNetwork | IntegerNetwork) -> bool:
    """Tell whether activations are rounded that floats have gone into."""
    if isinstance(network, IntegerNetwork):
        return not network.runs_on_integers
    return any(quantizer.enabled for quantizer in network.activations().values())


def _make_image(shape: Sequence[int]) -> Tensor:
    """Make the fixed image, 1 × channels × height × width, of values from -2 to 2."""
    count = math.prod(shape)
    # Each value has few bits, so that all machines make the same image.
    values = (torch.arange(count) * 37 + torch.arange(count) // 61) % 257
    return (values.float() / 64 - 2).reshape(1, *shape)


def _select(output: object) -> list[float]:
    """Select outputs that are spread over all of them; none of what is no tensor of numbers."""
    if not isinstance(output, Tensor) or not output.numel() or not output.isfinite().all():
        return []
    flat = output.detach().double().cpu().flatten()
    places = torch.linspace(0, len(flat) - 1, min(_COUNT, len(flat))).long()
    return [float(f"{value:.{_DIGITS}g}") for value in flat[places].tolist()]
