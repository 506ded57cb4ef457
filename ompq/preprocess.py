"""What is done to an image before a network sees it."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side to `resize` pixels, crop `input_size`² from the centre, normalise.

    `mean` and `std` are per channel, for pixels in 0..1; `interpolation` is bilinear or bicubic.
    """

    input_size: int = 224
    resize: int = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not 0 < self.input_size <= self.resize:
            raise ValueError(f"crop {self.input_size} must be within the resize {self.resize}")
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise ValueError("mean and std need one entry per channel, std positive")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(f"interpolation {self.interpolation!r} is not bilinear or bicubic")

    def at(self, input_size: int | None) -> Preprocess:
        """The same for another crop, the resize in proportion; itself where None."""
        if input_size is None or input_size == self.input_size:
            return self
        resize = round(self.resize * input_size / self.input_size)
        return Preprocess(input_size, resize, self.mean, self.std, self.interpolation)
