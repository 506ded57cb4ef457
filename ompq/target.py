"""A device to quantize for: which widths it computes with, how, and what memory it has.

A target is a YAML file, all of whose keys may be left out:

    weight_bits: [4, 8]             # of every operation that is not named below
    operations:
      depthwise: [8]                # conv, depthwise, linear
      linear: [8]
    activation_bits: [8]
    symmetric: true                 # weights have no zero point
    per_channel: true               # a weight scale per channel; false: one per layer
    act_memory_kb: 512              # memory of activations, 1024 bytes
    flash_kb: 2048                  # memory of weights
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import nn

from ompq.activation_memory import MemoryPeak, measure_peak
from ompq.assignment import Assignment
from ompq.cost import check_widths
from ompq.errors import OmpqError
from ompq.graph import NetworkGraph
from ompq.yaml_files import check_keys, read_yaml

OPERATIONS = ("conv", "depthwise", "linear")
# A depthwise convolution is a convolution, where a target does not name it.
_FALLBACK = {"depthwise": "conv"}
_ALL_WIDTHS = tuple(range(2, 9))
_KB_PER_MB = 1024
# Layers that a refusal names.
_NAMED = 5
_LISTS = ("weight_bits", "activation_bits")
_SWITCHES = ("symmetric", "per_channel")
_SIZES = ("act_memory_kb", "flash_kb")
# What a program of whole numbers can count in; a terabyte.
_LARGEST_KB = 1e9


@dataclass(frozen=True)
class Target:
    """What a device computes with; what is None is not limited.

    Attributes:
        name: What messages call it: its file.
        weight_bits: Weight widths of the operations that `operations` does not name.
        operations: Operation (`conv`, `depthwise`, `linear`) → its weight widths.
        activation_bits: Widths of what layers read.
        symmetric: Whether weights must be without zero points; False: they may have some.
        per_channel: Whether every output channel has a weight scale; False: one per layer.
        act_memory_kb: Memory of the activations for one image, KB (1024 bytes).
        flash_kb: Memory of the weights, KB.
    """

    name: str
    weight_bits: tuple[int, ...] | None = None
    operations: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    activation_bits: tuple[int, ...] | None = None
    symmetric: bool | None = None
    per_channel: bool | None = None
    act_memory_kb: float | None = None
    flash_kb: float | None = None

    @property
    def flash_mb(self) -> float | None:
        """Return the memory of the weights in MB (2²⁰ bytes)."""
        return None if self.flash_kb is None else self.flash_kb / _KB_PER_MB

    @property
    def widths(self) -> tuple[int, ...]:
        """Return all weight widths that some operation has, ascending."""
        return tuple(sorted({width for name in OPERATIONS for width in self.find_widths(name)}))

    def find_widths(self, operation: str) -> tuple[int, ...]:
        """Return the weight widths of an operation, ascending.

        >>> target = Target("a.yaml", weight_bits=(4, 8), operations={"conv": (2,)})
        >>> target.find_widths("depthwise"), target.find_widths("linear")
        ((2,), (4, 8))
        """
        for name in (operation, _FALLBACK.get(operation, "")):
            if name in self.operations:
                return self.operations[name]
        return _ALL_WIDTHS if self.weight_bits is None else self.weight_bits

    def check(self, assignment: Assignment, graph: NetworkGraph, *, act_quant: bool = True) -> None:
        """Refuse widths that the device does not have, and what it has no memory for.

        Args:
            assignment: Widths of the network's groups.
            graph: The network.
            act_quant: Whether activations are quantized; else they stay in float.

        Raises:
            OmpqError: Names layers with their widths, and what the device has.
        """
        modules = {layer: graph.layer_module(layer) for layer in graph.layers}
        acts = assignment.layer_act_bits() if act_quant else {}
        self.check_widths(modules, assignment.layer_bits(), acts)
        self.check_size(assignment.size_mb)
        if self.activation_bits is not None and not act_quant:
            raise OmpqError(
                f"target {self.name} has activations of {_list(self.activation_bits)} bits, and "
                "these stay in float; quantize them by `act_quant`"
            )
        if self.act_memory_kb is not None and act_quant:
            self.check_memory(measure_peak(graph, assignment))

    def check_memory(self, peak: MemoryPeak) -> None:
        """Refuse activations that the device has no memory for.

        Raises:
            OmpqError: Names what they take, and the step of most.
        """
        if self.act_memory_kb is not None and peak.kb > self.act_memory_kb:
            raise OmpqError(
                f"target {self.name} has {self.act_memory_kb:g} KB for activations, and these take "
                f"{peak.kb:.4f} KB at {peak.step}; take smaller images or narrower activations"
            )

    def check_widths(
        self, modules: Mapping[str, nn.Module], bits: Mapping[str, int], acts: Mapping[str, int]
    ) -> None:
        """Refuse layers whose widths the device does not have.

        Args:
            modules: Layer → its convolution or linear layer.
            bits: Layer → weight width.
            acts: Layer → width of what it reads; layers that read floats are left out.

        Raises:
            OmpqError: Names the layers, their widths, and those that the device has.
        """
        found = list(self._find_violations(modules, bits, acts))
        if found:
            more = f" (and {len(found) - _NAMED} more)" if len(found) > _NAMED else ""
            raise OmpqError(
                f"target {self.name}: {'; '.join(found[:_NAMED])}{more}; search widths for it by "
                "`target`, or give others"
            )

    def _find_violations(
        self, modules: Mapping[str, nn.Module], bits: Mapping[str, int], acts: Mapping[str, int]
    ) -> Iterator[str]:
        for layer, width in bits.items():
            operation = name_operation(modules[layer])
            allowed = self.find_widths(operation)
            if width not in allowed:
                yield f"{layer} has {width} bits, {operation} may have {_list(allowed)}"
        for layer, width in acts.items():
            if self.activation_bits is not None and width not in self.activation_bits:
                allowed = self.activation_bits
                yield f"{layer} reads {width} bits, activations may have {_list(allowed)}"

    def check_size(self, size_mb: float) -> None:
        """Refuse weights that the device has no memory for.

        Raises:
            OmpqError: Names both sizes.
        """
        if self.flash_mb is not None and size_mb > self.flash_mb:
            raise OmpqError(
                f"target {self.name} has {self.flash_kb:g} KB for weights, and these take "
                f"{size_mb * _KB_PER_MB:.4f} KB; give fewer bits, or search with `target`"
            )

    def check_choices(
        self,
        *,
        symmetric: bool | None = None,
        per_channel: bool | None = None,
        act_bits: int | None = None,
    ) -> None:
        """Refuse what a user asks for and the device does not do; None is not asked for.

        Args:
            symmetric: Whether weights are to be without zero point.
            per_channel: Whether every channel is to have a weight scale.
            act_bits: Width of the activations.

        Raises:
            OmpqError: Names what is asked for.
        """
        if self.symmetric and symmetric is False:
            raise OmpqError(
                f"`symmetric`: target {self.name} has weights without zero point alone; leave it "
                "out"
            )
        if self.per_channel is False and per_channel:
            raise OmpqError(
                f"`per_channel`: target {self.name} has one weight scale per layer; turn it off"
            )
        allowed = self.activation_bits
        if act_bits is not None and allowed is not None and act_bits not in allowed:
            raise OmpqError(
                f"`act_bits` {act_bits}: target {self.name} has {_list(allowed)}; take one of these"
            )

    def choose_act_bits(self, usual: int) -> int:
        """Return the usual activation width where the device has it, else its widest."""
        allowed = self.activation_bits
        return usual if allowed is None or usual in allowed else max(allowed)


def name_operation(module: nn.Module) -> str:
    """Name what a layer is to a target: conv, depthwise or linear.

    >>> name_operation(nn.Conv2d(4, 8, 3, groups=4)), name_operation(nn.Conv2d(1, 8, 3))
    ('depthwise', 'conv')
    """
    if isinstance(module, nn.Linear):
        return "linear"
    grouped = isinstance(module, nn.Conv2d) and module.groups > 1
    return "depthwise" if grouped and module.groups == module.in_channels else "conv"


def read_target(path: str | Path) -> Target:
    """Read a target from a YAML file.

    Args:
        path: Path of the file.

    Raises:
        OmpqError: The file is missing or no YAML, has a key that no target has, or a value of
            another type (each is named).
    """
    where = f"target {path}"
    content = read_yaml(path, where, "target")
    known = [entry.name for entry in fields(Target) if entry.name != "name"]
    if not isinstance(content, dict) or not content:
        raise OmpqError(f"{where} is not a target; give it some of {', '.join(known)}")
    check_keys(where, content, known)
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key in _LISTS:
            values[key] = _read_widths(f"{where}: {key}", value)
        elif key == "operations":
            values[key] = _read_operations(where, value)
        elif key in _SWITCHES:
            values[key] = _read_switch(f"{where}: {key}", value)
        else:
            values[key] = _read_size(f"{where}: {key}", value)
    return Target(name=str(path), **values)


def read_matching_target(path: str | Path | None, **choices: Any) -> Target | None:
    """Read a target, and refuse what else is asked for and contradicts it.

    Args:
        path: Path of the file; None for no target.
        choices: What `Target.check_choices` takes.

    Raises:
        OmpqError: The file is no target, or a choice contradicts it.
    """
    if path is None:
        return None
    target = read_target(path)
    target.check_choices(**choices)
    return target


def _read_operations(where: str, value: object) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict) or not value:
        example = "{depthwise: [8], conv: [4, 8]}"
        raise OmpqError(f"{where}: operations is {value!r}; write it like {example}")
    check_keys(f"{where}: operations", value, OPERATIONS)
    return {
        name: _read_widths(f"{where}: operations: {name}", widths) for name, widths in value.items()
    }


def _read_widths(where: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise OmpqError(f"{where} is {value!r}; write a list of widths, such as [4, 8]")
    if not value:
        raise OmpqError(f"{where} is an empty list; give widths from 2 to 8, or leave it out")
    check_widths(value, where)
    return tuple(sorted(set(value)))


def _read_switch(where: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise OmpqError(f"{where} is {value!r}; write true or false")
    return value


def _read_size(where: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST_KB:
        return float(value)
    raise OmpqError(f"{where} is {value!r}; write a number of KB (1024 bytes) above 0, up to 1e9")


def _list(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths))
