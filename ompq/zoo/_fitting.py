"""Loading a checkpoint into the network it is for: strictly by name, every shape checked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from ompq.errors import OmpqError
from ompq.zoo._checkpoint import Checkpoint, StoredWeights, read_checkpoint
from ompq.zoo._classes import count_classes, tell_classes
from ompq.zoo._computed import compute_weights
from ompq.zoo._layouts import LAYOUTS, Layout
from ompq.zoo._prefix import list_prefixes, name_leftovers, strip_prefix
from ompq.zoo._sources import USER_LIBRARY, Source, find_source
from ompq.zoo._unpickle import describe_network
from ompq.zoo._values import settle_values

# Auxiliary classifiers serve training alone.
_AUXILIARY = re.compile(r"(AuxLogits|aux1|aux2)\..+")
# What counters of operations (thop) leave in every module.
_COUNTED = re.compile(r"(.+\.)?total_(ops|params)")
_COUNTER = "num_batches_tracked"
# The least part of a network's names that must be there for a set of names to be its weights.
_LEAST = 0.5
_SHOWN = 3
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Fit:
    """A network, weights under its names, and what keeps the two from fitting, if anything.

    Attributes:
        source: Origin of the network.
        layout: Layout that the weights were translated from.
        module: The network, with random weights until `load` is called.
        state: The weights under the network's names.
        notes: Changes to the network or the weights, in words.
        left_out: What of the file was not taken because it is not the network's, in words.
        missing: Names in the network that the weights lack.
        unexpected: Names in the weights that the network lacks.
        misshapen: Names with their two shapes, where these differ, in words.
    """

    source: Source
    layout: Layout
    module: nn.Module
    state: dict[str, Tensor]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def misfits(self) -> int:
        """Return the number of names that do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    @property
    def distance(self) -> tuple[int, int]:
        """Return what orders misfits: fewer names in common are further, then more misfits."""
        common = len(self.state) - len(self.unexpected) - len(self.misshapen)
        return -common, self.misfits

    def describe(self, file: Path) -> str:
        """Describe where the weights come from."""
        left_out = [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        return f"{file} ({'; '.join((self.layout.name, *self.notes, *left_out))})"

    def load(self) -> nn.Module:
        """Load the weights into the network and return it."""
        # Other codebases save no batch counters; inference does not use them.
        counters = {k: v for k, v in self.module.state_dict().items() if k.endswith(_COUNTER)}
        own = set(self.module.state_dict())
        self.module.load_state_dict(counters | {k: v for k, v in self.state.items() if k in own})
        return self.module


def fit_checkpoint(source: Source, file: Path, num_classes: int | None = None) -> Fit:
    """Fit the weights of a checkpoint into a network, in the first layout that fits.

    Where the file holds several sets of tensors by name (weights and their average), the first that
    fits is taken, those that training scripts keep under known names first. What stands before all
    of the network's names (`module.`, `model.`, …) is removed.

    Args:
        source: Origin of the network.
        file: Path of the checkpoint.
        num_classes: Number of classes that the user expects. The weights decide; the number serves
            a factory of the user's that builds no network without one.

    Returns:
        The fit, its weights loaded.

    Raises:
        OmpqError: The file is unreadable, or does not fit in any known layout (what does not fit in
            the closest one is named).
    """
    checkpoint = read_checkpoint(file)
    fits: list[Fit] = []
    if source.library == USER_LIBRARY:
        build = source.build
        source = replace(source, build=lambda told: build(told or num_classes))
    for fit in _try_all(source, checkpoint):
        if not fit.misfits:
            settle_values(fit.state, fit.module.state_dict(), str(file))
            fit.load()
            return fit
        fits.append(fit)
    if checkpoint.whole_network:
        raise OmpqError(describe_network(file, checkpoint.unread[0]))
    raise OmpqError(_describe_misfit(min(fits, key=lambda fit: fit.distance), file))


def _try_all(source: Source, checkpoint: Checkpoint) -> Iterator[Fit]:
    """Try each set of weights in each layout that recognises it."""
    first = source.build_float(None)
    own = {name for name in first.state_dict() if not name.endswith(_COUNTER)}
    least = _LEAST * len(own)
    module: nn.Module | None = first
    large = [stored for stored in checkpoint.weights if len(stored.tensors) >= least]
    for stored in large or checkpoint.weights[:1]:
        beside = [
            f"{other.place}.* ({len(other.tensors)} entries)"
            for other in large
            if other.place and other is not stored
        ]
        unread = [f"objects of {name}" for name in checkpoint.unread]
        prefixes = list_prefixes(stored.tensors, least)
        stripped = {prefix: strip_prefix(stored.tensors, prefix, own) for prefix in prefixes}
        for layout in LAYOUTS:
            candidates = {p: state for p, state in stripped.items() if layout.recognises(state)}
            if candidates:
                yield _fit(source, layout, module, candidates, stored, [*beside, *unread])
                # The attempt may have changed it.
                module = None


def _fit(
    source: Source,
    layout: Layout,
    module: nn.Module | None,
    candidates: Mapping[str, State],
    stored: StoredWeights,
    beside: list[str],
) -> Fit:
    """Build the network that a layout calls for, and compare names and shapes with the weights.

    Args:
        source: Origin of the network.
        layout: Layout to read the weights in.
        module: The network as `source` builds it, where that is at hand.
        candidates: Each prefix that may stand before the network's names, and the weights without
            it.
        stored: The weights as they are in the file.
        beside: What else is in the file, in words.
    """
    sibling = layout.find_sibling(source.name)
    if sibling is not None:
        source, module = find_source(sibling), None
    if module is None:
        module = source.build_float(None)
    prefix, translated, rivals = _choose_prefix(layout, candidates, module.state_dict())
    notes = [compute_weights(translated, module.state_dict())]
    wanted = _find_wanted_classes(source, module, translated)
    if wanted is not None:
        module = source.build_float(wanted)
    notes += [adapt(module, translated) for adapt in layout.adapts]
    own = module.state_dict()
    dropped = [key for key in translated if _AUXILIARY.fullmatch(key) and key not in own]
    if dropped:
        notes.append(f"{len(dropped)} entries of auxiliary classifiers left out")
    counted = [key for key in translated if _COUNTED.fullmatch(key) and key not in own]
    if counted:
        notes.append(f"{len(counted)} counts of operations left out")
        dropped += counted
    translated = {key: value for key, value in translated.items() if key not in dropped}
    missing, unexpected, misshapen = _compare(own, translated)
    return Fit(
        source=source,
        layout=layout,
        module=module,
        state=translated,
        notes=tuple(filter(None, notes)),
        left_out=(*name_leftovers(stored.tensors, prefix, rivals), *beside),
        missing=missing,
        unexpected=unexpected,
        misshapen=misshapen,
    )


def _choose_prefix(
    layout: Layout, candidates: Mapping[str, State], own: State
) -> tuple[str, dict[str, Tensor], list[str]]:
    """Choose the prefix under which the fewest names differ from the network's, the first of such.

    Returns:
        The prefix, the weights without it under the network's names, and the other prefixes under
        which as few names differ.
    """
    translated = {prefix: layout.translate(state, own) for prefix, state in candidates.items()}

    misfits = {p: sum(map(len, _compare(own, state))) for p, state in translated.items()}
    prefix = min(misfits, key=lambda each: misfits[each])
    rivals = [p for p, count in misfits.items() if p != prefix and count == misfits[prefix]]
    return prefix, translated[prefix], rivals


def _find_wanted_classes(source: Source, module: nn.Module, state: State) -> int | None:
    """Find the number of classes that the weights call for; None where the network has it."""
    own = module.state_dict()
    if all(own[key].shape == value.shape for key, value in state.items() if key in own):
        return None
    return tell_classes(own, state, count_classes(module, source.preprocess(module)))


def _compare(own: State, state: State) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """List the names that are missing, unexpected and of another shape; batch counters pass."""
    missing = tuple(k for k in own if k not in state and not k.endswith(_COUNTER))
    unexpected = tuple(k for k in state if k not in own and not k.endswith(_COUNTER))
    misshapen = tuple(
        f"{key} is {_describe_shape(value)}, not {_describe_shape(own[key])}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    )
    return missing, unexpected, misshapen


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
