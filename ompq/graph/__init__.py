"""Any network as layers, tied groups, feature taps and blocks, known by structure alone."""

from ompq.graph.folding import fold_batch_norm
from ompq.graph.network import Block, Group, Layer, NetworkGraph, analyse
from ompq.graph.parts import Part, extract, part_of, parts_of
from ompq.graph.run import run_with_taps
from ompq.graph.sites import activation_sites
from ompq.graph.trace import trace

__all__ = [
    "Block",
    "Group",
    "Layer",
    "NetworkGraph",
    "Part",
    "activation_sites",
    "analyse",
    "extract",
    "fold_batch_norm",
    "part_of",
    "parts_of",
    "run_with_taps",
    "trace",
]
