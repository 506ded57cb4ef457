"""Images to 8 bits a channel in grey, RGB or RGBA, whatever a file holds.

Pillow's own conversion clips deeper values at 255, which makes such pictures white without a word.
Here 16 bits are cut to their upper 8, as Pillow does it for 16 bits of colour. What numbers of 32
bits mean, no file says: they are read where their range tells it, else refused.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Formats whose grey numbers of 32 bits in Pillow are 16 bits in the file, scaled to all of them.
_SIXTEEN_BITS = ("PNG", "PPM")
# The least peak by which 16 bits are told from values that were meant for 8, 10 or 12.
_LEAST_PEAK = 4096
_BITS_TAG, _PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 258, 262, 0


def convert_image(image: Image.Image, channels: int) -> Image.Image:
    """Convert an image to 8 bits in grey, RGB or RGBA; transparency is dropped but for RGBA.

    Args:
        image: Image of any of Pillow's modes.
        channels: 1 for grey (the luminance of colours), 3 for RGB, 4 for RGBA.

    Raises:
        ValueError: Nothing tells which of its numbers are black and white.

    >>> convert_image(Image.new("I;16", (1, 1), 0x80FF), 1).getpixel((0, 0))
    128
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _reduce_depth(image)
    if image.mode == "La":
        image = image.convert("LA")
    has_alpha = image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if has_alpha and (channels == 4 or image.mode == "P"):
        # A palette with transparency goes by way of RGBA, or Pillow warns.
        image = image.convert("RGBA")
    if image.mode not in ("1", "L", "LA", "RGB", "RGBA"):
        image = image.convert("RGB")  # Pillow mixes grey of no other mode
    return image.convert(_MODES[channels])


def _reduce_depth(image: Image.Image) -> Image.Image:
    """Reduce a grey image of more than 8 bits to 8."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = tags.get(_BITS_TAG, (16,))[0]
        grey = values >> (bits - 8)
    elif image.format in _SIXTEEN_BITS:
        grey = values >> 8
    else:
        grey = _scale_by_range(values)
    grey = grey.astype(np.uint8)
    if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        grey = 255 - grey
    return Image.fromarray(grey)


def _scale_by_range(values: np.ndarray) -> np.ndarray:
    """Scale numbers of 32 bits to 0..255: of 0..255 as they are, 0..65535, or floats of 0..1."""
    low, high = values.min(), values.max()
    in_float = values.dtype.kind == "f"
    if low >= 0 and high <= 1 and in_float:
        return np.rint(values * 255)
    # Floats that hardly pass 1 may be of 0..1 after all.
    if low >= 0 and (16 if in_float else 0) <= high <= 255:
        return np.rint(values)
    if low >= 0 and _LEAST_PEAK <= high <= 65535:
        return np.floor(values / 256)
    raise ValueError(f"values from {low} to {high} are neither 8 nor 16 bits")
