"""Any network as layers, tied groups, features and blocks, known by its structure alone.

    trace               trace.py          follow a module's forward pass; the view of what it does
    check_network       check.py          what was traced computes what the network does
    NetworkGraph        network.py        that view: layers, groups, blocks, number of outputs
    analyse             network.py        the view of a traced network whose shapes are recorded
    Layer, Group        network.py        a layer with its costs; layers that share one bit width
    Exclusions          exclusions.py     what is left as it is: not folded, not rewritten
    ImageLayout         layout.py         where the images are in a value
    Block               blocks.py         nodes between one tensor going in and one coming out
    ParameterCount, describe_float_parts
                        parameters.py     how many parameters are quantized; why the others are not
    Subgraph            subgraphs.py      consecutive nodes, with the tensors they read and give
    split_into_subgraphs, make_subgraph, extract_subgraph
                        subgraphs.py      the network in subgraphs; one of them; it as a module
    fold_batch_norm     folding.py        batch norm as part of the layer before it
    find_activation_sites
                        activations.py    the values that layers read, which are to be quantized
    find_product_sites  activations.py    those that products of two values read
    find_image_maps     activations.py    the images, normalised or rearranged by the network
    build_schedule, Schedule
                        liveness.py       which values are in memory at every step
    run_with_taps       run.py            a forward pass that reads values on the way

What a single node computes is read in operations.py, and only there; canonicalize.py rewrites a
traced network so that its nodes are what they look like; features.py finds a layer's feature.
"""

from ompq.graph.activations import find_activation_sites, find_image_maps, find_product_sites
from ompq.graph.check import check_network, trace_for
from ompq.graph.exclusions import Exclusions
from ompq.graph.folding import fold_batch_norm
from ompq.graph.layout import ImageLayout
from ompq.graph.liveness import Schedule, build_schedule
from ompq.graph.network import Block, Group, Layer, NetworkGraph, analyse
from ompq.graph.parameters import ParameterCount, describe_float_parts
from ompq.graph.run import run_with_taps
from ompq.graph.subgraphs import Subgraph, extract_subgraph, make_subgraph, split_into_subgraphs
from ompq.graph.trace import trace

__all__ = [
    "Block",
    "Exclusions",
    "Group",
    "ImageLayout",
    "Layer",
    "NetworkGraph",
    "ParameterCount",
    "Schedule",
    "Subgraph",
    "analyse",
    "build_schedule",
    "check_network",
    "describe_float_parts",
    "extract_subgraph",
    "find_activation_sites",
    "find_image_maps",
    "find_product_sites",
    "fold_batch_norm",
    "make_subgraph",
    "run_with_taps",
    "split_into_subgraphs",
    "trace",
    "trace_for",
]
