"""Step sizes and biases of the whole network, tuned against the float network's logits.

Every block was made to give what the float one gives; what is left of the errors adds up from
block to block. Here the integers of all weights stay as they are. The scales of weights and
activations (learned step sizes, LSQ, arXiv:1902.08153) and the biases learn together, by the
divergence of the logits (distillation, arXiv:1503.02531),

    T² · KL(softmax(float logits / T) ‖ softmax(quantized logits / T)),

on the calibration images, without labels. These are often images that the float network was trained
on, of whose class it is certain: at T = 4 the other classes tell something too, and few images
decide less. The blocks have learned these images, and so they are varied at random. Classes lie
along the second dimension, at every position where there are several. Where the divergence does not
fall, or the logits' own error rises (to which a divergence is blind where all classes are off
alike, and outputs that are no classes may not be), everything stays as it was.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import mse_loss

from ompq.distillation import distillation_loss
from ompq.quantized import QuantizedNetwork, QuantizedWeight
from ompq.quantizers import QuantParams
from ompq.runtime import progress
from PTQ.block_result import is_not_finite
from PTQ.settings import Settings
from PTQ.variation import vary_images

_TEMPERATURE = 4.0
# Fewer images would be learned by heart: as they are, and varied.
_LEAST_IMAGES = 256
_LEAST_VARIED = 64
_FORWARD_BATCH = 128
# A step takes this share of the images, but one batch of the blocks at least and two at most.
_SHARE_OF_IMAGES = 1 / 16
_MOST_BATCHES = 2
# Share of a value that Adam's first steps move it by; smaller where there are more steps than few,
# and where there are fewer, which have not enough of them to take back what one batch told.
_WEIGHT_SCALE_RATE = 3e-3
_ACTIVATION_SCALE_RATE = 6e-3
_BIAS_RATE = 1e-2
_FEW_STEPS = 200
# A tuned scale keeps at least this share of what it was.
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class TuningReport:
    """A report of what tuning did to the divergence from the float network.

    Attributes:
        iterations: Steps that were taken.
        before: Divergence on the calibration images, varied where they are, before.
        after: Divergence on them with what was kept.
        kept: What was kept: `tuned`, or `as reconstructed` with the reason.
        seconds: Wall-clock seconds.
    """

    iterations: int
    before: float | None
    after: float | None
    kept: str
    seconds: float

    def format_line(self) -> str:
        """Return the report as one line for a person to read.

        >>> TuningReport(200, 0.14, 0.12, "tuned", 70.25).format_line()
        'step sizes and biases together: divergence 0.14 → 0.12; 70.2 s'
        >>> TuningReport(0, None, None, "as reconstructed (too few images)", 0.0).format_line()
        'step sizes and biases together: kept as reconstructed (too few images)'
        """
        begin = "step sizes and biases together"
        if self.before is None or self.after is None:
            return f"{begin}: kept {self.kept}"
        change = f"divergence {self.before:.3g} → {self.after:.3g}"
        if not self.after < self.before:
            change = f"divergence {self.before:.3g}, kept {self.kept}"
        return f"{begin}: {change}; {self.seconds:.1f} s"

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; a divergence that is not finite becomes null."""
        return {key: None if is_not_finite(v) else v for key, v in asdict(self).items()}


class _Tuned:
    """What of a quantized network learns, and what it was.

    Attributes:
        ratios: Layer → logarithm of what the scales of its weight are multiplied by, one per
            scale; layers that share a weight share them.
        biases: Layer → bias; layers that share one share it here.
        quantizers: Activation quantizers in use.
    """

    def __init__(self, network: QuantizedNetwork) -> None:
        self.network = network
        self.quantizers = [q for q in network.activations().values() if q.enabled]
        self.weights, self.ratios, self.biases = {}, {}, {}
        shared: dict[str, nn.Parameter] = {}
        shared_biases: dict[int, nn.Parameter] = {}
        owners = network.graph.weight_owners()
        for name, weight in network.weights.items():
            layer = network.graph.layer_module(name)
            values = layer.weight.detach()
            scale = weight.params.scale
            if owners[name] not in shared:
                shared[owners[name]] = nn.Parameter(torch.zeros_like(scale, device=values.device))
            self.ratios[name] = shared[owners[name]]
            self.weights[name] = values.clone()
            if layer.bias is not None:
                held = id(layer.bias)
                if held not in shared_biases:
                    shared_biases[held] = nn.Parameter(layer.bias.detach().clone())
                self.biases[name] = shared_biases[held]
        self.before = [quantizer.params for quantizer in self.quantizers]

    def groups(self, steps: int) -> list[dict[str, Any]]:
        """Return parameter groups of an optimizer whose steps are shares of each value."""
        part = min(math.sqrt(_FEW_STEPS / steps), steps / _FEW_STEPS)
        biases = [
            {"params": [bias], "lr": part * _BIAS_RATE * float(bias.detach().abs().mean())}
            for bias in dict.fromkeys(self.biases.values())
        ]
        rate = part * _ACTIVATION_SCALE_RATE
        scales = [
            {"params": [quantizer.scale], "lr": rate * float(params.scale)}
            for quantizer, params in zip(self.quantizers, self.before, strict=True)
        ]
        ratios = list(dict.fromkeys(self.ratios.values()))
        return [{"params": ratios, "lr": part * _WEIGHT_SCALE_RATE}, *biases, *scales]

    def compute(self, images: Tensor) -> Tensor:
        """Return the logits with the current scales and biases."""
        values = {
            f"{name}.weight": weight * self._align(name, weight)
            for name, weight in self.weights.items()
        }
        values |= {f"{name}.bias": bias for name, bias in self.biases.items()}
        # Layers that share a weight are given the same values under each name.
        logits: Tensor = functional_call(self.network.module, values, (images,), tie_weights=False)
        return logits

    def _align(self, name: str, weight: Tensor) -> Tensor:
        ratio = self.ratios[name].exp()
        return ratio.view(-1, *[1] * (weight.dim() - 1)) if ratio.dim() else ratio

    @torch.no_grad()
    def bound_scales(self) -> None:
        """Keep scales positive: Adam's steps are as long for a small scale as for a large one."""
        for quantizer, params in zip(self.quantizers, self.before, strict=True):
            quantizer.scale.clamp_(min=float(params.scale) * _LEAST_SHARE)

    @torch.no_grad()
    def write(self) -> None:
        """Give the network the tuned values, biases on the grid of the sums again."""
        network = self.network
        for name, weight in list(network.weights.items()):
            given = weight.params
            scale = given.scale * self.ratios[name].detach().exp().cpu()
            params = QuantParams(scale, given.zero_point, given.low, given.high)
            network.set_weight(name, QuantizedWeight.of(weight.integers, params))
        for name, bias in self.biases.items():
            _set_bias(network, name, bias)
        for name in network.weights:
            network.round_bias(name)

    def is_finite(self) -> bool:
        """Tell whether every tuned value is."""
        tuned = [*self.ratios.values(), *self.biases.values()]
        tuned += [quantizer.scale for quantizer in self.quantizers]
        return all(bool(value.isfinite().all()) for value in tuned)


def tune_steps(
    network: QuantizedNetwork, teacher: nn.Module, images: Tensor, settings: Settings
) -> TuningReport:
    """Tune scales and biases of a quantized network in place; it is never worse than before.

    Args:
        network: Quantized network, on the device to compute on.
        teacher: Float network.
        images: Calibration images, n × channels × height × width, normalised, on any device.
        settings: Settings of the reconstruction.
    """
    steps = settings.tuning_steps
    least = _LEAST_VARIED if settings.vary_images else _LEAST_IMAGES
    if not steps or len(images) < least:
        reason = "too few images" if steps else "no steps"
        return TuningReport(0, None, None, f"as reconstructed ({reason})", 0.0)
    start = time.perf_counter()
    before = _judge(network.module, teacher, images, settings)
    if not before.classes:
        reason = "as reconstructed (the outputs are no classes)"
        return TuningReport(0, None, None, reason, time.perf_counter() - start)
    earlier = network.copy()
    tuned = _Tuned(network)
    finite = _learn(tuned, teacher, images, settings)
    kept, after = "tuned", before
    if finite:
        tuned.write()
        after = _judge(network.module, teacher, images, settings)
    if not finite or not after.is_better_than(before):
        _restore(network, earlier, tuned)
        kept = "as reconstructed" if finite else "as reconstructed (the loss was not finite)"
        after = before
    spent = time.perf_counter() - start
    return TuningReport(steps, before.divergence, after.divergence, kept, spent)


def _learn(tuned: _Tuned, teacher: nn.Module, images: Tensor, settings: Settings) -> bool:
    """Take the steps, and tell whether everything stayed finite."""
    device = next(teacher.parameters()).device
    steps = settings.tuning_steps
    count = _count_images(len(images), settings)
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.Adam(tuned.groups(steps))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for quantizer in tuned.quantizers:
        quantizer.scale.requires_grad_(True)
    try:
        bar = progress(range(steps), "step sizes and biases", steps)
        for step in bar:
            batch = images[torch.randperm(len(images))[:count]].to(device)
            batch = _vary(batch, settings, generator)
            with torch.no_grad():
                taught = _list_classes(teacher(batch))
            given = _list_classes(tuned.compute(batch))
            loss = distillation_loss(given, taught, _TEMPERATURE)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            tuned.bound_scales()
            if step % 50 == 0 or step == steps - 1:
                bar.set_postfix_str(f"divergence {float(loss.detach()):.4g}", refresh=False)
    finally:
        for quantizer in tuned.quantizers:
            quantizer.scale.requires_grad_(False)
            quantizer.scale.grad = None
    return tuned.is_finite()


def _count_images(given: int, settings: Settings) -> int:
    """Return the number of images of a step."""
    share = int(given * _SHARE_OF_IMAGES)
    return min(max(share, settings.batch_size), _MOST_BATCHES * settings.batch_size)


def _vary(images: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    return vary_images(images, generator) if settings.vary_images else images


@dataclass(frozen=True)
class _Judgement:
    """What a network's outputs are beside its teacher's.

    Attributes:
        divergence: Mean divergence.
        error: Mean square error.
        classes: Number of classes; 0 where the outputs tell none.
    """

    divergence: float
    error: float
    classes: int

    def is_better_than(self, other: _Judgement) -> bool:
        return self.divergence < other.divergence and self.error <= other.error


@torch.inference_mode()
def _judge(
    module: nn.Module, teacher: nn.Module, images: Tensor, settings: Settings | None
) -> _Judgement:
    """Judge a network on images, varied where the settings say so."""
    device = next(teacher.parameters()).device
    generator = None
    if settings is not None and settings.vary_images:
        # Always the same variation, which differs from those that are learned from.
        generator = torch.Generator().manual_seed(settings.seed + 1)
    divergence = error = 0.0
    classes = 0
    for batch in images.split(_FORWARD_BATCH):
        given = (batch if generator is None else vary_images(batch, generator)).to(device)
        # Copies: a network may change what it is given in place.
        outputs, wanted = module(given.clone()).double(), teacher(given).double()
        classes = wanted.shape[1] if wanted.dim() > 1 and wanted.shape[1] > 1 else 0
        share = len(batch) / len(images)
        error += float(mse_loss(outputs, wanted)) * share
        if classes:
            logits, taught = _list_classes(outputs), _list_classes(wanted)
            divergence += float(distillation_loss(logits, taught, _TEMPERATURE)) * share
    return _Judgement(divergence, error, classes)


def _list_classes(outputs: Tensor) -> Tensor:
    """Return outputs as rows of classes: one per image, or one per position of each."""
    return outputs.movedim(1, -1).flatten(0, -2)


def measure_divergence(module: nn.Module, teacher: nn.Module, images: Tensor) -> float:
    """Measure the mean divergence of a network from its teacher.

    Args:
        module: Network, of images × classes, or images × classes × positions.
        teacher: Network that teaches.
        images: Images, n × channels × height × width, normalised, on any device.
    """
    return _judge(module, teacher, images, None).divergence


@torch.no_grad()
def _restore(network: QuantizedNetwork, earlier: QuantizedNetwork, tuned: _Tuned) -> None:
    """Give a network what it had before."""
    for name, weight in earlier.weights.items():
        network.set_weight(name, weight)
        bias = earlier.graph.layer_module(name).bias
        if bias is not None:
            _set_bias(network, name, bias)
    for quantizer, params in zip(tuned.quantizers, tuned.before, strict=True):
        quantizer.set(params)


def _set_bias(network: QuantizedNetwork, layer: str, bias: Tensor) -> None:
    held = network.graph.layer_module(layer).bias
    if held is None:
        raise TypeError(f"{layer} has no bias")
    held.copy_(bias)
