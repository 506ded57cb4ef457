"""Reconstruction of one block: made to compute what the float network computes there.

BRECQ (arXiv:2102.05426) learns the rounding of a block's weights W by AdaRound (arXiv:2004.10568),

    min over V of E[Σ |ŷ(V) − y|²] + λ Σ (1 − |2h(V) − 1|^b),

with y what the float network's block gives, ŷ what the block gives with the softly rounded weights
s · (floor(W / s) + h(V)), and b falling from step to step; then the scales of its activations, by
the loss Σ |ŷ − y|^p. QDrop (arXiv:2203.05740) quantizes the activations already while weights are
learned, but for a random share of their values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import GraphModule, Interpreter
from tqdm import tqdm

from ompq.quantizers import (
    ActivationQuantizer,
    AdaRound,
    QuantParams,
    activation_quantizers,
    dequantize,
    enabled,
    lp_scale,
    quantize,
)
from ompq.runtime import progress
from PTQ.examples import Examples, compute_loss, measure_loss
from PTQ.settings import Settings

# Adam's step for the rounding variables: BRECQ's own for the published number of iterations; with
# fewer, larger, for they have the same way to go; up to where larger ones stop helping.
_ROUNDING_LR = 1e-3
_PUBLISHED_ITERATIONS = 20000
_MOST_FASTER = 40
# Images whose activations give the scales that learning starts from.
_FITTED_IMAGES = 128
# Learning leaves an activation's scale at least this share of the searched one.
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class WeightResult:
    """Quantized weights of a block, and what their rounding was chosen by.

    Attributes:
        integers: Layer → the integers of its weight.
        params: Layer → scale, zero point and range of its weight.
        loss_before: Loss of rounding to nearest.
        loss_after: Loss of the integers that were kept.
        kept: Which integers were kept: `reconstruction`, or the reason for anything else.
    """

    integers: dict[str, Tensor]
    params: dict[str, QuantParams]
    loss_before: float
    loss_after: float
    kept: str


def round_block(block: GraphModule, bits: dict[str, int], settings: Settings) -> WeightResult:
    """Round the weights of a block to nearest, with scales found by L_2.4 search.

    Args:
        block: Block, or whole network, whose layers hold float weights.
        bits: Layer → width of its weight, for the layers to round.
        settings: Settings of the reconstruction.
    """
    params = {
        name: lp_scale(
            _weight(block, name),
            width,
            symmetric=settings.is_symmetric(width),
            per_channel=settings.per_channel,
        )
        for name, width in bits.items()
    }
    integers = {name: quantize(_weight(block, name), found) for name, found in params.items()}
    return WeightResult(integers, params, math.nan, math.nan, "rounding")


def reconstruct_weights(
    block: GraphModule, examples: Examples, bits: dict[str, int], settings: Settings, title: str
) -> WeightResult:
    """Learn the rounding of a block's weights (AdaRound), and keep what is better on the examples.

    Activations are in float unless QDrop is asked for.

    Args:
        block: Block whose layers hold float weights.
        examples: Inputs and targets of that block.
        bits: Layer → width of its weight, for the layers to quantize.
        settings: Settings of the reconstruction.
        title: Title of the progress bar.
    """
    nearest = round_block(block, bits, settings)
    if not bits:
        loss = measure_loss(block, examples, {})
        return WeightResult({}, {}, loss, loss, "an earlier block's")
    before = measure_loss(block, examples, _dequantize_weights(nearest))
    roundings = {name: AdaRound(_weight(block, name), nearest.params[name]) for name in bits}
    with _dropping(block, examples, settings):
        finite = _learn_rounding(block, examples, roundings, settings, title)
    learned = {name: rounding.integers() for name, rounding in roundings.items()}
    result = WeightResult(learned, nearest.params, before, before, "reconstruction")
    # The loss of the hard rounding: AdaRound's own loss was that of the soft one.
    after = measure_loss(block, examples, _dequantize_weights(result))
    if not finite or not after < before:
        kept = "rounding" if finite else "rounding (the loss was not finite)"
        return WeightResult(nearest.integers, nearest.params, before, before, kept)
    return WeightResult(learned, nearest.params, before, after, "reconstruction")


def _learn_rounding(
    block: GraphModule,
    examples: Examples,
    roundings: dict[str, AdaRound],
    settings: Settings,
    title: str,
) -> bool:
    """Run AdaRound in place, and tell whether the loss stayed finite."""
    steps, images = settings.plan_updates(settings.weight_iterations)
    faster = min(max(1.0, _PUBLISHED_ITERATIONS / max(1, steps)), _MOST_FASTER)
    rate = _ROUNDING_LR * faster
    optimizer = torch.optim.Adam([r.logit for r in roundings.values()], lr=rate, fused=True)
    warm = round(steps * settings.warmup)
    bar = progress(range(steps), f"{title}: weights", steps)
    for step in bar:
        index = examples.draw(images)
        # A large exponent leaves most elements free; as it falls, the regulariser pushes all of
        # them to 0 or 1.
        for rounding in roundings.values():
            share = (step - warm) / max(1, steps - warm)
            rounding.penalty = settings.rounding_weight if step >= warm else 0.0
            rounding.exponent = settings.b_end + (settings.b_start - settings.b_end) * (1 - share)
        inputs = examples.take_inputs(index)
        if settings.drop_probability is not None:
            float_inputs = examples.take_inputs(index, of_float=True)
            inputs = _mix(inputs, float_inputs, settings.drop_probability)
        weights = {f"{name}.weight": r.weight() for name, r in roundings.items()}
        outputs = functional_call(block, weights, tuple(inputs))
        targets = examples.take_targets(index)
        loss = compute_loss(outputs, targets, examples.take_importances(index))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if _is_due(step, steps) and not _show(bar, loss):
            return False
    return all(bool(r.logit.isfinite().all()) for r in roundings.values())


@dataclass(frozen=True)
class ActivationResult:
    """Quantized activations of a block, and what their scales were chosen by.

    Attributes:
        params: Path of an activation quantizer → its scale, zero point and range.
        loss_before: Loss with the scales that were searched.
        loss_after: Loss with the scales that were kept.
        kept: Which scales were kept: `learned`, or `searched` with the reason.
    """

    params: dict[str, QuantParams]
    loss_before: float
    loss_after: float
    kept: str


def reconstruct_activations(
    block: GraphModule, examples: Examples, settings: Settings, title: str
) -> ActivationResult:
    """Search, then learn the scales of a block's activations, and keep what is better.

    The activation quantizers end enabled, with the scales and zero points that are returned.

    Args:
        block: Block whose layers hold their quantized weights.
        examples: Inputs and targets of that block.
        settings: Settings of the reconstruction.
        title: Title of the progress bar.
    """
    quantizers = activation_quantizers(block)
    fit_activations(block, examples)
    searched = {name: quantizer.params for name, quantizer in quantizers.items()}
    for quantizer in quantizers.values():
        quantizer.enabled = True
    before = measure_loss(block, examples, {}, settings.act_power)
    finite = _learn_scales(block, examples, list(quantizers.values()), settings, title)
    after = measure_loss(block, examples, {}, settings.act_power) if finite else math.nan
    if after < before:
        learned = {name: quantizer.params for name, quantizer in quantizers.items()}
        return ActivationResult(learned, before, after, "learned")
    for name, quantizer in quantizers.items():
        quantizer.set(searched[name])
    kept = "searched" if finite else "searched (the loss was not finite)"
    return ActivationResult(searched, before, before, kept)


def _learn_scales(
    block: GraphModule,
    examples: Examples,
    quantizers: Sequence[ActivationQuantizer],
    settings: Settings,
    title: str,
) -> bool:
    """Learn the scales of activation quantizers in place, and tell whether all stayed finite."""
    steps, images = settings.plan_updates(settings.act_iterations)
    scales = [quantizer.scale for quantizer in quantizers]
    if not scales or not steps:
        return True
    optimizer = torch.optim.Adam(scales, lr=settings.act_lr)
    # Adam's steps are as long for a small scale as for a large one, and would take it below zero.
    least = [float(scale) * _LEAST_SHARE for scale in scales]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    with _requiring_grad(scales):
        bar = progress(range(steps), f"{title}: activations", steps)
        for step in bar:
            index = examples.draw(images)
            outputs = block(*examples.take_inputs(index))
            targets = examples.take_targets(index)
            importances = examples.take_importances(index)
            loss = compute_loss(outputs, targets, importances, settings.act_power)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for scale, bound in zip(scales, least, strict=True):
                    scale.clamp_(min=bound)
            schedule.step()
            if _is_due(step, steps) and not _show(bar, loss):
                return False
    return all(bool(scale.isfinite()) for scale in scales)


class _Fitting(Interpreter):
    """An interpreter that fits every activation quantizer to the values it is given."""

    def call_module(self, target: object, args: tuple, kwargs: dict) -> object:
        module = self.fetch_attr(str(target))
        if isinstance(module, ActivationQuantizer):
            module.fit(args[0])
        return super().call_module(str(target), args, kwargs)


@torch.no_grad()
def fit_activations(block: GraphModule, examples: Examples) -> None:
    """Search the scales of a block's activations in order, with those already found in use."""
    index = torch.arange(min(_FITTED_IMAGES, len(examples)))
    with enabled(block):
        _Fitting(block).run(*examples.take_inputs(index))


def _weight(block: GraphModule, layer: str) -> Tensor:
    weight = block.get_submodule(layer).weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{layer} has no weight")
    return weight.detach()


def _dequantize_weights(result: WeightResult) -> dict[str, Tensor]:
    return {
        name: dequantize(integers, result.params[name])
        for name, integers in result.integers.items()
    }


def _is_due(step: int, steps: int) -> bool:
    """Tell whether the loss is looked at after this step (which waits for the device)."""
    return step % 50 == 0 or step == steps - 1


def _show(bar: tqdm[int], loss: Tensor) -> bool:
    """Show the loss in the progress bar, and tell whether it is finite."""
    value = float(loss.detach())
    bar.set_postfix_str(f"loss {value:.4g}", refresh=False)
    return math.isfinite(value)


@contextmanager
def _dropping(block: GraphModule, examples: Examples, settings: Settings) -> Iterator[None]:
    """Quantize activations but for a random share of their values (QDrop), if it is asked for."""
    if settings.drop_probability is None:
        yield
        return
    fit_activations(block, examples)
    quantizers = activation_quantizers(block).values()
    with enabled(block):
        for quantizer in quantizers:
            quantizer.drop_probability = settings.drop_probability
        try:
            yield
        finally:
            for quantizer in quantizers:
                quantizer.drop_probability = 0.0


def _mix(quantized: list[Tensor], plain: list[Tensor], share: float) -> list[Tensor]:
    """Replace a random share of the quantized values by those of the float network."""
    return [
        torch.where(torch.rand_like(q) < share, p, q) for q, p in zip(quantized, plain, strict=True)
    ]


@contextmanager
def _requiring_grad(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
