"""The folder of a web page: what the page is made of, what runs the network, what is told of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from ompq.artifact import Artifact
from ompq.cost import BITS_PER_MB, FLOAT_BITS
from ompq.export.web.onnxruntime_web import ONNXRUNTIME_WEB, fetch_package
from ompq.integer import IntegerNetwork
from ompq.integer.layers import QuantizedLayer
from ompq.integer.network import collect_called_modules
from ompq.integer.requantization import Requantizer
from ompq.runtime import versions

FORMAT = "ompq-web/1"
# What a folder that holds a page is known by.
DESCRIPTION = "network.json"
_SOURCES = (
    "index.html style.css page.js network.js preprocess.js test_images.js "
    "LICENSE.onnxruntime-web.txt"
).split()
_BYTE = 8


def write_page(read: Artifact, network: IntegerNetwork, folder: Path) -> None:
    """Write everything of a web page but the network and its test images.

    Args:
        read: Quantized network.
        network: Its network of integers.
        folder: Folder for the files.

    Raises:
        OmpqError: What runs the network there cannot be fetched.
    """
    for path, kept in fetch_package().items():
        # Not every server knows .mjs, and a module of an unknown type is refused.
        name = Path(path).name.replace(".mjs", ".js")
        shutil.copyfile(kept, folder / name)
    for name in _SOURCES:
        source = files("ompq.export.web") / name
        (folder / name).write_bytes(source.read_bytes())
    description = json.dumps(describe_network(read, network), indent=1)
    (folder / DESCRIPTION).write_text(description, encoding="utf-8")


def describe_network(read: Artifact, network: IntegerNetwork) -> dict[str, Any]:
    """Describe a network for its page.

    Args:
        read: Quantized network.
        network: Its network of integers.

    Returns:
        JSON-ready values: its name, its groups of layers with bits and numbers of weights, bytes
        in float and as promised, preprocessing, names of classes, versions.
    """
    held = read.description
    weights = {
        name: layer.compute_integers().weight.numel() for name, layer in network.layers().items()
    }
    groups = [
        {
            "layers": layers,
            "bits": bits,
            "weights": sum(weights.get(layer, 0) for layer in layers),
        }
        for layers, bits in zip(held["groups"], held["bits"], strict=True)
    ]
    return {
        "format": FORMAT,
        "network": held["architecture"]["name"],
        "groups": groups,
        "activation_bits": held["activation_bits"],
        "float_bytes": measure_float_bytes(network),
        "promised_bytes": round(held["model_size_mb"] * BITS_PER_MB / _BYTE),
        "input_shape": list(network.input_shape),
        "preprocess": asdict(read.preprocess),
        "class_names": list(read.class_names),
        "runtime": f"{ONNXRUNTIME_WEB.name} {ONNXRUNTIME_WEB.version}",
        "versions": versions(),
    }


def measure_float_bytes(network: IntegerNetwork) -> int:
    """Measure what a network takes in 32-bit floats, batch norm folded, in bytes.

    Args:
        network: Network of integers, in evaluation mode.
    """
    graph_module = network.module
    held: dict[int, int] = {}
    for module in collect_called_modules(graph_module).values():
        if isinstance(module, QuantizedLayer):
            # One weight that several layers share is there once.
            held[id(module.layer.weight)] = module.layer.weight.numel()
            bias = module.fold()[1]
            held[id(module)] = 0 if bias is None else bias.numel()
        elif not isinstance(module, Requantizer):
            held |= {id(each): each.numel() for each in module.parameters()}
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            value = _read_attribute(graph_module, str(node.target))
            if isinstance(value, torch.nn.Parameter):
                held[id(value)] = value.numel()
    return sum(held.values()) * FLOAT_BITS // _BYTE


def _read_attribute(module: torch.nn.Module, path: str) -> object:
    """Return what stands in a module at a path."""
    value: object = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
