"""Images with their logits, beside every exported file: what a device computes is proven by them.

`model.test.safetensors` holds `pixels` (uint8, n × channels × height × width) and, per channel,
`scale` and `offset` (float32): an image is pixels · scale + offset, computed in float32. `logits`
(float64, n × classes) are those of the network of integers; `computed` are those that the file gave
where it was written, float32 or float64; they are missing where nothing ran it there. The
description holds the `file_checksum` of that file (CRC-32, hexadecimal) and whether it is `exact`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess
from ompq.sealed_file import is_sealed, load_content, save_sealed

FORMAT = "ompq-test-images/1"
SUFFIX = ".test.safetensors"
_LARGEST_PIXEL = 255
_TENSORS = ("pixels", "scale", "offset", "logits", "computed")


@dataclass(frozen=True)
class TestImages:
    """Images that 8-bit pixels stand for, and their logits.

    Attributes:
        pixels: uint8, n × channels × height × width.
        scale: Factor of the pixels of each channel, float32.
        offset: What is added to each channel, float32.
        logits: Logits of the network of integers, float64, n × …; None before they are known.
        computed: Logits that an exported file gave where it was written; None before, and where
            nothing ran it.
        checksum: CRC-32 of that file as eight hexadecimal digits.
        exact: Whether it is to give the logits of the network of integers to the bit.
    """

    # It is no test, whatever its name says to pytest.
    __test__ = False

    pixels: Tensor
    scale: Tensor
    offset: Tensor
    logits: Tensor | None = None
    computed: Tensor | None = None
    checksum: str = ""
    exact: bool = False

    @classmethod
    def of(cls, images: Tensor, preprocess: Preprocess) -> TestImages:
        """Round images to 8-bit pixels: those that they were, where they were normalised from such.

        Args:
            images: Images, float32, n × channels × height × width, normalised.
            preprocess: Preprocessing that they went through.
        """
        std, mean = torch.tensor(preprocess.std), torch.tensor(preprocess.mean)
        scale, offset = 1 / (_LARGEST_PIXEL * std), -mean / std
        low, high = images.amin(dim=(0, 2, 3)), images.amax(dim=(0, 2, 3))
        # Images that came normalised by others have a range of their own.
        own = bool(((low < offset - scale) | (high > offset + (_LARGEST_PIXEL + 1) * scale)).any())
        if own:
            scale, offset = ((high - low) / _LARGEST_PIXEL).clamp_min(1e-12), low
        shape = (-1, 1, 1)
        pixels = torch.round((images - offset.view(shape)) / scale.view(shape))
        return cls(pixels.clamp(0, _LARGEST_PIXEL).to(torch.uint8), scale, offset)

    @property
    def images(self) -> Tensor:
        """Return the images, float32, normalised as the network takes them."""
        shape = (-1, 1, 1)
        return self.pixels.float() * self.scale.view(shape) + self.offset.view(shape)

    def first(self, count: int) -> TestImages:
        """Return the first few of the images, with their logits."""
        logits = None if self.logits is None else self.logits[:count]
        computed = None if self.computed is None else self.computed[:count]
        return replace(self, pixels=self.pixels[:count], logits=logits, computed=computed)

    def save(self, path: Path) -> None:
        """Write images and logits to a file, with its own checksum."""
        tensors = {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}
        description = {"format": FORMAT, "file_checksum": self.checksum, "exact": self.exact}
        save_sealed(path, tensors, description)

    @classmethod
    def load(cls, path: Path) -> TestImages:
        """Read the test images from a file.

        Raises:
            OmpqError: The file is missing, damaged, or holds something else.
        """
        if not path.is_file():
            raise OmpqError(f"{path} does not exist; it is written beside an exported file")
        found = load_content(path)
        described, tensors = found.description, found.tensors
        known = isinstance(described, dict) and described.get("format") == FORMAT
        if not known or not {"pixels", "scale", "offset"} <= tensors.keys():
            raise OmpqError(f"{path} holds no test images of format {FORMAT}")
        if not is_sealed(found.content):
            raise OmpqError(f"{path} is damaged: its checksum is wrong; export the network again")
        held = {name: tensors[name] for name in _TENSORS if name in tensors}
        return cls(**held, checksum=described["file_checksum"], exact=described["exact"])


def find_test_images(file: Path) -> Path:
    """Return the path of the test images of an exported file.

    >>> find_test_images(Path("out/model.packed.onnx")).name
    'model.packed.test.safetensors'
    """
    return file.with_name(file.stem.removesuffix(".safetensors") + SUFFIX)
