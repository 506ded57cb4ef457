"""Any network as layers, tied groups, feature taps and blocks, known by structure alone."""

from ompq.graph.folding import fold_batch_norm
from ompq.graph.network import Block, Group, Layer, NetworkGraph, analyse
from ompq.graph.run import run_with_taps
from ompq.graph.trace import trace

__all__ = [
    "Block",
    "Group",
    "Layer",
    "NetworkGraph",
    "analyse",
    "fold_batch_norm",
    "run_with_taps",
    "trace",
]
