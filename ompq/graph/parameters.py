"""Where every parameter of a network went: into a quantized layer, or into what stays in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule, Node

from ompq.graph.operations import (
    BATCH_NORMS,
    NORM_TYPES,
    operation,
    reads_images,
    runs_library_code,
)

_SHOWN = 3


@dataclass(frozen=True)
class ParameterCount:
    """Number of parameters of a network, shared ones counted once, and of those in its layers.

    Attributes:
        total: Number of all parameters.
        quantized: Number of those of quantized layers, folded batch norms included.
    """

    total: int
    quantized: int

    @property
    def in_float(self) -> int:
        """Return the number of parameters that stay in float."""
        return self.total - self.quantized

    def to_json(self) -> dict[str, int]:
        """Return what result files say."""
        return {"total": self.total, "quantized": self.quantized}

    def __str__(self) -> str:
        return f"{self.quantized} of {self.total} parameters are quantized"


def describe_float_parts(parts: Mapping[str, str], count: ParameterCount) -> str:
    """Say in one line how many parameters are quantized, and what stays in float.

    >>> describe_float_parts({"bn": "BatchNorm2d is not quantized"}, ParameterCount(100, 90))
    '90 of 100 parameters are quantized; in float: bn (BatchNorm2d is not quantized)'
    """
    named = [f"{name} ({why})" for name, why in list(parts.items())[:_SHOWN]]
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return f"{count}; in float: {', '.join(named)}{more}" if parts else str(count)


class Accounts:
    """Books of a network's parameters.

    Args:
        original: The network before it was traced.
        traced: Traced network, which holds the same parameters.
        layers: Quantized layer → the further modules that are part of it (its batch norm).
        excluded: Module that was left as it is → the reason.
    """

    def __init__(
        self,
        original: nn.Module,
        traced: GraphModule,
        layers: Mapping[str, Sequence[str]],
        excluded: Mapping[str, str],
    ) -> None:
        self._original, self._traced, self._excluded = original, traced, excluded
        paths = [path for layer, parts in layers.items() for path in (layer, *parts)]
        self._quantized = {
            id(parameter) for path in paths for parameter in traced.get_submodule(path).parameters()
        }
        self._calls = {str(n.target): n for n in traced.graph.nodes if n.op == "call_module"}
        self._reads = [node for node in traced.graph.nodes if node.op == "get_attr"]

    @property
    def count(self) -> ParameterCount:
        """Return how many parameters there are, and how many are quantized."""
        sizes = {id(parameter): parameter.numel() for parameter in self._original.parameters()}
        return ParameterCount(
            total=sum(sizes.values()),
            quantized=sum(size for key, size in sizes.items() if key in self._quantized),
        )

    def find_float_parts(self) -> dict[str, str]:
        """Find the modules, and the network's own parameters, that stay in float, each with why."""
        parts: dict[str, str] = {}
        seen = set(self._quantized)
        for path, module in self._original.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                full_name = f"{path}.{name}" if path else name
                # A parameter of a module with parts goes by its own name.
                is_leaf = path and next(module.children(), None) is None
                part = self._find_called(path) or (path if is_leaf else full_name)
                parts.setdefault(part, self._explain(part, full_name))
        return parts

    def _find_called(self, path: str) -> str:
        """Return the path of the called module that a module is part of; empty where none is."""
        steps = path.split(".")
        paths = [".".join(steps[:length]) for length in range(1, len(steps) + 1)]
        return next((prefix for prefix in paths if prefix in self._calls), "")

    def _explain(self, part: str, parameter: str) -> str:
        """Say why a part of the network with this parameter is not quantized."""
        if part in self._excluded:
            return self._excluded[part]
        call = self._calls.get(part)
        if call is not None:
            return _explain_module(call, self._traced)
        readers = [user for node in self._reads if node.target == parameter for user in node.users]
        # What is computed of parameters alone is a parameter still.
        for reader in readers:
            readers += [] if reads_images(reader) else reader.users
        if not readers:
            return "evaluation never calls it"
        last = next((node for node in readers if reads_images(node)), readers[0])
        return f"its values go into the function {operation(last, self._traced)}"


def _explain_module(call: Node, traced: GraphModule) -> str:
    """Say why a module that the network calls is not quantized."""
    module = traced.get_submodule(str(call.target))
    name = type(module).__name__
    if not reads_images(call):
        return f"{name} computes a constant: no image reaches it"
    if isinstance(module, NORM_TYPES):
        plain = operation(call, traced) in BATCH_NORMS
        return f"{name} is no part of the layer before it" if plain else f"{name} is not quantized"
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return f"{name} is not quantized"
    if "weight" not in module._parameters:
        return f"{name} computes its weight anew at every call"
    if runs_library_code(module):
        return f"{name} is called on images and on constants"
    return f"{name} computes otherwise than its base class"
