"""What lies in memory at every step, beside a simulation that keeps a list of buffers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from ompq.activation_memory import BITS_PER_KB, find_value_widths, measure_peak
from ompq.assignment import uniform
from ompq.graph import NetworkGraph, build_schedule, trace

SIDE = 8
# (operation, what it reads, channels of what it gives); value 0 is the image, value i that of
# operation i - 1.
Operation = tuple[str, tuple[int, ...], int]


class Drawn(nn.Module):
    """A network of drawn operations on values of one height and width, and a classifier."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        super().__init__()
        self.operations = operations
        channels = [3, *(given for _, _, given in operations)]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[reads[0]], given, 3, padding=1) if name == "conv" else nn.Identity()
            for name, reads, given in operations
        )
        self.classifier = nn.Linear(channels[-1] * SIDE**2, 5)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for index, (name, reads, _) in enumerate(self.operations):
            first = values[reads[0]]
            if name == "conv":
                values.append(self.convs[index](first))
            elif name == "relu":
                values.append(functional.relu(first))
            elif name == "view":
                values.append(first.flatten(2).unflatten(2, (SIDE, SIDE)))
            else:
                values.append(first + values[reads[1]])
        return self.classifier(values[-1].flatten(1))


@st.composite
def drawn_operations(draw: st.DrawFn) -> list[Operation]:
    operations: list[Operation] = [("conv", (0,), draw(st.integers(1, 3)))]
    for index in range(1, draw(st.integers(2, 9))):
        channels = [3, *(given for _, _, given in operations)]
        name = draw(st.sampled_from(["conv", "conv", "relu", "view", "add"]))
        first = draw(st.integers(max(1, index - 3), index))
        alike = [i for i in range(1, index + 1) if channels[i] == channels[first] and i != first]
        if name == "add" and alike:
            second = draw(st.sampled_from(alike))
            operations.append(("add", (first, second), channels[first]))
        elif name in ("relu", "view"):
            operations.append((name, (first,), channels[first]))
        else:
            operations.append(("conv", (first,), draw(st.integers(1, 3))))
    return operations


def keep_needed(operations: Sequence[Operation]) -> list[Operation]:
    """Leave out what the last value is not computed from: no graph has it."""
    needed = {len(operations)}
    for index in range(len(operations), 0, -1):
        if index in needed:
            needed |= set(operations[index - 1][1])
    kept = [0, *sorted(needed - {0})]
    places = {old: new for new, old in enumerate(kept)}
    return [
        (name, tuple(places[read] for read in reads), given)
        for index, (name, reads, given) in enumerate(operations, start=1)
        if index in needed
    ]


def simulate(operations: Sequence[Operation], value_bits: int = 8) -> int:
    """Run the list with a set of buffers, and return the most bits that lie in them at once."""
    channels = [3, *(given for _, _, given in operations)]
    last = len(operations)
    steps = [*operations, ("classifier", (last,), 0)]
    buffer_of = {0: 0}
    bits_of = {0: 3 * SIDE**2 * 8}
    live, peak = {0}, bits_of[0]

    def is_read_after(buffer: int, step: int) -> bool:
        return any(
            read in buffer_of and buffer_of[read] == buffer
            for later in range(step + 1, len(steps))
            for read in steps[later][1]
        )

    for step, (name, reads, _) in enumerate(steps):
        value = step + 1
        source = buffer_of[reads[0]]
        if name == "view" or (name == "relu" and not is_read_after(source, step)):
            buffer_of[value] = source
        else:
            buffer_of[value] = value
            elements = 5 if name == "classifier" else channels[value] * SIDE**2
            # The logits stay in float.
            bits_of[value] = elements * (32 if name == "classifier" else value_bits)
            live.add(value)
        peak = max(peak, sum(bits_of[buffer] for buffer in live))
        is_last = step == len(steps) - 1
        live = {b for b in live if is_read_after(b, step) or (is_last and b == value)}
    return peak


def traced(module: nn.Module, channels: int = 3, side: int = SIDE) -> NetworkGraph:
    return trace(module.eval(), (channels, side, side))


@settings(max_examples=60, derandomize=True)
@given(drawn_operations())
def test_the_peak_is_that_of_a_simulation(operations: list[Operation]) -> None:
    needed = keep_needed(operations)
    graph = traced(Drawn(needed))
    found = measure_peak(graph, uniform(graph.groups, 4, 8))
    assert found.kb * BITS_PER_KB == simulate(needed), needed


def test_a_batch_norm_and_a_relu_have_no_memory_of_their_own() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    whole = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6(inplace=True),
    )  # fmt: skip
    end = (nn.Flatten(), nn.Linear(4 * SIDE**2, 5))
    peaks = [
        measure_peak(graph, uniform(graph.groups, 4, 8)).kb
        for graph in map(traced, (nn.Sequential(plain, *end), nn.Sequential(whole, *end)))
    ]
    assert peaks[0] == peaks[1] == 2 * 4 * SIDE**2 / 1024


def test_the_step_of_the_peak_is_named_and_activation_bits_count() -> None:
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
        nn.Conv2d(4, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * SIDE**2, 5),
    )  # fmt: skip
    graph = traced(module)
    wide = measure_peak(graph, uniform(graph.groups, 4, 8))
    assert wide.step == "2"
    assert wide.kb == (4 + 16) * SIDE**2 / 1024
    narrow = measure_peak(graph, uniform(graph.groups, 4, 4))
    assert narrow.kb == wide.kb / 2


class Gated(nn.Module):
    """Squeeze and excitation, with a running sum, which stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.gate = nn.Conv2d(4, 4, 1)
        self.last = nn.Linear(4 * SIDE**2, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        gate = torch.sigmoid(self.gate(x.mean(dim=(2, 3), keepdim=True)))
        left, right = (x * gate.cumsum(1)).chunk(2, dim=1)
        return self.last(torch.cat([right, left], dim=1).flatten(1))


def test_what_is_computed_in_float_counts_32_bits_and_views_nothing() -> None:
    graph = traced(Gated())
    schedule = build_schedule(graph)
    widths = find_value_widths(graph, schedule, dict.fromkeys(graph.layers, 8))
    assert widths["x"] == widths["first"] == 8
    assert widths["sigmoid"] == widths["cumsum"] == 32
    assert schedule.homes["chunk"] == schedule.homes["getitem"] == schedule.homes["mul"]
    assert schedule.homes["flatten"] == schedule.homes["cat"]
    assert schedule.elements["cat"] == 4 * SIDE**2
    assert "chunk" not in schedule.elements
    by_node = {step.node: step for step in schedule.steps}
    assert set(by_node["mul"].live) == {"first", "cumsum", "mul"}
    assert set(by_node["cat"].live) == {"mul", "cat"}


class Tuples(nn.Module):
    """What gives several tensors, a change in place, and a value that is read late."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 3, padding=1)
        self.second = nn.Conv2d(2, 2, 3, padding=1)
        self.last = nn.Linear(2 * SIDE**2, 5)

    def forward(self, x: Tensor) -> Tensor:
        start = self.first(x)
        values, _ = torch.max(self.second(start), dim=1, keepdim=True)
        start.add_(values)
        return self.last(start.flatten(1))


def test_several_tensors_and_a_change_in_place() -> None:
    schedule = build_schedule(traced(Tuples()))
    plane = SIDE**2
    # The largest values, and where they were.
    assert list(schedule.elements.values()) == [3 * plane, 2 * plane, 2 * plane, 2 * plane, 5]
    assert schedule.homes["flatten"] == "first"
