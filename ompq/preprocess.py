"""How an image becomes a network's input: the numbers that travel beside every network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ompq.errors import OmpqError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
INTERPOLATIONS = ("bilinear", "bicubic")
# Below this side an image is taken as it is: what would be cut off is no margin but the picture.
NO_ZOOM_BELOW = 100
COLOURS = {1: "grey", 3: "RGB", 4: "RGBA"}
# Shares of red, green and blue in a grey value (ITU-R BT.601), as Pillow's mode "L" takes them.
_LUMINANCE = (0.299, 0.587, 0.114)


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

    def check_colours(self) -> None:
        """Check that images can be read with this number of channels: grey, RGB or RGBA.

        Raises:
            OmpqError: Images have no such number of channels.
        """
        if self.channels not in COLOURS:
            known = ", ".join(f"{count} ({name})" for count, name in COLOURS.items())
            raise OmpqError(
                f"preprocess: `mean` names {self.channels} channels; images are read with {known}"
            )

    def describe(self) -> str:
        """Return all of it in one line.

        >>> Preprocess(28, 32, (0.5,), (0.25,)).describe()
        'resize 32 bilinear, crop 28, mean (0.5), std (0.25), grey'
        """
        colours = COLOURS.get(self.channels, f"{self.channels} channels")
        mean, std = (", ".join(f"{value:g}" for value in part) for part in (self.mean, self.std))
        return (
            f"resize {self.resize} {self.interpolation}, crop {self.input_size}, mean ({mean}), "
            f"std ({std}), {colours}"
        )

    def at(self, input_size: int | None) -> Preprocess:
        """Return this preprocessing for another crop, with `resize` in proportion.

        Images below `NO_ZOOM_BELOW` pixels are not zoomed: `resize` becomes the crop.

        Args:
            input_size: Side of the other crop, in pixels; None to keep this one.

        >>> Preprocess(input_size=224, resize=256).at(112).resize
        128
        >>> Preprocess(input_size=224, resize=256).at(32).resize
        32
        """
        if input_size is None or input_size == self.input_size:
            return self
        resize = input_size
        if input_size >= NO_ZOOM_BELOW:
            resize = max(input_size, round(self.resize * input_size / self.input_size))
        return replace(self, input_size=input_size, resize=resize)

    def with_channels(self, channels: int) -> Preprocess:
        """Return this preprocessing for images of another number of channels.

        Grey images get the mean of the luminance of coloured ones (the mean of what they are
        converted to), and the mean of their standard deviations; further channels of equal ones
        the same values; an alpha channel stays as it is.

        Args:
            channels: Number of channels of the network.

        Raises:
            OmpqError: Nothing tells the mean and deviation of so many channels.

        >>> Preprocess(8, 8, (0.3,) * 3, (0.4,) * 3).with_channels(1).describe()
        'resize 8 bilinear, crop 8, mean (0.3), std (0.4), grey'
        """
        if channels == self.channels:
            return self
        if len(set(self.mean)) == len(set(self.std)) == 1:
            return replace(self, mean=self.mean[:1] * channels, std=self.std[:1] * channels)
        if (self.channels, channels) == (3, 1):
            mean = sum(share * value for share, value in zip(_LUMINANCE, self.mean, strict=True))
            return replace(self, mean=(round(mean, 6),), std=(round(sum(self.std) / 3, 6),))
        if (self.channels, channels) == (3, 4):
            return replace(self, mean=(*self.mean, 0.0), std=(*self.std, 1.0))
        raise OmpqError(
            f"the network takes images of {channels} channels; give `mean` and `std` of each"
        )

    def normalised_by(
        self, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> Preprocess:
        """Return this preprocessing with another mean, another deviation, or both.

        Args:
            mean: Mean of each channel, or one number for all; None to keep this one.
            std: Standard deviation of each channel, or one number for all; None to keep this one.

        Raises:
            OmpqError: They do not name as many channels, or hold impossible values.

        >>> Preprocess().normalised_by((0.5,), None).mean
        (0.5, 0.5, 0.5)
        """
        given = [len(values) for values in (mean, std) if values is not None and len(values) > 1]
        channels = max(given, default=self.channels)
        return replace(
            self,
            mean=_repeat(self.mean if mean is None else mean, channels),
            std=_repeat(self.std if std is None else std, channels),
        )


def _repeat(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return the values of all channels, where one number stands for each of them."""
    return tuple(values) * channels if len(values) == 1 else tuple(values)


def _check_sizes(input_size: int, resize: int) -> None:
    if input_size < 1:
        raise OmpqError(f"preprocess: `input_size` must be at least 1 pixel, not {input_size}")
    if resize < input_size:
        raise OmpqError(
            f"preprocess: `resize` ({resize}) is smaller than `input_size` ({input_size}), and the "
            "crop would not fit into the resized image; give both"
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
