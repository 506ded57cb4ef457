"""What of a network is left as it is, because a check has shown that it must be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Exclusions:
    """Modules that are not rewritten.

    Attributes:
        norms: Paths of batch norms that are not folded into the layer before them.
        modules: Reason to leave a module as it is and in float, by its path.
    """

    norms: frozenset[str] = frozenset()
    modules: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Exclusions:
        """Read what `to_json` gave; what is not there is empty."""
        return cls(frozenset(content.get("norms", ())), dict(content.get("modules", {})))

    def to_json(self) -> dict[str, Any]:
        """Return what a file of the network says."""
        return {"norms": sorted(self.norms), "modules": dict(self.modules)}

    def with_norm(self, path: str) -> Exclusions:
        """Return these exclusions and a batch norm that is not folded."""
        return replace(self, norms=self.norms | {path})

    def with_module(self, path: str, reason: str) -> Exclusions:
        """Return these exclusions and a module that stays in float."""
        return replace(self, modules={**self.modules, path: reason})
