"""Steps as C: the descriptions of what they compute, and the function that runs them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from torch import Tensor

from ompq.export.c.chains import Chains
from ompq.export.c.constants import Constants
from ompq.export.c.contractions import Contraction, Loop
from ompq.export.c.copies import Copies, Copy, Gather
from ompq.export.c.layers import Convolution, Layer, Product
from ompq.export.c.normalising import Norm, Softmax
from ompq.export.c.pools import Pooling, Reduction, Side
from ompq.export.c.program import (
    C_TYPES,
    Buffer,
    Computation,
    Map,
    Program,
    Region,
    Step,
    Task,
)

# What C functions lie in which file of `runtime`; a stem of several types is written once for each.
_NEEDED = {
    "convolve": ("weights", "convolution"),
    "multiply": ("weights", "product"),
    "pool": ("choice", "pool"),
    "reduce": ("choice", "reduce"),
    "contract": ("run", "contraction"),
    "softmax": ("run",),
    "norm": ("run",),
    "map": ("run",),
}
# Functions that are called otherwise than the file in which they lie.
_PIECES = {"take_softmax": "softmax", "normalise": "norm"}
_ORDER = (
    "look_up look_up_own line times weights convolution convolve product multiply choice pool "
    "reduce run contraction contract softmax norm map zeros gather"
).split()
_SHORTEST_ROW = 64


class Writer:
    """Writes the steps of a program.

    Args:
        program: The program.
        offsets: Buffer → its offset in memory.

    Attributes:
        constants: Tables that steps read.
    """

    def __init__(self, program: Program, offsets: Mapping[Buffer, int]) -> None:
        self.program, self.offsets = program, offsets
        self.constants = Constants()
        self._pieces: dict[tuple[str, str], None] = {}
        self._descriptions: list[str] = []
        self._chains = Chains(self.constants, self._describe, self._need)
        self._calls = [self._write_step(n, step) for n, step in enumerate(program.steps)]
        self.row = max([_SHORTEST_ROW, *(_measure_row(step) for step in program.steps)])
        layers = [task for task in map(_task_of, program.steps) if isinstance(task, Layer)]
        self.filter = max([layer.filter_size for layer in layers], default=0)
        narrow = all(layer.weights.is_narrow for layer in layers)
        self.weight = "int8_t" if narrow else "int16_t"
        kernels = [max(layer.kernel) for layer in layers if isinstance(layer, Convolution)]
        self.kernel = max(kernels, default=0)

    def count_scratch(self) -> int:
        """Count the bytes of what steps work in, besides the values."""
        item = 1 if self.weight == "int8_t" else 2
        return 2 * 4 * self.row + item * self.filter + 2 * 2 * 4 * self.kernel

    def write_definitions(self) -> str:
        """Write sizes, the runtime's functions, tables and descriptions."""
        sizes = {"ROW": self.row, "FILTER": self.filter, "WEIGHT": self.weight}
        sizes["KERNEL"] = self.kernel
        defined = "".join(f"#define {name} {size}\n" for name, size in sizes.items() if size)
        runtime = [_read_piece("core", ""), *(_read_piece(*piece) for piece in self._sort_pieces())]
        parts = [defined, *runtime, self.constants.write(), "".join(self._descriptions)]
        return "\n".join(part for part in parts if part)

    def write_body(self) -> str:
        """Write the statements that run all steps."""
        return "\n".join(self._calls)

    def _sort_pieces(self) -> list[tuple[str, str]]:
        return sorted(self._pieces, key=lambda piece: (_ORDER.index(piece[0]), piece[1]))

    def _need(self, name: str, kind: str = "") -> None:
        for piece in _NEEDED.get(name, ()):
            self._pieces[piece, ""] = None
        self._pieces[name, kind] = None

    def _write_step(self, number: int, step: Step) -> str:
        computation, task = step.computation, step.computation.task
        source, target = self._write_region(computation.source), self._write_region(step.target)
        lines = [f"const source x = {{{source}}};", f"const target y = {{{target}}};"]
        if task.second is not None:
            lines.append(f"const source z = {{{self._write_region(task.second)}}};")
        operands = [stage.operand for stage in computation.stages if stage.operand is not None]
        regions = ", ".join(f"{{{self._write_region(operand.region)}}}" for operand in operands)
        if operands:
            lines.append(f"const source operands[] = {{{regions}}};")
        if isinstance(task, Copy):
            lines += self._write_copy(number, task, step)
        elif isinstance(task, Copies):
            lines += self._write_copies(number, task, step)
        elif isinstance(task, Gather):
            lines += self._write_gather(number, task, step)
        else:
            given = "operands" if operands else "NULL"
            lines.append(self._write_call(number, computation, given))
        comment = f"    /* {_write_comment(computation)} */\n"
        return comment + "    {\n" + "".join(f"        {line}\n" for line in lines) + "    }"

    def _write_region(self, region: Region) -> str:
        """Write where a region is, what its integers are less, and their type."""
        buffer = region.buffer
        pointer = buffer.pointer or "memory"
        if buffer.values is not None:
            numbers = (buffer.values - buffer.low).tolist()
            pointer = self.constants.add(pointer, C_TYPES[buffer.type], numbers)
        offset = self.offsets.get(buffer, 0) + region.start * buffer.item_bytes
        kind = "uint8_t *" if pointer in ("memory", "sums") else "const uint8_t *"
        pointer = pointer if pointer == "memory" else f"({kind}){pointer}"
        return f"{pointer} + {offset}, {buffer.low}, {buffer.type}"

    def _write_call(self, number: int, computation: Computation, operands: str) -> str:
        """Write the call of a step's function, and describe what it computes."""
        task, name = computation.task, f"step_{number}"
        ends = f"{operands}, &y"
        chain = self._chains.write(str(number), computation)
        if isinstance(task, Map):
            self._need("map")
            self._describe("chain", name, chain)
            return f"map(&{name}, {computation.count}, &x, {ends});"
        fields, kind, function = self._write_task(number, task)
        typed = computation.source if isinstance(task, Layer) else task.second
        read = "&x" if task.second is None else "&x, &z"
        item = "" if typed is None else C_TYPES[typed.buffer.type].removesuffix("_t")
        self._need(_PIECES.get(function, function), item)
        stem = f"{function}_{item}" if item else function
        body = "".join(f"    .{field} = {value},\n" for field, value in fields.items())
        self._describe(kind, name, f"{{\n{body}    .chain = {chain},\n}}")
        return f"{stem}(&{name}, {read}, {ends});"

    def _describe(self, kind: str, name: str, value: str) -> None:
        self._descriptions.append(f"static const {kind} {name} = {value};\n")

    def _write_task(self, number: int, task: Task) -> tuple[dict[str, object], str, str]:
        """Return the fields that describe a task, their type in C, and the function for it."""
        if isinstance(task, Convolution):
            return self._write_layer(number, task) | _list_geometry(task), "convolution", "convolve"
        if isinstance(task, Product):
            fields = self._write_layer(number, task) | {"positions": task.positions}
            return fields, "product", "multiply"
        if isinstance(task, Pooling):
            sides = {"vertical": _write_side(task.vertical)}
            sides["horizontal"] = _write_side(task.horizontal)
            return {**sides, "maps": task.maps, "choice": task.choice}, "pooling", "pool"
        if isinstance(task, Softmax):
            return self._write_softmax(number, task), "softmax", "take_softmax"
        if isinstance(task, Norm):
            return _list_norm(task), "norm", "normalise"
        if isinstance(task, Contraction):
            loops = ", ".join(map(_write_loop, task.loops))
            ends = {"columns": _write_loop(task.columns), "summed": _write_loop(task.summed)}
            return {"loops": f"{{{loops}}}", **ends}, "contraction", "contract"
        assert isinstance(task, Reduction)
        sizes = {"outer": task.outer, "length": task.length, "inner": task.inner}
        return {**sizes, "choice": task.choice}, "reduction", "reduce"

    def _write_softmax(self, number: int, task: Softmax) -> dict[str, object]:
        table = self.constants.add(f"exponentials_{number}", "uint16_t", task.table.tolist())
        return {
            "table": table,
            "outer": task.outer,
            "length": task.length,
            "one": task.one,
            "last": len(task.table),
            "multiplier": task.multiplier,
            "shift": task.shift,
            "bits": task.bits,
        }

    def _write_layer(self, number: int, layer: Layer) -> dict[str, object]:
        weights = layer.weights
        packed = self.constants.add(f"weights_{number}", "uint8_t", weights.packed.tolist())
        bases, base = "NULL", 0
        if weights.bases.dim():
            bases = self.constants.add(f"bases_{number}", "int16_t", weights.bases.tolist())
        else:
            base = int(weights.bases)
        bias = "NULL"
        if layer.bias is not None:
            bias = self.constants.add(f"bias_{number}", "int32_t", layer.bias.tolist())
        return {
            "weights": f"{{{packed}, {bases}, {base}, {weights.bits}}}",
            "bias": bias,
            "inputs": layer.inputs,
            "outputs": layer.outputs,
        }

    def _write_copy(self, number: int, copy: Copy, step: Step) -> list[str]:
        """Write the nested loops of a copy."""
        lines = self._write_zeros(copy.zeros, step)
        return [*lines, *self._write_loops(str(number), copy, step)]

    def _write_copies(self, number: int, copies: Copies, step: Step) -> list[str]:
        """Write the nested loops of several copies."""
        lines = self._write_zeros(copies.zeros, step)
        for part, copy in enumerate(copies.parts):
            lines += self._write_loops(f"{number}_{part}", copy, step)
        return lines

    def _write_loops(self, label: str, copy: Copy, step: Step) -> list[str]:
        size = step.target.buffer.item_bytes
        lines: list[str] = []
        to, origin = [str(copy.to)], [str(copy.origin)]
        for depth, axis in enumerate(copy.axes):
            index = f"i{depth}"
            lines.append(f"for (int32_t {index} = 0; {index} < {axis.count}; {index}++)")
            to.append(self._write_offset(f"to_{label}_{depth}", axis.strides[0], axis.to, index))
            from_name = f"from_{label}_{depth}"
            origin.append(self._write_offset(from_name, axis.strides[1], axis.origin, index))
        ends = (" + ".join(part for part in parts if part != "0") or "0" for parts in (to, origin))
        target, source = ends
        moved = (
            f"memcpy(y.at + {size} * ({target}), x.at + {size} * ({source}), {size * copy.run});"
        )
        return [*lines, f"    {moved}"]

    def _write_offset(self, name: str, stride: int | None, offsets: Tensor, index: str) -> str:
        if stride is not None:
            return f"{stride} * {index}" if stride >= 0 else f"({stride}) * {index}"
        first = int(offsets.min())
        kind = "uint16_t" if int(offsets.max()) - first < 2**16 else "uint32_t"
        table = self.constants.add(name, kind, (offsets - first).tolist())
        read = f"(int32_t){table}[{index}]"
        return read if first == 0 else f"{read} + ({first})"

    def _write_gather(self, number: int, gather: Gather, step: Step) -> list[str]:
        count = len(gather.table)
        wide = int(gather.table.max()) >= 2**16 - 1
        kind, none = ("uint32_t", 2**32 - 1) if wide else ("uint16_t", 2**16 - 1)
        values = [none if place < 0 else place for place in gather.table.tolist()]
        table = self.constants.add(f"places_{number}", kind, values)
        item = kind.removesuffix("_t")
        self._need("gather", item)
        size = step.target.buffer.item_bytes
        call = f"gather_{item}(y.at, x.at, {table}, {count}, {gather.run}, {size});"
        return [*self._write_zeros(gather.zeros, step), call]

    def _write_zeros(self, zeros: bool, step: Step) -> list[str]:
        if not zeros:
            return []
        self._need("zeros")
        return [f"fill_zeros(&y, {step.computation.count});"]


def _read_piece(name: str, kind: str) -> str:
    """Read a file of the runtime, written for one type."""
    text = (files("ompq.export.c") / "runtime" / f"{name}.c").read_text(encoding="utf-8")
    return text.replace("TYPE", kind).lstrip("\n")


def _list_geometry(task: Convolution) -> dict[str, object]:
    """List the fields of a convolution's geometry."""
    return {
        "batch": task.batch,
        "groups": task.groups,
        "height": task.size[0],
        "width": task.size[1],
        "rows": task.results[0],
        "columns": task.results[1],
        "kernel_height": task.kernel[0],
        "kernel_width": task.kernel[1],
        "down": task.stride[0],
        "across": task.stride[1],
        "above": task.padding[0],
        "before": task.padding[1],
        "reach_down": task.dilation[0],
        "reach_across": task.dilation[1],
    }


def _list_norm(task: Norm) -> dict[str, object]:
    """List the fields of a norm."""
    return {
        "eps": f"INT64_C({task.eps})",
        "outer": task.outer,
        "length": task.length,
        "places": task.places,
        "centred": int(task.centred),
        "spare": task.spare,
        "factor": task.factor,
    }


def _write_loop(loop: Loop) -> str:
    return f"{{{loop.size}, {loop.first}, {loop.second}}}"


def _write_side(side: Side) -> str:
    numbers = side.size, side.results, side.kernel, side.stride, side.padding, side.dilation
    return "{" + ", ".join(map(str, numbers)) + "}"


def _write_comment(computation: Computation) -> str:
    """Name a step by its place; nothing in a name may end the comment."""
    what = type(computation.task).__name__.lower()
    return f"{computation.place}: {what}".replace("*/", "").replace("/*", "")


def _task_of(step: Step) -> Task:
    return step.computation.task


def _measure_row(step: Step) -> int:
    """Measure the longest row that a step works on at a time."""
    task = step.computation.task
    if isinstance(task, Convolution):
        return task.results[1]
    if isinstance(task, Pooling):
        return max(task.horizontal.size, task.horizontal.results)
    return 0
