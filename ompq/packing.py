"""A quantized network's tensors and description as small as they go, and back.

The weights become streams of as many bits as they are wide (`ompq.bitstream`). Numbers of all
layers stand one after another in one tensor each, since names cost more than small tensors do:

- `LAYER.weight`: integers less the least one, a stream or its code, uint8;
- `*.weight_scale`: scales, one per layer or per output channel, float32;
- `*.weight_zero_point`: zero points less the least integer, a stream for every layer whose
  channels have different ones, uint8; others stand in the description;
- `*.bias.int16`, `*.bias.int32`: biases at the scale of the sums, of the layers whose biases all
  fit; `*.bias.float32`: those that are in float;
- `*.scale`: scales of activations, float32; their zero points stand in the description.

Layers and activations become tables in the description: one column for each property, a single
value where it is that of all rows; ranges of integers go by their names. Tensors of equal content
are held once; `same` names the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ompq.bitstream import code_values, decode_values, pack_bits, unpack_bits

Tensors = dict[str, Tensor]
Description = dict[str, Any]
Row = dict[str, Any]

_WEIGHT_SCALES, _ZERO_POINTS = "*.weight_scale", "*.weight_zero_point"
_SCALES = "*.scale"
_BIAS_TYPES = {
    "int16": torch.int16,
    "int32": torch.int32,
    "float32": torch.float32,
}


def pack(
    tensors: Mapping[str, Tensor], description: Mapping[str, Any], *, entropy: bool = False
) -> tuple[Tensors, Description]:
    """Pack the tensors of a quantized network.

    Args:
        tensors: `LAYER.weight` (integers), `LAYER.weight_scale`, `LAYER.weight_zero_point` and
            perhaps `LAYER.bias` of every layer; `scale` and `zero_point` of activations; others.
        description: JSON-ready values; `layers` and `activations` tell bits and ranges by name,
            `reads`, if there, the bits of what each layer reads, and `groups` names layers.
        entropy: Whether weights are coded by their frequencies, where that is smaller.

    Returns:
        Tensors and description from which `unpack` makes those that were given.
    """
    left, packed = dict(tensors), dict(description)
    reads = packed.pop("reads", {})
    rows, joined = {}, _Joined()
    for name, entry in description["layers"].items():
        rows[name] = name_range(entry) | _pack_layer(name, entry, left, joined, entropy)
        rows[name] |= {"reads": reads[name]} if name in reads else {}
    packed["layers"] = to_table(rows)
    prefix = find_activation_prefix(description)
    activations = {}
    for name, entry in description["activations"].items():
        zero_point = left.pop(f"{prefix}{name}.zero_point", None)
        if zero_point is not None:
            joined.add(_SCALES, left.pop(f"{prefix}{name}.scale"))
            entry = entry | {"zero_point": int(zero_point)}
        activations[name] = name_range(entry)
    packed["activations"] = to_table(activations)
    numbers = {name: number for number, name in enumerate(rows)}
    packed["groups"] = [
        [numbers.get(layer, layer) for layer in group] for group in description["groups"]
    ]
    held, packed["same"] = _drop_repeated(left | joined.join())
    return held, packed


def unpack(
    tensors: Mapping[str, Tensor], description: Mapping[str, Any]
) -> tuple[Tensors, Description]:
    """Unpack what `pack` packed.

    Args:
        tensors: Tensors from `pack`.
        description: Description from `pack`.

    Raises:
        KeyError: A tensor or an entry of the description is missing.
        ValueError: Tensors and description are not of one network.
    """
    plain, unpacked = dict(tensors), dict(description)
    plain |= {name: plain[holder] for name, holder in unpacked.pop("same").items()}
    joined = _Split(plain)
    layers, reads = {}, {}
    for name, named in from_table(unpacked["layers"]).items():
        row = resolve_range(named)
        _unpack_layer(name, row, plain, joined)
        layers[name] = {key: row[key] for key in ("bits", "low", "high")}
        if "reads" in row:
            reads[name] = row["reads"]
    prefix = find_activation_prefix(description)
    activations = {}
    for name, named in from_table(unpacked["activations"]).items():
        row = activations[name] = resolve_range(named)
        zero_point = row.pop("zero_point", None)
        if zero_point is not None:
            plain[f"{prefix}{name}.scale"] = joined.take(_SCALES, ())
            plain[f"{prefix}{name}.zero_point"] = torch.tensor(zero_point, dtype=torch.int32)
    joined.check_taken()
    names = list(layers)
    unpacked |= {"layers": layers, "activations": activations} | ({"reads": reads} if reads else {})
    unpacked["groups"] = [
        [names[layer] if isinstance(layer, int) else layer for layer in group]
        for group in unpacked["groups"]
    ]
    return plain, unpacked


def to_table(rows: Mapping[str, Row]) -> dict[str, Any]:
    """Turn rows of properties into columns; what is not in every row is None in the others.

    >>> to_table({"a": {"bits": 4, "shape": [3]}, "b": {"bits": 4, "shape": [5]}})
    {'names': ['a', 'b'], 'bits': 4, 'shape': [[3], [5]]}
    """
    columns = {key: None for row in rows.values() for key in row}
    table: dict[str, Any] = {"names": list(rows)}
    for key in columns:
        values = [row.get(key) for row in rows.values()]
        single = all(value == values[0] for value in values) and not isinstance(values[0], list)
        table[key] = values[0] if single else values
    return table


def from_table(table: Mapping[str, Any]) -> dict[str, Row]:
    """Turn columns into the rows that `to_table` was given, without what was None.

    Raises:
        ValueError: A column is not as long as the names are many.

    >>> from_table({"names": ["a", "b"], "bits": 4, "shape": [[3], None]})
    {'a': {'bits': 4, 'shape': [3]}, 'b': {'bits': 4}}
    """
    names = table["names"]
    rows: dict[str, Row] = {name: {} for name in names}
    for key, column in table.items():
        if key == "names":
            continue
        values = column if isinstance(column, list) else [column] * len(names)
        if len(values) != len(names):
            raise ValueError(f"{len(values)} values of {key} for {len(names)} names")
        for name, value in zip(names, values, strict=True):
            if value is not None:
                rows[name][key] = value
    return rows


def name_range(entry: Mapping[str, Any]) -> Row:
    """Replace the bounds of integers by the name of their range, where it has one.

    >>> name_range({"bits": 4, "low": -8, "high": 7}), name_range({"bits": 4, "low": 1, "high": 7})
    ({'bits': 4, 'range': 'signed'}, {'bits': 4, 'low': 1, 'high': 7})
    """
    row = dict(entry)
    if "low" in row:
        for name, bounds in _list_ranges(row["bits"]).items():
            if bounds == (row["low"], row["high"]):
                del row["low"], row["high"]
                return row | {"range": name}
    return row


def resolve_range(row: Mapping[str, Any]) -> Row:
    """Replace the name of a range by its bounds.

    >>> resolve_range({"bits": 3, "range": "narrow"})
    {'bits': 3, 'low': -3, 'high': 3}
    """
    entry = dict(row)
    if "range" in entry:
        entry["low"], entry["high"] = _list_ranges(entry["bits"])[entry.pop("range")]
    return entry


def _list_ranges(bits: int) -> dict[str, tuple[int, int]]:
    half = 2 ** (bits - 1)
    return {
        "unsigned": (0, 2 * half - 1),
        "signed": (-half, half - 1),
        "narrow": (1 - half, half - 1),
    }


def find_activation_prefix(description: Mapping[str, Any]) -> str:
    """Return what stands before an activation's name in the names of its tensors."""
    return "" if description.get("arithmetic") == "integers" else "activations."


class _Joined:
    """Values of many layers, to stand one after another in one tensor each."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Put values behind those that are there."""
        self._parts.setdefault(name, []).append(values.detach().cpu().flatten())

    def join(self) -> Tensors:
        """Return all values by the names of their tensors."""
        return {name: torch.cat(parts) for name, parts in self._parts.items()}


class _Split:
    """Tensors of joined values, which layers take theirs from in the order of the joining.

    Args:
        tensors: Tensors of a file; those of joined values are taken out.
    """

    def __init__(self, tensors: Tensors) -> None:
        biases = [f"*.bias.{kind}" for kind in _BIAS_TYPES]
        names = (_WEIGHT_SCALES, _ZERO_POINTS, _SCALES, *biases)
        self._left = {name: tensors.pop(name) for name in names if name in tensors}
        self._shapes = {name: tuple(values.shape) for name, values in self._left.items()}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """Take the next values, as many as a shape holds."""
        values, count = self._left[name], int(np.prod(shape, dtype=np.int64))
        if values.dim() != 1 or len(values) < count:
            raise ValueError(f"{name} of shape {self._shapes[name]} does not hold enough values")
        self._left[name] = values[count:]
        return values[:count].reshape(tuple(shape))

    def check_taken(self) -> None:
        """Refuse values that nobody has taken."""
        for name, values in self._left.items():
            if values.numel():
                raise ValueError(f"{name} holds {values.numel()} values too many")


def _pack_layer(
    name: str, entry: Row, tensors: Tensors, joined: _Joined, entropy: bool
) -> dict[str, Any]:
    """Pack a layer, whose tensors are replaced by its stream; return what describes it."""
    bits, low = entry["bits"], entry["low"]
    weight = tensors.pop(f"{name}.weight")
    values = _lift(weight, low)
    stream, code = pack_bits(values, bits), "bits"
    if entropy:
        coded = code_values(values, bits)
        stream, code = (coded, "huffman") if len(coded) < len(stream) else (stream, code)
    tensors[f"{name}.weight"] = torch.from_numpy(stream)
    scale = tensors.pop(f"{name}.weight_scale")
    joined.add(_WEIGHT_SCALES, scale)
    row: Row = {"shape": list(weight.shape), "per_channel": scale.dim() > 0, "code": code}
    bias = tensors.get(f"{name}.bias")
    if bias is not None and bias.shape == weight.shape[:1]:
        kind = row["bias"] = _name_bias_type(bias)
        joined.add(f"*.bias.{kind}", tensors.pop(f"{name}.bias").to(_BIAS_TYPES[kind]))
    zero_point = tensors[f"{name}.weight_zero_point"]
    if bool((zero_point == zero_point.flatten()[0]).all()):
        row["zero_point"] = int(tensors.pop(f"{name}.weight_zero_point").flatten()[0])
    elif low <= int(zero_point.min()) and int(zero_point.max()) < low + 2**bits:
        del tensors[f"{name}.weight_zero_point"]
        joined.add(_ZERO_POINTS, torch.from_numpy(pack_bits(_lift(zero_point, low), bits)))
    return row


def _name_bias_type(bias: Tensor) -> str:
    """Name the narrowest type that holds a bias."""
    if bias.is_floating_point():
        return "float32"
    return "int16" if bool((bias == bias.short()).all()) else "int32"


def _unpack_layer(name: str, row: Row, tensors: Tensors, joined: _Split) -> None:
    """Unpack a layer, whose stream is replaced by its tensors."""
    shape, bits, low = tuple(row["shape"]), row["bits"], row["low"]
    channels = shape[:1] if row["per_channel"] else ()
    stream = tensors[f"{name}.weight"]
    decode = {"bits": unpack_bits, "huffman": decode_values}[row["code"]]
    values = decode(stream.numpy(), bits, int(np.prod(shape, dtype=np.int64)))
    kind = torch.uint8 if low >= 0 else torch.int8
    tensors[f"{name}.weight"] = _lower(values, low).to(kind).reshape(shape)
    tensors[f"{name}.weight_scale"] = joined.take(_WEIGHT_SCALES, channels)
    if "bias" in row:
        bias = joined.take(f"*.bias.{row['bias']}", shape[:1])
        tensors[f"{name}.bias"] = bias if bias.is_floating_point() else bias.int()
    own = f"{name}.weight_zero_point"
    if "zero_point" in row:
        tensors[own] = torch.full(channels, row["zero_point"], dtype=torch.int32)
    elif own not in tensors:
        packed = joined.take(_ZERO_POINTS, (-(-shape[0] * bits // 8),))
        tensors[own] = _lower(unpack_bits(packed.numpy(), bits, shape[0]), low).int()


def _lift(integers: Tensor, low: int) -> Any:
    """Return integers less the least one, as uint8."""
    return (integers.cpu().short() - low).to(torch.uint8).numpy()


def _lower(values: Any, low: int) -> Tensor:
    """Return the integers that `_lift` was given."""
    return torch.from_numpy(values).short() + low


def _drop_repeated(tensors: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, str]]:
    """Keep one of all tensors of equal type, shape and content; name it for the others."""
    held: Tensors = {}
    same: dict[str, str] = {}
    holders: dict[tuple[Any, ...], str] = {}
    for name, value in tensors.items():
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        holder = holders.setdefault((value.dtype, value.shape, content), name)
        if holder == name:
            held[name] = value
        else:
            same[name] = holder
    return held, same
