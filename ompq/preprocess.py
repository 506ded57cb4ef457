"""How an image becomes a network's input: the numbers that travel beside every network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ompq.errors import OmpqError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True)
class Preprocess:
    """Evaluation preprocessing: resize the shorter side, crop the centre, scale to 0..1, normalise.

    Attributes:
        input_size: Side of the square centre crop, in pixels.
        resize: Length that the shorter side of an image is resized to before the crop, in pixels.
        mean: Mean of each channel, of pixels in 0..1; its length is the number of input channels.
        std: Standard deviation of each channel, of pixels in 0..1, positive.
        interpolation: "bilinear" or "bicubic", for the resizing.

    Raises:
        OmpqError: A value is out of range, or two values contradict each other.
    """

    input_size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check_sizes(self.input_size, self.resize)
        _check_normalisation(self.mean, self.std)
        if self.interpolation not in INTERPOLATIONS:
            raise OmpqError(
                f"preprocess: `interpolation` {self.interpolation!r} is not one of "
                f"{', '.join(INTERPOLATIONS)}"
            )

    @property
    def channels(self) -> int:
        """Return the number of input channels."""
        return len(self.mean)

    def at(self, input_size: int | None) -> Preprocess:
        """Return this preprocessing for another crop, with `resize` in proportion.

        Args:
            input_size: Side of the other crop, in pixels; None to keep this one.

        >>> Preprocess(input_size=224, resize=256).at(112).resize
        128
        """
        if input_size is None or input_size == self.input_size:
            return self
        resize = round(self.resize * input_size / self.input_size)
        return replace(self, input_size=input_size, resize=resize)


def _check_sizes(input_size: int, resize: int) -> None:
    if input_size < 1:
        raise OmpqError(f"preprocess: `input_size` must be at least 1 pixel, not {input_size}")
    if resize < input_size:
        raise OmpqError(
            f"preprocess: `resize` ({resize}) is smaller than `input_size` ({input_size}); "
            "the centre crop would not fit into the resized image"
        )


def _check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != len(std) or not mean:
        raise OmpqError(
            f"preprocess: `mean` and `std` must name the same channels, got {len(mean)} and "
            f"{len(std)}"
        )
    if not all(math.isfinite(value) for value in mean):
        raise OmpqError(f"preprocess: `mean` must be finite, got {tuple(mean)}")
    if not all(math.isfinite(value) and value > 0 for value in std):
        raise OmpqError(f"preprocess: `std` must be positive and finite, got {tuple(std)}")
