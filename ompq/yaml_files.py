"""YAML files that users write: read with every key once, or refused in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ompq.errors import OmpqError

# Keys that a refusal lists; of more it tells the nearest alone.
_LISTED = 20


class _UniqueKeys(yaml.SafeLoader):
    """A loader that refuses a key that is there twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dictionary of a node, each of whose keys is there once."""
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is there twice", problem_mark=key.start_mark
                )
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, where: str, field: str) -> Any:
    """Read a YAML file.

    Args:
        path: Path of the file.
        where: Name of what the file is, for the messages.
        field: Field that names the file, for the messages.

    Raises:
        OmpqError: The file is missing, cannot be read, is no YAML, or has a key twice.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OmpqError(f"{where} cannot be read: {reason}; check `{field}`") from error
    # PyYAML reads some damaged values of its own tags without a check.
    except (yaml.YAMLError, RecursionError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        deep = isinstance(error, RecursionError)
        other = "nested too deeply" if deep else "a value does not fit its tag"
        problem = getattr(error, "problem", None) or getattr(error, "reason", other)
        raise OmpqError(f"{where} is no YAML{line}: {problem}; correct it") from error


def check_keys(where: str, given: Mapping[Any, object], known: Sequence[str]) -> None:
    """Refuse keys that are not known, with the nearest that is.

    Raises:
        OmpqError: Names the first such key.
    """
    for key in given:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            listed = ", ".join(known) if len(known) <= _LISTED else f"{len(known)} others"
            raise OmpqError(f"{where}: unknown key {key}; {meant}there are {listed}")
