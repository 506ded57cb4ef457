"""Loading a checkpoint into the network it is for: strictly by name, every shape checked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ompq.checkpoint import read_state_dict
from ompq.errors import OmpqError
from ompq.zoo._layouts import LAYOUTS, Layout
from ompq.zoo._sources import Source, find_source

# Auxiliary classifiers serve training alone.
_AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\..+")
_COUNTER = "num_batches_tracked"
_SHOWN = 3


@dataclass(frozen=True)
class Fit:
    """A network, the weights under its names, and what keeps the two from fitting (if anything)."""

    source: Source
    layout: Layout
    module: nn.Module
    state: dict[str, Tensor]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def misfits(self) -> int:
        """How many names do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def load(self) -> nn.Module:
        """The network with the weights in it."""
        counters = {k: v for k, v in self.module.state_dict().items() if k.endswith(_COUNTER)}
        own = set(self.module.state_dict())
        self.module.load_state_dict(counters | {k: v for k, v in self.state.items() if k in own})
        return self.module


def load_checkpoint(source: Source, file: Path, num_classes: int | None) -> tuple[Fit, str]:
    """Fit the weights of `file` into the network of `source`.

    Returns:
        the fit, weights loaded, and where they came from in words.

    Raises:
        OmpqError: unreadable; does not fit in any known layout (says what does not fit in the one
            that comes closest); or has another number of classes than `num_classes`.
    """
    state = read_state_dict(file)
    fits: list[Fit] = []
    for layout in LAYOUTS:
        if not layout.recognises(state):
            continue
        fit = _fit(source, layout, state)
        if not fit.misfits:
            _check_classes(fit, file, num_classes)
            fit.load()
            return fit, f"{file} ({'; '.join((layout.name, *fit.notes))})"
        fits.append(fit)
    raise OmpqError(_misfit(min(fits, key=lambda fit: fit.misfits), file))


def classifier(module: nn.Module) -> tuple[str, int]:
    """Name and outputs of the last convolution or linear layer in the order of definition.

    Raises:
        OmpqError: there is none.
    """
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        raise OmpqError(f"{type(module).__name__} holds no convolution and no linear layer")
    name, layer = layers[-1]
    return name, layer.weight.shape[0]


def _fit(source: Source, layout: Layout, state: dict[str, Tensor]) -> Fit:
    """Build the network that `layout` calls for and compare names and shapes."""
    if source.name in layout.siblings:
        source = find_source(layout.siblings[source.name])
    module = source.build(None)
    translated = layout.translate(_without_wrapper(state, module.state_dict()))
    name, classes = classifier(module)
    weight = translated.get(f"{name}.weight")
    if weight is not None and weight.ndim > 1 and weight.shape[0] != classes:
        module = source.build(weight.shape[0])
    notes = [adapt(module, translated) for adapt in layout.adapts]
    own = module.state_dict()
    dropped = [key for key in translated if _AUXILIARY.fullmatch(key) and key not in own]
    if dropped:
        notes.append(f"{len(dropped)} entries of auxiliary classifiers left out")
    translated = {key: value for key, value in translated.items() if key not in dropped}
    return Fit(
        source,
        layout,
        module,
        translated,
        tuple(filter(None, notes)),
        *_differences(own, translated),
    )


def _without_wrapper(state: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Drop a first name (`model.`, `backbone.`) that all keys share and the network lacks."""
    heads = {key.partition(".")[0] for key in state}
    head = next(iter(heads)) + "."
    if len(heads) > 1 or any(key.startswith(head) for key in own):
        return state
    return {key.removeprefix(head): value for key, value in state.items()}


def _differences(
    own: dict[str, Tensor], state: dict[str, Tensor]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names that are missing, unexpected, and of another shape; counters of batches may lack."""
    missing = tuple(k for k in own if k not in state and not k.endswith(_COUNTER))
    unexpected = tuple(k for k in state if k not in own and not k.endswith(_COUNTER))
    misshapen = tuple(
        f"{key} is {_shape(value)}, not {_shape(own[key])}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    )
    return missing, unexpected, misshapen


def _check_classes(fit: Fit, file: Path, num_classes: int | None) -> None:
    name, classes = classifier(fit.module)
    if num_classes not in (None, classes):
        raise OmpqError(
            f"--num_classes {num_classes} contradicts {file}, which has {classes} classes "
            f"({name}.weight); leave --num_classes out or give the other checkpoint"
        )


def _misfit(fit: Fit, file: Path) -> str:
    parts = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', …' if names[_SHOWN:] else ''})"
        for what, names in (
            ("have another shape", fit.misshapen),
            ("are missing", fit.missing),
            ("are unexpected", fit.unexpected),
        )
        if names
    ]
    return (
        f"{file} does not fit {fit.source.name}; of its names ({fit.layout.name} come closest) "
        f"{', '.join(parts)}; give the network that it was saved from"
    )


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
