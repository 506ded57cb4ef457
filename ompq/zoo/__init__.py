"""Networks by name, with their weights and their preprocessing.

Files without a leading underscore are networks of our own; all others come from torchvision, timm,
pytorchcv or the user's file.
"""

from ompq.zoo._load import (
    RANDOM_WEIGHTS,
    RANDOM_WEIGHTS_NOTE,
    Network,
    load_network,
    rebuild,
    relocate,
)

__all__ = [
    "RANDOM_WEIGHTS",
    "RANDOM_WEIGHTS_NOTE",
    "Network",
    "load_network",
    "rebuild",
    "relocate",
]
