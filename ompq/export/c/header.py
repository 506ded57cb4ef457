"""The header of a network in C, and its functions from and to floats."""

from __future__ import annotations

from math import prod

from ompq.export.c.program import C_TYPES, Input, Program

_RUN = """\
/* Compute the sums of one image. Integers and shifts alone; nothing is allocated. The memory
   between the steps is static: one call at a time.

{inputs}
   sums: {prefix}_OUTPUTS integers; logit i is sums[i] * {name}_scales[i]. */
"""
_INPUT = """\
   {pointer}: {shape} integers of an image (channels, rows, columns). Each is a pixel, {what},
       divided by {scale:.9g}, rounded to nearest (halves to even), clamped to {low} .. {high},
       {less}; {quantize} computes them.
"""
_QUANTIZE = """\
{prototype}
{{
    int32_t i;
    for (i = 0; i < {count}; i++) {{
        const double value = clamp_value((double)pixels[i] / {scale}, {low}, {high});
        {pointer}[i] = ({kind})({rounded});
    }}
}}
"""
_ROUNDING = """\
static double clamp_value(double value, double low, double high)
{
    if (!(value > low)) return low;
    return value < high ? value : high;
}

/* Round to the nearest integer, halves to even. */
static int32_t round_value(double value)
{
    const int32_t whole = (int32_t)value;
    const double rest = value - whole;
    if (rest > 0.5 || (rest == 0.5 && whole % 2 != 0)) return whole + 1;
    if (rest < -0.5 || (rest == -0.5 && whole % 2 != 0)) return whole - 1;
    return whole;
}
"""


def write_prototypes(program: Program, name: str) -> dict[str, str]:
    """Write the first lines of the functions: `run`, `logits`, and `quantize` by pointer."""
    pointers = ", ".join(
        f"const {_type(given)} *{given.buffer.pointer}" for given in program.inputs
    )
    found = {
        "run": f"void {name}_run({pointers}, int32_t *sums)",
        "logits": f"void {name}_logits(const int32_t *sums, double *logits)",
    }
    for given in program.inputs:
        pointer = given.buffer.pointer
        function = name_quantizer(given, name)
        found[pointer] = f"void {function}(const float *pixels, {_type(given)} *{pointer})"
    return found


def name_quantizer(given: Input, name: str) -> str:
    """Name the function that quantizes an input."""
    return f"{name}_quantize" + given.buffer.pointer.removeprefix("image")


def write_header(program: Program, name: str, ram_bytes: int) -> str:
    """Write the header.

    Args:
        program: The network.
        name: What names begin with.
        ram_bytes: Bytes of static memory that it takes.
    """
    prefix = name.upper()
    prototypes = write_prototypes(program, name)
    inputs = "".join(_describe(given, name) for given in program.inputs)
    sizes = [
        f"#define {prefix}_{given.buffer.pointer.upper()}_SIZE {prod(given.shape)}\n"
        for given in program.inputs
    ]
    run = _RUN.format(inputs=inputs.rstrip("\n"), prefix=prefix, name=name)
    floats = [prototypes[given.buffer.pointer] for given in program.inputs]
    guard = f"{prefix}_H"
    return (
        f"/* A network of integers in C99, {ram_bytes} bytes of static memory. */\n"
        f"#ifndef {guard}\n#define {guard}\n\n#include <stdint.h>\n\n"
        f"{''.join(sizes)}#define {prefix}_OUTPUTS {prod(program.output_shape)}\n\n"
        '#ifdef __cplusplus\nextern "C" {\n#endif\n\n'
        f"{run}{prototypes['run']};\n\n"
        "/* What turns sums into logits. */\n"
        f"extern const double {name}_scales[{prefix}_OUTPUTS];\n\n"
        f"#ifndef {prefix}_INTEGERS_ONLY\n"
        "/* For convenience, in floats: pixels to integers, sums to logits. */\n"
        f"{''.join(f'{line};' + chr(10) for line in floats)}{prototypes['logits']};\n#endif\n\n"
        f"#ifdef __cplusplus\n}}\n#endif\n\n#endif\n"
    )


def write_quantizers(program: Program, name: str) -> str:
    """Write the functions that compute with floats, which the network itself needs not."""
    prototypes = write_prototypes(program, name)
    functions = [
        _QUANTIZE.format(
            prototype=prototypes[given.buffer.pointer],
            count=prod(given.shape),
            scale=given.scale.hex(),
            low=f"{given.bounds[0]}.0",
            high=f"{given.bounds[1]}.0",
            pointer=given.buffer.pointer,
            kind=_type(given),
            rounded=_write_rounding(given),
        )
        for given in program.inputs
    ]
    logits = (
        f"{prototypes['logits']}\n{{\n    int32_t i;\n"
        f"    for (i = 0; i < {prod(program.output_shape)}; i++)\n"
        f"        logits[i] = sums[i] * {name}_scales[i];\n}}\n"
    )
    body = "\n".join([_ROUNDING, *functions, logits])
    return f"#ifndef {name.upper()}_INTEGERS_ONLY\n{body}#endif\n"


def _describe(given: Input, name: str) -> str:
    low = given.buffer.low
    less = "and nothing else" if low == 0 else f"plus {-low}"
    what = "normalised as in training"
    if given.normalised:
        what += "\n       and then by the network's own first operations"
    return _INPUT.format(
        pointer=given.buffer.pointer,
        shape=" x ".join(map(str, given.shape[1:])),
        what=what,
        scale=given.scale,
        low=given.bounds[0],
        high=given.bounds[1],
        less=less,
        quantize=f"{name_quantizer(given, name)}()",
    )


def _write_rounding(given: Input) -> str:
    low = given.buffer.low
    return "round_value(value)" if low == 0 else f"round_value(value) + {-low}"


def _type(given: Input) -> str:
    return C_TYPES[given.buffer.type]
