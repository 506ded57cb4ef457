"""What one block learns from, and the loss that it is to make small."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from ompq.graph import ImageLayout

_FORWARD_BATCH = 128


@dataclass(frozen=True)
class Examples:
    """Inputs and targets of a block for n images, wherever they are kept.

    Attributes:
        inputs: Values that the quantized network before this block hands it, each n × ….
        float_inputs: Values that the float network hands the block, each n × ….
        targets: Values that the float network's block gives, each n × ….
        importances: Weights of the targets' values, of their shapes; None for 1.
        device: Device that the block computes on.
        input_layouts: Place of the images in each input, as the block takes it.
        target_layouts: Place of the images in each output, as the block gives it.
    """

    inputs: Sequence[Tensor]
    float_inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    importances: Sequence[Tensor | None]
    device: torch.device
    input_layouts: Sequence[ImageLayout] = ()
    target_layouts: Sequence[ImageLayout] = ()

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take_inputs(self, index: Tensor, *, of_float: bool = False) -> list[Tensor]:
        """Copy the inputs of some images to the device, arranged as the block takes them."""
        values = self.float_inputs if of_float else self.inputs
        return self._take(values, self.input_layouts, index)

    def take_targets(self, index: Tensor) -> list[Tensor]:
        """Copy the targets of some images to the device, arranged as the block gives them."""
        return self._take(self.targets, self.target_layouts, index)

    def take_importances(self, index: Tensor) -> list[Tensor | None]:
        """Copy the importances of some images to the device, arranged as the targets are."""
        layouts = self.target_layouts or [ImageLayout()] * len(self.importances)
        pairs = zip(self.importances, layouts, strict=True)
        return [None if v is None else self._pick(v, layout, index) for v, layout in pairs]

    def _take(
        self, values: Sequence[Tensor], layouts: Sequence[ImageLayout], index: Tensor
    ) -> list[Tensor]:
        pairs = zip(values, layouts or [ImageLayout()] * len(values), strict=True)
        return [self._pick(value, layout, index) for value, layout in pairs]

    def _pick(self, value: Tensor, layout: ImageLayout, index: Tensor) -> Tensor:
        chosen = value[index.to(value.device)].to(self.device, non_blocking=True)
        return layout.join(chosen)

    def draw(self, count: int) -> Tensor:
        """Draw the indices of `count` images from PyTorch's generator, none twice."""
        return torch.randperm(len(self))[:count]

    def iterate_batches(self) -> Iterator[Tensor]:
        """Yield the indices of all images in order, batch by batch."""
        yield from torch.arange(len(self)).split(_FORWARD_BATCH)


def compute_loss(
    outputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    importances: Sequence[Tensor | None],
    power: float = 2.0,
) -> Tensor:
    """Compute Σ over channels of w |ŷ − y|^p, averaged over images and positions.

    The losses of several outputs add up.

    >>> output, target = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 2)
    >>> float(compute_loss([output], [target], [None]))  # ((1 + 4) + (9 + 16)) / 2
    15.0
    >>> float(compute_loss([output], [target], [torch.tensor([[1.0, 0.0], [1.0, 0.0]])], power=1))
    2.0

    Args:
        outputs: Outputs ŷ of the block, each n × channels × ….
        targets: Targets y, each of the shape of its output.
        importances: Weights w, each of the shape of its output; None for 1 (BRECQ, equation 10:
            squared gradients).
        power: Power p.

    Returns:
        A scalar, on the device of the outputs.
    """
    total = torch.zeros((), device=outputs[0].device)
    for output, target, importance in zip(outputs, targets, importances, strict=True):
        channels = output.shape[1] if output.dim() > 1 else 1
        # PyTorch's fused loss keeps less for the backward pass than the general formula.
        if importance is None and power == 2:
            total = total + channels * mse_loss(output, target)
            continue
        error = (output - target).abs().pow(power)
        error = error if importance is None else error * importance
        total = total + channels * error.mean()
    return total


@torch.no_grad()
def measure_loss(
    block: nn.Module, examples: Examples, weights: dict[str, Tensor], power: float = 2.0
) -> float:
    """Measure the loss of a block over all examples.

    Args:
        block: Block that computes the outputs.
        examples: Inputs and targets of that block.
        weights: Layer → weight to compute with in place of the block's own.
        power: Power p of the loss.
    """
    total = 0.0
    replaced = {f"{name}.weight": value for name, value in weights.items()}
    for index in examples.iterate_batches():
        outputs = functional_call(block, replaced, tuple(examples.take_inputs(index)))
        targets = examples.take_targets(index)
        loss = compute_loss(outputs, targets, examples.take_importances(index), power)
        total += float(loss) * len(index)
    return total / len(examples)
