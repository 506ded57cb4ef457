"""What is written for every target of an export."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ompq.artifact import Artifact, write_artifact
from ompq.errors import OmpqError
from ompq.export.seals import VECTORS_FILE, seal_vectors
from ompq.export.test_images import TestImages, find_test_images
from ompq.integer import IntegerNetwork
from ompq.runtime import versions

if TYPE_CHECKING:
    import onnx

WEB_FOLDER = "web"
_NEEDS_ONNX = "writing ONNX needs the package onnx; pip install onnx"
_INTEGERS_ONLY = "the integers of the network are what is exported"


@dataclass(frozen=True)
class Written:
    """What a target has written into a folder.

    Attributes:
        file: Name of the file that a runtime reads, within the folder.
        size: Bytes that the network takes: of that file, or of the tables of a program.
        notes: What a user should know of it, one line each.
    """

    file: str
    size: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A kind of file that a network is exported to.

    Attributes:
        write: Function that writes it into a folder.
        is_exact: Whether it computes the logits of the network of integers to the bit.
        has_images: Whether test images are written beside it.
        is_packed: Whether it is ONNX with packed weights, and so computes what the plain form does.
    """

    write: Callable[[Artifact, TestImages, Path], Written]
    is_exact: bool = True
    has_images: bool = True
    is_packed: bool = False


def _write_packed(read: Artifact, tests: TestImages, folder: Path) -> Written:
    return _save_packed(read, folder, entropy=False)


def _write_coded(read: Artifact, tests: TestImages, folder: Path) -> Written:
    return _save_packed(read, folder, entropy=True)


def _save_packed(read: Artifact, folder: Path, entropy: bool) -> Written:
    file = folder / "model.ompq.safetensors"
    write_artifact(file, read, entropy=entropy)
    return Written(file.name, file.stat().st_size)


def _write_onnx(read: Artifact, tests: TestImages, folder: Path) -> Written:
    return _save_quantized_onnx(read, folder / "model.onnx", packed=False)


def _write_packed_onnx(read: Artifact, tests: TestImages, folder: Path) -> Written:
    return _save_quantized_onnx(read, folder / "model.packed.onnx", packed=True)


def _save_quantized_onnx(read: Artifact, file: Path, packed: bool) -> Written:
    network = find_integers(read)
    try:
        from ompq.export.onnx.quantized import build_quantized_model, find_uint8_weights
    except ImportError as error:
        raise OmpqError(_NEEDS_ONNX) from error
    _save(build_quantized_model(network, packed, describe(read)), file)
    asymmetric = find_uint8_weights(network)
    notes = [
        f"{len(asymmetric)} layers have asymmetric weights of 8 bits, which ONNX Runtime computes "
        "from version 1.24 on; quantize them symmetrically for earlier ones"
    ] * bool(asymmetric)
    return Written(file.name, file.stat().st_size, tuple(notes))


def _write_integer_onnx(read: Artifact, tests: TestImages, folder: Path) -> Written:
    network, file = find_integers(read), folder / "model.integer.onnx"
    try:
        from ompq.export.onnx.integer import build_integer_model
    except ImportError as error:
        raise OmpqError(_NEEDS_ONNX) from error
    _save(build_integer_model(network, describe(read)), file)
    return Written(file.name, file.stat().st_size)


def _write_c(read: Artifact, tests: TestImages, folder: Path) -> Written:
    from ompq.export.c.source import write_c

    made = write_c(find_integers(read), tests.images)
    source, header = folder / "model.c", folder / "model.h"
    source.write_text(made.source, encoding="utf-8")
    header.write_text(made.header, encoding="utf-8")
    vectors = seal_vectors(made.vectors, source, header, made.flash_bytes)
    (folder / VECTORS_FILE).write_text(vectors, encoding="utf-8")
    memory = f"{made.flash_bytes} bytes of tables (flash), {made.ram_bytes} of static memory (RAM)"
    return Written("model.c", made.flash_bytes, (f"model.c: {memory}, and its code",))


def _write_web(read: Artifact, tests: TestImages, folder: Path) -> Written:
    from ompq.export.web.page import write_page

    web = folder / WEB_FOLDER
    web.mkdir()
    write_page(read, find_integers(read), web)
    written = _save_quantized_onnx(read, web / "model.onnx", packed=True)
    return replace(written, file=f"{WEB_FOLDER}/{written.file}")


TARGETS = {
    "packed": Target(_write_packed),
    "packed-entropy": Target(_write_coded),
    "onnx": Target(_write_onnx, is_exact=False),
    "onnx-packed": Target(_write_packed_onnx, is_exact=False, is_packed=True),
    "onnx-integer": Target(_write_integer_onnx),
    "c": Target(_write_c, has_images=False),
    "web": Target(_write_web, is_exact=False, is_packed=True),
}


def list_files(file: str) -> tuple[str, ...]:
    """List the files that belong to an exported one, itself first.

    >>> list_files("model.c"), list_files("model.onnx")
    (('model.c', 'model.h', 'test_vectors.h'), ('model.onnx', 'model.test.safetensors'))
    """
    if file.endswith(".c"):
        return file, f"{file.removesuffix('.c')}.h", VECTORS_FILE
    return file, str(find_test_images(Path(file)))


def find_integers(read: Artifact) -> IntegerNetwork:
    """Return the network of integers of an artifact.

    Raises:
        OmpqError: It has none: its activations are in float, or an earlier version wrote it.
    """
    if not isinstance(read.network, IntegerNetwork):
        raise OmpqError(
            f"{_INTEGERS_ONLY}, and this one computes in float: quantize it again with "
            "`act_quant` (files of earlier versions have no integers either)"
        )
    return read.network


def describe(read: Artifact) -> dict[str, str]:
    """Describe a network for whoever opens its model: preprocessing, classes, bits."""
    held = read.description
    told = {
        "network": held["architecture"]["name"],
        "model_size_mb": held["model_size_mb"],
        "bits": held["bits"],
        "activation_bits": held["activation_bits"],
        "groups": held["groups"],
        "preprocess": held["preprocess"],
        "class_names": list(read.class_names),
        "versions": versions(),
    }
    return {"ompq": json.dumps(told, separators=(",", ":"))}


def _save(model: onnx.ModelProto, file: Path) -> None:
    file.write_bytes(model.SerializeToString())
