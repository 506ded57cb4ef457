"""Some of very many values, to choose a grid by."""

from __future__ import annotations

import torch
from torch import Tensor

# So many that another choice of them moves a grid by less than the step of a search.
_SAMPLED = 2**17


def some_values(values: Tensor) -> Tensor:
    """All values, or 131072 of them drawn at random, always the same ones; flat.

    A regular choice, every k-th, would see some columns of an image and never the others.
    """
    flat = values.flatten()
    if flat.numel() <= _SAMPLED:
        return flat
    generator = torch.Generator().manual_seed(0)
    return flat[torch.randint(flat.numel(), (_SAMPLED,), generator=generator).to(flat.device)]
