"""Published schemes: found by what a user writes, and counted as they were published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bit_config
from ompq.errors import OmpqError
from ompq.graph import Group


def look_up(text: str, file: str) -> bit_config.Published | bit_config.Uniform | Path:
    """Return the scheme that a text names, or the file in the folder that it names.

    Args:
        text: Name of a scheme, `uniformN`, or path of a folder.
        file: Name of the file that such a folder holds.

    Raises:
        OmpqError: It names nothing.
    """
    try:
        return bit_config.lookup(text)
    except LookupError as error:
        if not Path(text).is_dir():
            raise OmpqError(str(error)) from error
        found = Path(text) / file
        if not found.is_file():
            raise OmpqError(
                f"`bit_cfg` {text} is a folder without {file}; give the output folder of a search, "
                "or a file"
            ) from error
        return found


def find_published_ops(groups: Sequence[Group], scheme: bit_config.Published) -> dict[str, int]:
    """Map groups to their published operations, where these differ from those of `ompq.cost`.

    The map is empty where the network is not the published one.
    """
    ops = {group.name: group.ops for group in groups}
    if any(ops.get(name) != counted for name, counted, _ in scheme.miscounted):
        return {}
    return {name: published for name, _, published in scheme.miscounted}
