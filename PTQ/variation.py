"""Images varied at random, so that what learns from few of them does not learn them by heart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ompq.data.pixels import shift_and_flip

# Share of a side by which an image is shifted at most.
_SHIFT = 1 / 8
# Copies that blocks learn from, where images are small, and the most pixels of such.
_COPIES = 3
_SMALL = 64 * 64
# Share of the images that are mixed with another one, and share of that one at most.
_MIXED = 0.5
_OTHER = 0.5
# Images that tell whether a network can be given varied ones.
_TRIED = 16


def vary_images(images: Tensor, generator: torch.Generator, *, mix: bool = True) -> Tensor:
    """Mirror, shift and mix images at random.

    Half of them are mirrored; all are shifted by up to an eighth of their sides, and their edges
    are repeated where nothing was; half are mixed with another one (mixup, arXiv:1710.09412). A
    teacher says what such images are: they need not look like what it was trained on
    (arXiv:2106.05237).

    Args:
        images: Images, n × channels × height × width, normalised, on any device.
        generator: Source of the randomness, on the CPU.
        mix: Whether they are mixed too.

    Returns:
        As many images of the same shape, on the same device.

    >>> images = torch.ones(4, 3, 8, 8)
    >>> vary_images(images, torch.Generator().manual_seed(0)).shape
    torch.Size([4, 3, 8, 8])
    """
    count, _, height, width = images.shape
    seeds = torch.randint(2**62, (count,), generator=generator)
    shift = int(height * _SHIFT), int(width * _SHIFT)
    varied = shift_and_flip(images, shift, True, seeds, repeat_edges=True)
    if not mix:
        return varied
    share = _OTHER * torch.rand(count, 1, 1, 1, generator=generator)
    share[torch.rand(count, generator=generator) >= _MIXED] = 0
    share = share.to(images.device)
    others = torch.randperm(count, generator=generator).to(images.device)
    return (1 - share) * varied + share * varied[others]


@torch.inference_mode()
def can_vary(network: nn.Module, images: Tensor, seed: int) -> bool:
    """Tell whether a network says something of varied images where it does of the images.

    It may divide by what is 0 where edges are repeated.

    Args:
        network: Float network.
        images: Images, n × channels × height × width, normalised, on any device; a few are tried.
        seed: Seed of the variation.
    """
    device = next(network.parameters()).device
    few = images[:_TRIED].to(device)
    varied = vary_images(few, torch.Generator().manual_seed(seed))
    # Copies: a network may change what it is given in place.
    as_they_are, as_varied = network(few.clone()), network(varied)
    return bool(as_varied.isfinite().all()) or not bool(as_they_are.isfinite().all())


def add_copies(images: Tensor, copies: int | None, generator: torch.Generator) -> Tensor:
    """Add mirrored and shifted copies of images behind them.

    Args:
        images: Images, n × channels × height × width, normalised, on any device.
        copies: Copies of each; None for three of images of at most 64 × 64 pixels, else none: the
            values between blocks take as much more memory.
        generator: Source of the randomness, on the CPU.

    >>> len(add_copies(torch.zeros(4, 3, 32, 32), None, torch.Generator()))
    16
    >>> len(add_copies(torch.zeros(4, 3, 224, 224), None, torch.Generator()))
    4
    """
    if copies is None:
        copies = _COPIES if images.shape[2] * images.shape[3] <= _SMALL else 0
    varied = [vary_images(images, generator, mix=False) for _ in range(copies)]
    return torch.cat([images, *varied]) if varied else images
