"""How pictures of results are told from a user's images, which may lie in the same folders."""

from __future__ import annotations

from pathlib import Path

# PNG's keyword for the program that wrote a file, and what ours says there.
METADATA = {"Software": "ompq"}
_HEAD = 4096
# Pictures of earlier versions, which do not say it, and the results that lie beside them.
_EARLIER = {
    "bit_config.png": "bit_config.json",
    "compare.png": "compare.json",
    "sweep.png": "sweep.json",
    "training.png": "results.json",
}


def is_drawn_here(path: Path) -> bool:
    """Tell whether a picture is one that this toolkit has drawn.

    Args:
        path: Path of an image file; what is no PNG is none.
    """
    if path.suffix.lower() != ".png":
        return False
    if path.name in _EARLIER and path.with_name(_EARLIER[path.name]).is_file():
        return True
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    # A tEXt chunk: keyword, a zero byte, the text.
    return any(f"{key}\0{text}".encode() in head for key, text in METADATA.items())
