"""A network with its weights, from a name and perhaps a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess
from ompq.zoo._checkpoint import check_finite, find_weights
from ompq.zoo._classes import count_classes
from ompq.zoo._fitting import fit_checkpoint
from ompq.zoo._layouts import LAYOUTS
from ompq.zoo._sources import USER_LIBRARY, Source, download_weights, find_source
from ompq.zoo._user_file import find_user_file, locate_user_file

RANDOM_WEIGHTS = "random initialisation"
RANDOM_WEIGHTS_NOTE = "the network has random weights; give a checkpoint with `path`"


@dataclass
class Network:
    """A network with its weights and the preprocessing of its images.

    Attributes:
        name: Name that the network was loaded by.
        module: The network itself, float32, on the CPU, in evaluation mode.
        preprocess: Preprocessing of its images.
        num_classes: Number of classes.
        source: Origin of the weights in words; `RANDOM_WEIGHTS` where there are none.
        layout: Name of the checkpoint's layout, which may have changed the structure of the
            network; empty where no checkpoint was read.
        notes: What a user should know about the weights, one line each.
    """

    name: str
    module: nn.Module
    preprocess: Preprocess
    num_classes: int
    source: str
    layout: str = ""
    notes: tuple[str, ...] = ()

    def architecture(self) -> dict[str, Any]:
        """Return JSON-ready values from which `rebuild` builds the network without weights."""
        file = find_user_file(self.name)
        return {
            "name": self.name,
            **({} if file is None else {"file": str(file.resolve())}),
            "num_classes": self.num_classes,
            "layout": self.layout,
            "transform_input": bool(getattr(self.module, "transform_input", False)),
        }


def load_network(
    name: str,
    *,
    path: str | Path | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
) -> Network:
    """Build the network called `name` and load its weights.

    Args:
        name: Name that torchvision or timm knows (torchvision's network where both do), a name
            with the prefix `torchvision:`, `timm:` or `pytorchcv:`, the name of a network of ours,
            or `FILE.py:FACTORY`.
        path: Path of a checkpoint in any of the known layouts, or of the folder that holds it.
        pretrained: Whether to take the library's own weights (from an installed package, else
            downloaded).
        num_classes: Number of classes where no checkpoint tells it; None for the library's default.

    Raises:
        OmpqError: The name is unknown, the checkpoint is unreadable or does not fit, the weights
            cannot be downloaded or hold NaN or infinity, or `num_classes` contradicts them.
    """
    if path is not None and pretrained:
        raise OmpqError("`path` and `pretrained` name two sources of weights; give one")
    if num_classes is not None and num_classes < 1:
        raise OmpqError(f"`num_classes` must be at least 1, not {num_classes}")
    source = find_source(name)
    if path is not None:
        return _load_file(name, source, find_weights(path), num_classes)
    if not pretrained:
        module = source.build(num_classes)
        origin = "what your file gave" if source.library == USER_LIBRARY else RANDOM_WEIGHTS
        return _make_network(name, source, module, origin)
    if source.package is not None:
        package, file = source.package
        network = _load_file(name, source, file, num_classes)
        network.source = f"the package {package}"
        return network
    network = _make_network(name, source, download_weights(source), source.weights)
    if num_classes not in (None, network.num_classes):
        raise OmpqError(
            f"`num_classes` {num_classes} contradicts `pretrained`: {source.weights} for {name} "
            f"has {network.num_classes} classes"
        )
    return network


def _load_file(name: str, source: Source, file: Path, num_classes: int | None) -> Network:
    fit = fit_checkpoint(source, file, num_classes)
    preprocess = source.published.get(file.name)
    if preprocess is not None and hasattr(fit.module, "transform_input"):
        # The library's own file of such a network was made for inputs in -1..1.
        fit.module.transform_input = True  # type: ignore[assignment]
    network = _make_network(name, fit.source, fit.module, fit.describe(file), preprocess)
    if num_classes not in (None, network.num_classes):
        raise OmpqError(
            f"`num_classes` {num_classes} contradicts {file}, which has {network.num_classes} "
            "classes; leave `num_classes` out or give the other checkpoint"
        )
    network.layout = fit.layout.name
    if fit.left_out:
        network.notes = (f"left out of {file}: {', '.join(fit.left_out)}",)
    return network


def relocate(architecture: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return an architecture with the place where the user's FILE.py is found now, if it has one.

    Args:
        architecture: Values that `Network.architecture` returned.
        folder: Folder of the file that they come from; looked in as `rebuild` does.

    Raises:
        OmpqError: The user's file is not found.
    """
    name = architecture["name"]
    if find_user_file(name) is None:
        return dict(architecture)
    file, _, _ = locate_user_file(name, architecture.get("file"), folder).rpartition(":")
    return {**architecture, "file": os.path.abspath(file)}


def rebuild(
    architecture: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    folder: Path | None = None,
) -> nn.Module:
    """Build the network that `Network.architecture` describes, with random weights.

    Args:
        architecture: Values that `Network.architecture` returned.
        weights: Weights under the network's own names; their presence and shapes tell what the
            layout of a checkpoint changed in the network. Their values are not used.
        folder: Folder of the file that the values come from. The user's own FILE.py is looked for
            where it was when they were written, then as it is named, then in that folder and above.

    Returns:
        The network, float32, on the CPU, in evaluation mode.

    Raises:
        OmpqError: The network or the layout is not known here, or the user's file is not found.
    """
    source = find_source(locate_user_file(architecture["name"], architecture.get("file"), folder))
    layout = next((known for known in LAYOUTS if known.name == architecture["layout"]), None)
    if architecture["layout"] and layout is None:
        raise OmpqError(f"layout {architecture['layout']!r} of a checkpoint is not known here")
    sibling = layout.find_sibling(source.name) if layout is not None else None
    if sibling is not None:
        source = find_source(sibling)
    classes = architecture["num_classes"]
    # A factory of the user's takes the number or ignores it; some library networks refuse it.
    module = source.build_float(classes if source.library == USER_LIBRARY else None)
    if count_classes(module, source.preprocess(module)) != classes:
        module = source.build_float(classes)
    for adapt in layout.adapts if layout is not None else ():
        adapt(module, dict(weights))  # a copy, which it may change
    if architecture["transform_input"]:
        module.transform_input = True  # type: ignore[assignment]
    return module.eval()


def _make_network(
    name: str,
    source: Source,
    module: nn.Module,
    origin: str,
    preprocess: Preprocess | None = None,
) -> Network:
    kinds = {p.dtype for p in module.parameters() if p.is_floating_point()} - {torch.float32}
    module = module.float().cpu().eval()
    check_finite(module, f"{name}, {origin}")
    preprocess = preprocess or source.preprocess(module)
    network = Network(name, module, preprocess, count_classes(module, preprocess), origin)
    if kinds:
        given = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        network.notes = (f"{name} came in {given}; everything is computed in float32",)
    return network
