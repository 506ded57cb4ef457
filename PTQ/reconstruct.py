"""One part of a network, made to compute what the float network computes there."""

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
from PTQ.losses import reconstruction_loss
from PTQ.settings import Settings

# Adam's step for the rounding variables: BRECQ's own for the published number of iterations; with
# fewer, larger, for they have the same way to go; up to where larger ones stop helping.
_ROUNDING_LR, _PUBLISHED_ITERATIONS, _MOST_FASTER = 1e-3, 20000, 40
# Images whose activations give the scales that learning starts from.
_FITTED_IMAGES = 128
_FORWARD_BATCH = 128
# Learning leaves an activation's scale at least this share of the searched one.
_LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Examples:
    """What goes into a part and what should come out, for n images, wherever they are kept.

    `inputs` come from the quantized network before this part, `float_inputs` and `targets` from the
    float network; `importances` weight the targets' values, None for 1. `device` is where the part
    computes.
    """

    inputs: Sequence[Tensor]
    float_inputs: Sequence[Tensor]
    targets: Sequence[Tensor]
    importances: Sequence[Tensor | None]
    device: torch.device

    def __len__(self) -> int:
        return len(self.inputs[0])

    def take(self, values: Sequence[Tensor | None], index: Tensor) -> list[Tensor]:
        """Copies of some images' values, on the device."""
        return [self._pick(value, index) for value in values if value is not None]

    def importance(self, index: Tensor) -> list[Tensor | None]:
        """Some images' importances."""
        return [None if v is None else self._pick(v, index) for v in self.importances]

    def _pick(self, value: Tensor, index: Tensor) -> Tensor:
        return value[index.to(value.device)].to(self.device, non_blocking=True)

    def batches(self) -> Iterator[Tensor]:
        """Indices of all images in order."""
        yield from torch.arange(len(self)).split(_FORWARD_BATCH)


@dataclass(frozen=True)
class WeightResult:
    """Integers of every layer, and the loss of rounding to nearest and of what was learned.

    `kept` says which of the two the integers are: `reconstruction` or `rounding`.
    """

    integers: dict[str, Tensor]
    params: dict[str, QuantParams]
    loss_before: float
    loss_after: float
    kept: str


def round_part(part: GraphModule, bits: dict[str, int], settings: Settings) -> WeightResult:
    """Every layer of a part rounded to nearest, its grid found by L_2.4 search."""
    params = {
        name: lp_scale(
            _weight(part, name),
            width,
            symmetric=settings.symmetric,
            per_channel=settings.per_channel,
        )
        for name, width in bits.items()
    }
    integers = {name: quantize(_weight(part, name), grid) for name, grid in params.items()}
    return WeightResult(integers, params, math.nan, math.nan, "rounding")


def reconstruct_weights(
    part: GraphModule, examples: Examples, bits: dict[str, int], settings: Settings, title: str
) -> WeightResult:
    """Learn the rounding of a part's weights (AdaRound), and keep what is better on the examples.

    Activations are in float unless QDrop is asked for.

    Args:
        part: the part, its layers holding float weights.
        examples: of that part.
        bits: layer → width.
        settings: see `Settings`.
        title: of the progress bar.
    """
    nearest = round_part(part, bits, settings)
    if not bits:
        loss = total_loss(part, examples, {})
        return WeightResult({}, {}, loss, loss, "an earlier part's")
    weights = {name: _dequantized(nearest, name) for name in bits}
    before = total_loss(part, examples, weights)
    roundings = {name: AdaRound(_weight(part, name), nearest.params[name]) for name in bits}
    dropping = settings.drop_probability is not None
    with _dropping(part, examples, settings):
        finite = _learn_rounding(part, examples, roundings, settings, title, dropping)
    learned = {name: rounding.integers() for name, rounding in roundings.items()}
    result = WeightResult(learned, nearest.params, before, before, "reconstruction")
    after = total_loss(part, examples, {name: _dequantized(result, name) for name in bits})
    if not finite or not after < before:
        kept = "rounding" if finite else "rounding (the loss was not finite)"
        return WeightResult(nearest.integers, nearest.params, before, before, kept)
    return WeightResult(learned, nearest.params, before, after, "reconstruction")


def _learn_rounding(
    part: GraphModule,
    examples: Examples,
    roundings: dict[str, AdaRound],
    settings: Settings,
    title: str,
    dropping: bool,
) -> bool:
    """Run AdaRound in place; tells whether the loss stayed finite."""
    steps = settings.weight_iterations
    faster = min(max(1.0, _PUBLISHED_ITERATIONS / max(1, steps)), _MOST_FASTER)
    rate = _ROUNDING_LR * faster
    optimizer = torch.optim.Adam([r.logit for r in roundings.values()], lr=rate, fused=True)
    warm = round(steps * settings.warmup)
    bar = progress(range(steps), f"{title}: weights", steps)
    for step in bar:
        index = _drawn(examples, settings.batch_size)
        for rounding in roundings.values():
            share = (step - warm) / max(1, steps - warm)
            rounding.penalty = settings.rounding_weight if step >= warm else 0.0
            rounding.exponent = settings.b_end + (settings.b_start - settings.b_end) * (1 - share)
        inputs = examples.take(examples.inputs, index)
        if dropping:
            plain = examples.take(examples.float_inputs, index)
            inputs = _mixed(inputs, plain, settings.drop_probability or 0.0)
        weights = {f"{name}.weight": r.weight() for name, r in roundings.items()}
        outputs = functional_call(part, weights, tuple(inputs))
        targets = examples.take(examples.targets, index)
        loss = reconstruction_loss(outputs, targets, examples.importance(index))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if _due(step, steps) and not _shown(bar, loss):
            return False
    return all(bool(r.logit.isfinite().all()) for r in roundings.values())


@dataclass(frozen=True)
class ActivationResult:
    """Grid of every activation, and the loss with the grids that were searched and learned."""

    params: dict[str, QuantParams]
    loss_before: float
    loss_after: float
    kept: str


def reconstruct_activations(
    part: GraphModule, examples: Examples, settings: Settings, title: str
) -> ActivationResult:
    """Search, then learn the step sizes of a part's activations, and keep what is better.

    The part holds its quantized weights and reads what the quantized network hands it. Its
    quantizers end enabled, with the grids that are returned.
    """
    quantizers = activation_quantizers(part)
    fit_activations(part, examples)
    searched = {name: quantizer.params for name, quantizer in quantizers.items()}
    for quantizer in quantizers.values():
        quantizer.enabled = True
    before = total_loss(part, examples, {}, settings.act_power)
    finite = _learn_steps(part, examples, list(quantizers.values()), settings, title)
    after = total_loss(part, examples, {}, settings.act_power) if finite else math.nan
    if after < before:
        learned = {name: quantizer.params for name, quantizer in quantizers.items()}
        return ActivationResult(learned, before, after, "learned")
    for name, quantizer in quantizers.items():
        quantizer.set(searched[name])
    kept = "searched" if finite else "searched (the loss was not finite)"
    return ActivationResult(searched, before, before, kept)


def _learn_steps(
    part: GraphModule,
    examples: Examples,
    quantizers: Sequence[ActivationQuantizer],
    settings: Settings,
    title: str,
) -> bool:
    steps = settings.act_iterations
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
            index = _drawn(examples, settings.batch_size)
            outputs = part(*examples.take(examples.inputs, index))
            targets = examples.take(examples.targets, index)
            importance = examples.importance(index)
            loss = reconstruction_loss(outputs, targets, importance, settings.act_power)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for scale, bound in zip(scales, least, strict=True):
                    scale.clamp_(min=bound)
            schedule.step()
            if _due(step, steps) and not _shown(bar, loss):
                return False
    return all(bool(scale.isfinite()) for scale in scales)


@torch.no_grad()
def total_loss(
    part: nn.Module, examples: Examples, weights: dict[str, Tensor], power: float = 2.0
) -> float:
    """The loss over all examples, with other weights (layer → tensor) in place of the part's."""
    total = 0.0
    replaced = {f"{name}.weight": value for name, value in weights.items()}
    for index in examples.batches():
        outputs = functional_call(part, replaced, tuple(examples.take(examples.inputs, index)))
        targets = examples.take(examples.targets, index)
        loss = reconstruction_loss(outputs, targets, examples.importance(index), power)
        total += float(loss) * len(index)
    return total / len(examples)


class _Fitting(Interpreter):
    """Runs a part; every activation quantizer fits its grid to what it is given, then rounds."""

    def call_module(self, target: object, args: tuple, kwargs: dict) -> object:
        module = self.fetch_attr(str(target))
        if isinstance(module, ActivationQuantizer):
            module.fit(args[0])
        return super().call_module(str(target), args, kwargs)


@torch.no_grad()
def fit_activations(part: GraphModule, examples: Examples) -> None:
    """Search the grids of a part's activations, each given that those before it are rounded."""
    index = torch.arange(min(_FITTED_IMAGES, len(examples)))
    with enabled(part):
        _Fitting(part).run(*examples.take(examples.inputs, index))


def _weight(part: GraphModule, layer: str) -> Tensor:
    weight = part.get_submodule(layer).weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{layer} has no weight")
    return weight.detach()


def _dequantized(result: WeightResult, layer: str) -> Tensor:
    return dequantize(result.integers[layer], result.params[layer])


def _drawn(examples: Examples, batch_size: int) -> Tensor:
    """Random images of one step, from PyTorch's generator."""
    return torch.randperm(len(examples))[:batch_size]


def _due(step: int, steps: int) -> bool:
    """Whether this is a step at which the loss is looked at (a device waits for that)."""
    return step % 50 == 0 or step == steps - 1


def _shown(bar: tqdm[int], loss: Tensor) -> bool:
    """Show the loss in the bar; tells whether it is finite."""
    value = float(loss.detach())
    bar.set_postfix_str(f"loss {value:.4g}", refresh=False)
    return math.isfinite(value)


@contextmanager
def _dropping(part: GraphModule, examples: Examples, settings: Settings) -> Iterator[None]:
    """QDrop: activations quantized but for a random share, grids searched beforehand."""
    if settings.drop_probability is None:
        yield
        return
    fit_activations(part, examples)
    quantizers = activation_quantizers(part).values()
    with enabled(part):
        for quantizer in quantizers:
            quantizer.drop_probability = settings.drop_probability
        try:
            yield
        finally:
            for quantizer in quantizers:
                quantizer.drop_probability = 0.0


def _mixed(quantized: list[Tensor], plain: list[Tensor], share: float) -> list[Tensor]:
    """A random share of the values from the float network."""
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
