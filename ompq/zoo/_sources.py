"""Where a network of a given name comes from."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import nn

from ompq.errors import OmpqError
from ompq.preprocess import Preprocess
from ompq.zoo import small_resnet

Builder = Callable[[int | None, bool], nn.Module]

ALIASES = {
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3_small": "mobilenet_v3_small",
    "mobilenetv3_large": "mobilenet_v3_large",
    "inceptionv3": "inception_v3",
    "deit_tiny": "deit_tiny_patch16_224",
}
# Auxiliary classifiers serve training alone.
_BUILD_OPTIONS: dict[str, dict[str, Any]] = {
    "inception_v3": {"aux_logits": False, "init_weights": False},
    "googlenet": {"aux_logits": False, "init_weights": False},
}
_OWN = {"small_resnet": (small_resnet.small_resnet, small_resnet.PREPROCESS)}


@dataclass(frozen=True)
class Source:
    """A named network: `build(num_classes, pretrained)`, and what its images go through."""

    library: str
    name: str
    build: Builder
    preprocess: Preprocess


def find_source(name: str) -> Source:
    """Resolve `name`, with or without the prefix of a library.

    Raises:
        OmpqError: no library knows it (close names are given), or a needed package is missing.
    """
    prefix, separator, rest = name.partition(":")
    if prefix.endswith(".py"):
        return _own_file(Path(prefix), rest if separator else "")
    if separator:
        if prefix not in _LIBRARIES:
            raise OmpqError(f"network {name}: the prefix must be one of {', '.join(_LIBRARIES)}")
        return _LIBRARIES[prefix](ALIASES.get(rest, rest), True) or _unknown(name, prefix)
    plain = ALIASES.get(name, name)
    if plain in _OWN:
        factory, preprocess = _OWN[plain]
        return Source("ompq", plain, lambda n, _: factory(n or 10), preprocess)
    return _torchvision(plain, False) or _timm(plain, False) or _unknown(name, None)


def _unknown(name: str, library: str | None) -> Source:
    import timm
    from torchvision.models import list_models

    known = [*_OWN, *list_models(), *timm.list_models()]
    close = difflib.get_close_matches(name.rpartition(":")[2], known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "give a torchvision or timm name"
    where = f"{library} has no network" if library else "there is no network"
    raise OmpqError(f"{where} called {name!r}; {hint} (a file of your own: FILE.py:FACTORY)")


def _torchvision(name: str, required: bool) -> Source | None:
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    weights = list(models.get_model_weights(name))
    transforms = weights[0].transforms() if weights else None
    preprocess = Preprocess(
        *(transforms.crop_size[0], transforms.resize_size[0]) if transforms else (),
    )

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        if pretrained:
            return _download(name, lambda: models.get_model(name, weights=weights[0]))
        options = dict(_BUILD_OPTIONS.get(name, {}))
        return models.get_model(name, weights=None, num_classes=num_classes or 1000, **options)

    return Source("torchvision", name, build, preprocess)


def _timm(name: str, required: bool) -> Source | None:
    import timm

    if not timm.is_model(name):
        return None
    config = timm.get_pretrained_cfg(name)
    preprocess = Preprocess()
    if config is not None:
        size = config.input_size[-1]
        preprocess = Preprocess(
            size, round(size / config.crop_pct), config.mean, config.std, _smooth(config)
        )

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if pretrained:
            return _download(name, lambda: timm.create_model(name, pretrained=True))
        return timm.create_model(name, pretrained=False, **options)

    return Source("timm", name, build, preprocess)


def _smooth(config: Any) -> str:
    return "bicubic" if config.interpolation == "bicubic" else "bilinear"


def _pytorchcv(name: str, required: bool) -> Source | None:
    try:
        from pytorchcv.model_provider import get_model
    except ImportError as error:
        raise OmpqError("pytorchcv: networks need that package: pip install pytorchcv") from error

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        options = {} if num_classes is None else {"num_classes": num_classes}
        if pretrained:
            return _download(name, lambda: get_model(name, pretrained=True))
        return get_model(name, pretrained=False, **options)

    try:
        get_model(name)
    except ValueError:
        return None
    return Source("pytorchcv", name, build, Preprocess())


_LIBRARIES: dict[str, Callable[[str, bool], Source | None]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "pytorchcv": _pytorchcv,
}


def _download(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    try:
        return build()
    except (OSError, URLError, RuntimeError, ValueError) as error:
        reason = str(error).split("\n")[0][:120]
        raise OmpqError(
            f"--pretrained {name}: the weights could not be downloaded ({reason}); "
            "give a checkpoint with --path"
        ) from error


def _own_file(file: Path, factory_name: str) -> Source:
    if not file.is_file():
        raise OmpqError(f"network {file}:{factory_name}: there is no file {file}")
    with _importable(file.parent):
        module = _run(lambda: _import(file), file)
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise OmpqError(f"{file} has no function {factory_name!r}; write FILE.py:FACTORY")

    def build(num_classes: int | None, pretrained: bool) -> nn.Module:
        takes_classes = "num_classes" in inspect.signature(factory).parameters
        options = {"num_classes": num_classes} if takes_classes and num_classes else {}
        with _importable(file.parent):
            network = _run(lambda: factory(**options), file)
        if not isinstance(network, nn.Module):
            raise OmpqError(f"{file}:{factory_name} gave a {type(network).__name__}, not a module")
        return network

    return Source("your file", f"{file}:{factory_name}", build, Preprocess())


def _import(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"_network_of_user_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise OmpqError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickling inside the file look their own module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))


def _run(action: Callable[[], Any], file: Path) -> Any:
    try:
        return action()
    except OmpqError:
        raise
    except Exception as error:  # whatever the user's own code raises
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename) == file]
        line = f":{own[-1].lineno}" if own else ""
        kind = type(error).__name__
        raise OmpqError(f"{file}{line} failed: {kind}: {str(error)[:160]}") from error
