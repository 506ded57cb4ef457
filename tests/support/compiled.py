"""Networks converted to C and compiled, for tests of what it computes."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ompq.assignment import uniform
from ompq.export.c.source import CSource
from ompq.graph import trace
from ompq.integer import (
    ConversionSettings,
    IntegerNetwork,
    RangeRule,
    calibrate,
    convert_to_integers,
)

COMPILER = shutil.which("cc")
STRICT = "-std=c99 -Wall -Wextra -Werror -pedantic".split()


def compile_c(source: CSource, folder: Path, *arguments: str) -> None:
    """Write the files of a network and compile with them."""
    (folder / "model.c").write_text(source.source, encoding="utf-8")
    (folder / "model.h").write_text(source.header, encoding="utf-8")
    (folder / "test_vectors.h").write_text(source.vectors, encoding="utf-8")
    command = [str(COMPILER), *STRICT, *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


MAIN = """
    #include "model.h"
    #include "test_vectors.h"
    int main(void)
    {
        int32_t sums[MODEL_OUTPUTS], differing = 0;
        for (int t = 0; t < MODEL_TESTS; t++) {
            model_run(model_test_image[t], sums);
            for (int i = 0; i < MODEL_OUTPUTS; i++) differing += sums[i] != model_test_sums[t][i];
        }
        return differing != 0;
    }
"""


def run_under_sanitizer(source: CSource, folder: Path) -> None:
    """Run a network on its test vectors; where the compiler has them, sanitizers watch memory."""
    (folder / "main.c").write_text(MAIN, encoding="utf-8")
    arguments = ["-DMODEL_INTEGERS_ONLY", "-g", "-o", "main", "model.c", "main.c"]
    sanitizer = ["-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
    compile_c(source, folder, *(sanitizer if has_sanitizer(folder) else []), *arguments)
    done = subprocess.run([str(folder / "main")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def has_sanitizer(folder: Path) -> bool:
    """Tell whether the compiler has the sanitizers."""
    (folder / "empty.c").write_text("int main(void) { return 0; }", encoding="utf-8")
    command = [str(COMPILER), "-fsanitize=undefined,address", "-o", "empty", "empty.c"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


class Compiled:
    """A network in C as a library."""

    def __init__(self, source: CSource, folder: Path) -> None:
        compile_c(source, folder, "-shared", "-fPIC", "-o", "model.so", "model.c")
        self._library = ctypes.CDLL(str(folder / "model.so"))
        self.source = source
        self.images, (sums,) = read_vectors(source, "image"), read_vectors(source, "sums")
        self.outputs = sums.shape[1]

    def quantize(self, pixels: NDArray[np.float32]) -> NDArray[np.integer]:
        image = np.zeros_like(self.images[0][0])
        assert pixels.size == image.size
        self._library.model_quantize(_point(np.ascontiguousarray(pixels)), _point(image))
        return image

    def run(self) -> Tensor:
        """Compute the logits of the test images."""
        rows = []
        for number in range(len(self.images[0])):
            sums = np.zeros(self.outputs, np.int32)
            logits = np.zeros(self.outputs, np.float64)
            given = [_point(images[number]) for images in self.images]
            self._library.model_run(*given, _point(sums))
            self._library.model_logits(_point(sums), _point(logits))
            rows.append(logits)
        return torch.from_numpy(np.stack(rows))


def read_vectors(source: CSource, name: str) -> list[NDArray[np.integer]]:
    """Read the arrays of the test vectors whose names begin so, n × …."""
    found = re.findall(
        rf"static const (\w+)_t model_test_{name}\w*\[(\d+)\]\[(\d+)\] = ([^;]*);", source.vectors
    )
    assert found
    arrays = []
    for kind, images, size, text in found:
        numbers = [int(number) for number in re.findall(r"-?\d+", text)]
        arrays.append(np.array(numbers, kind).reshape(int(images), int(size)))
    return arrays


def _point(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


def quantize(
    network: nn.Module, images: Tensor, bits: int, act_bits: int, rule: RangeRule | None = None
) -> IntegerNetwork:
    """Convert a network to one width of weights and one of activations."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            module.weight.data.uniform_(0.5, 2)
    graph = trace(network, tuple(images.shape[1:]))
    assignment = uniform(graph.groups, bits, act_bits)
    widths = assignment.layer_bits(), assignment.layer_act_bits()
    settings = ConversionSettings(rule=rule or RangeRule())
    converted = convert_to_integers(graph, *widths, settings)
    calibrate(converted, [images], torch.device("cpu"))
    converted.module.eval()
    assert converted.runs_on_integers
    return converted
