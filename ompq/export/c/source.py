"""The files of a network in C."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from ompq.errors import OmpqError
from ompq.export.c.constants import write_numbers
from ompq.export.c.header import write_header, write_prototypes, write_quantizers
from ompq.export.c.memory import place_buffers
from ompq.export.c.plan import plan
from ompq.export.c.program import Program
from ompq.export.c.text import Writer
from ompq.export.c.vectors import write_vectors
from ompq.integer.network import IntegerNetwork

_ARENA = "/* Values between the steps; those that are never needed at once share their place. */\n"


@dataclass(frozen=True)
class CSource:
    """A network as C99 that needs no library.

    Attributes:
        source: Text of `NAME.c`.
        header: Text of `NAME.h`, which documents the functions.
        vectors: Text of `test_vectors.h`: images and their sums, all integers.
        flash_bytes: Bytes of all tables (weights, biases, factors, places); the code and the
            descriptions of its steps, whose size the compiler decides, come on top.
        ram_bytes: Bytes of static memory: values and what steps work in. Images and sums lie in
            the caller's arrays and do not count.
    """

    source: str
    header: str
    vectors: str
    flash_bytes: int
    ram_bytes: int


def write_c(network: IntegerNetwork, images: Tensor, name: str = "model") -> CSource:
    """Write a network of integers as C99: integers, shifts and nothing else.

    The sums that the C function gives are, to the bit, those of `IntegerExecution`.

    Args:
        network: Network of integers, in evaluation mode, on the CPU.
        images: Images for the test vectors, n × channels × height × width, float32, normalised as
            the network takes them.
        name: What names in C begin with, and the files are called.

    Raises:
        OmpqError: The network does not run on integers alone (names what does not), an operation
            has no form in C, or the name is none in C.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise OmpqError(f"`name` is {name!r}; a name in C is letters, digits and underscores")
    program = plan(network)
    offsets, memory = place_buffers(program.steps)
    writer = Writer(program, offsets)
    scale_bytes = 8 * len(program.output_scale)
    return CSource(
        source=_write_source(program, writer, memory, name),
        header=write_header(program, name, memory + writer.count_scratch()),
        vectors=write_vectors(network, program, images, name),
        flash_bytes=writer.constants.count_bytes + scale_bytes,
        ram_bytes=memory + writer.count_scratch(),
    )


def _write_source(program: Program, writer: Writer, memory: int, name: str) -> str:
    scales = write_numbers([float(scale).hex() for scale in program.output_scale])
    arena, pointer = "", ""
    if memory:
        arena = f"{_ARENA}static int32_t arena[{memory // 4}];\n"
        pointer = "    uint8_t *const memory = (uint8_t *)arena;\n"
    parts = [
        f'#include "{name}.h"\n\n#include <string.h>\n',
        writer.write_definitions(),
        arena,
        f"const double {name}_scales[{len(program.output_scale)}] = {{\n{scales}\n}};\n",
        f"{write_prototypes(program, name)['run']}\n{{\n{pointer}{writer.write_body()}\n}}\n",
        write_quantizers(program, name),
    ]
    return "\n".join(part for part in parts if part)
