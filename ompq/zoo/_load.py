"""A network with its weights, from a name and perhaps a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ompq.checkpoint import check_finite, find_weights
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess
from ompq.zoo._fitting import classifier, load_checkpoint
from ompq.zoo._layouts import LAYOUTS
from ompq.zoo._sources import Source, download, find_source

RANDOM_WEIGHTS = "random initialisation"


@dataclass
class Network:
    """A network in evaluation mode (float32, CPU), and what its images go through.

    `source` says in words where the weights came from; `layout` is the layout of the checkpoint,
    if one was read, which may have changed the network's structure.
    """

    name: str
    module: nn.Module
    preprocess: Preprocess
    num_classes: int
    source: str
    layout: str = ""

    def architecture(self) -> dict[str, Any]:
        """JSON-ready values from which `rebuild` makes the same network without weights."""
        return {
            "name": self.name,
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
        name: a torchvision or timm name (torchvision's where both have it), one with the prefix
            `torchvision:`, `timm:` or `pytorchcv:`, one of ours, or `FILE.py:FACTORY`.
        path: checkpoint file, or the folder that holds it, in any of the known layouts.
        pretrained: the library's own weights (from an installed package, else downloaded).
        num_classes: number of classes where no checkpoint tells it; the library's default if None.

    Raises:
        OmpqError: unknown name, unreadable or unfitting checkpoint, no network connection, NaN in
            the weights, or a number of classes that contradicts the checkpoint.
    """
    if path is not None and pretrained:
        raise OmpqError("--path and --pretrained name two sources of weights; give one")
    if num_classes is not None and num_classes < 1:
        raise OmpqError(f"--num_classes must be at least 1, not {num_classes}")
    source = find_source(name)
    if path is not None:
        return _from_file(name, source, find_weights(path), num_classes)
    if not pretrained:
        origin = "what your file gave" if source.library == "your file" else RANDOM_WEIGHTS
        return _network(name, source, source.build(num_classes), origin)
    if source.package is not None:
        package, file = source.package
        network = _from_file(name, source, file, num_classes)
        network.source = f"the package {package}"
        return network
    network = _network(name, source, download(source), source.weights)
    if num_classes not in (None, network.num_classes):
        raise OmpqError(
            f"--num_classes {num_classes} contradicts --pretrained: {source.weights} for {name} "
            f"has {network.num_classes} classes"
        )
    return network


def _from_file(name: str, source: Source, file: Path, num_classes: int | None) -> Network:
    fit, origin = load_checkpoint(source, file, num_classes)
    preprocess = source.published.get(file.name)
    if preprocess is not None and hasattr(fit.module, "transform_input"):
        # The library's own file of such a network was made for inputs in -1..1.
        fit.module.transform_input = True  # type: ignore[assignment]
    network = _network(name, fit.source, fit.module, origin, preprocess)
    network.layout = fit.layout.name
    return network


def rebuild(architecture: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """The network that `Network.architecture` describes, with random weights.

    Args:
        architecture: what `Network.architecture` gave.
        weights: tensors under the network's names, whose presence and shapes tell what a
            checkpoint's layout changed.

    Raises:
        OmpqError: the network or the layout is not known here.
    """
    source = find_source(architecture["name"])
    layout = next((known for known in LAYOUTS if known.name == architecture["layout"]), None)
    if architecture["layout"] and layout is None:
        raise OmpqError(f"layout {architecture['layout']!r} of a checkpoint is not known here")
    if layout is not None and source.name in layout.siblings:
        source = find_source(layout.siblings[source.name])
    module = source.build(None)
    if classifier(module)[1] != architecture["num_classes"]:
        module = source.build(architecture["num_classes"])
    for adapt in layout.adapts if layout is not None else ():
        adapt(module, dict(weights))
    if architecture["transform_input"]:
        module.transform_input = True  # type: ignore[assignment]
    return module.float().cpu().eval()


def _network(
    name: str,
    source: Source,
    module: nn.Module,
    origin: str,
    preprocess: Preprocess | None = None,
) -> Network:
    module = module.float().cpu().eval()
    check_finite(module.state_dict(), f"{name}, {origin}")
    classes = classifier(module)[1]
    return Network(name, module, preprocess or source.preprocess(module), classes, origin)
