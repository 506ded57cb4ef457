"""Loading a checkpoint into the network it is for: strictly by name, every shape checked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ompq.errors import OmpqError
from ompq.zoo._checkpoint import read_state_dict
from ompq.zoo._layouts import LAYOUTS, Layout
from ompq.zoo._sources import Source, find_source

# Auxiliary classifiers serve training alone.
_AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\..+")
_COUNTER = "num_batches_tracked"
_SHOWN = 3


@dataclass(frozen=True)
class Fit:
    """A network, weights under its names, and what keeps the two from fitting, if anything.

    Attributes:
        source: Origin of the network.
        layout: Layout that the weights were translated from.
        module: The network, with random weights until `load` is called.
        state: The weights under the network's names.
        notes: Changes to the network or the weights, in words.
        missing: Names in the network that the weights lack.
        unexpected: Names in the weights that the network lacks.
        misshapen: Names with their two shapes, where these differ, in words.
    """

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
        """Return the number of names that do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def load(self) -> nn.Module:
        """Load the weights into the network and return it."""
        # Other codebases save no batch counters; inference does not use them.
        counters = {k: v for k, v in self.module.state_dict().items() if k.endswith(_COUNTER)}
        own = set(self.module.state_dict())
        self.module.load_state_dict(counters | {k: v for k, v in self.state.items() if k in own})
        return self.module


def fit_checkpoint(source: Source, file: Path, num_classes: int | None) -> tuple[Fit, str]:
    """Fit the weights of a checkpoint into a network, in the first layout that fits.

    Args:
        source: Origin of the network.
        file: Path of the checkpoint.
        num_classes: Number of classes that the user gave; None for whatever the checkpoint has.

    Returns:
        The fit, its weights loaded, and the origin of the weights in words.

    Raises:
        OmpqError: The file is unreadable, does not fit in any known layout (what does not fit in
            the closest one is named), or has another number of classes than `num_classes`.
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
    raise OmpqError(_describe_misfit(min(fits, key=lambda fit: fit.misfits), file))


def find_classifier(module: nn.Module) -> tuple[str, int]:
    """Find the last convolution or linear layer in the order of definition.

    Returns:
        The name of the layer and its number of outputs.

    Raises:
        OmpqError: There is none.
    """
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        raise OmpqError(f"{type(module).__name__} holds no convolution and no linear layer")
    name, layer = layers[-1]
    return name, layer.weight.shape[0]


def _fit(source: Source, layout: Layout, state: dict[str, Tensor]) -> Fit:
    """Build the network that a layout calls for, and compare names and shapes with the weights."""
    if source.name in layout.siblings:
        source = find_source(layout.siblings[source.name])
    module = source.build(None)
    translated = layout.translate(_drop_wrapper(state, module.state_dict()))
    # The checkpoint's classifier tells the number of classes.
    name, classes = find_classifier(module)
    weight = translated.get(f"{name}.weight")
    if weight is not None and weight.ndim > 1 and weight.shape[0] != classes:
        module = source.build(weight.shape[0])
    notes = [adapt(module, translated) for adapt in layout.adapts]
    own = module.state_dict()
    dropped = [key for key in translated if _AUXILIARY.fullmatch(key) and key not in own]
    if dropped:
        notes.append(f"{len(dropped)} entries of auxiliary classifiers left out")
    translated = {key: value for key, value in translated.items() if key not in dropped}
    missing, unexpected, misshapen = _compare(own, translated)
    return Fit(
        source=source,
        layout=layout,
        module=module,
        state=translated,
        notes=tuple(filter(None, notes)),
        missing=missing,
        unexpected=unexpected,
        misshapen=misshapen,
    )


def _drop_wrapper(state: dict[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """Drop a first name (`model.`, `backbone.`) that all keys share and the network lacks."""
    heads = {key.partition(".")[0] for key in state}
    head = next(iter(heads)) + "."
    if len(heads) > 1 or any(key.startswith(head) for key in own):
        return state
    return {key.removeprefix(head): value for key, value in state.items()}


def _compare(
    own: dict[str, Tensor], state: dict[str, Tensor]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """List the names that are missing, unexpected and of another shape; batch counters pass."""
    missing = tuple(k for k in own if k not in state and not k.endswith(_COUNTER))
    unexpected = tuple(k for k in state if k not in own and not k.endswith(_COUNTER))
    misshapen = tuple(
        f"{key} is {_describe_shape(value)}, not {_describe_shape(own[key])}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    )
    return missing, unexpected, misshapen


def _check_classes(fit: Fit, file: Path, num_classes: int | None) -> None:
    name, classes = find_classifier(fit.module)
    if num_classes not in (None, classes):
        raise OmpqError(
            f"`num_classes` {num_classes} contradicts {file}, which has {classes} classes "
            f"({name}.weight); leave `num_classes` out or give the other checkpoint"
        )


def _describe_misfit(fit: Fit, file: Path) -> str:
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


def _describe_shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"
