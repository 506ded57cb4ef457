"""Places in memory: nothing that is needed lies where something else does."""

from __future__ import annotations

from itertools import combinations, pairwise

import hypothesis.strategies as st
from hypothesis import given, settings

from ompq.export.c.memory import order_steps, place_buffers
from ompq.export.c.program import Buffer, Computation, Map, Region, Step


def step(source: Buffer, target: Buffer, number: int = 0) -> Step:
    computation = Computation(Map(), Region(source), (1,), (0, 1), "", number)
    return Step(computation, Region(target))


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.sampled_from([1, 300, 2**20]), st.integers(0, 99)),
        min_size=1,
        max_size=20,
    )
)
def test_values_needed_at_once_lie_apart(sizes: list[tuple[int, int, int]]) -> None:
    buffers = [Buffer(4, (0, 1), "image")]
    steps = []
    for count, high, place in sizes:
        buffers.append(Buffer(count, (0, high)))
        steps.append(step(buffers[place % (len(buffers) - 1)], buffers[-1]))
    offsets, total = place_buffers(steps)
    assert offsets.keys() == set(buffers[1:])
    lives = {}
    for number, (buffer, made) in enumerate(zip(buffers[1:], steps, strict=True)):
        reads = [k for k, other in enumerate(steps) if buffer in other.reads()]
        assert made.target.buffer is buffer
        lives[buffer] = range(number, max([number, *reads]) + 1)
    for a, b in combinations(offsets, 2):
        ends = [(offsets[x], offsets[x] + x.count * x.item_bytes) for x in (a, b)]
        apart = ends[0][1] <= ends[1][0] or ends[1][1] <= ends[0][0]
        assert apart or not set(lives[a]) & set(lives[b])
    assert total >= max(offsets[b] + b.count * b.item_bytes for b in offsets)
    assert all(offset % 4 == 0 for offset in offsets.values())
    peak = max(
        sum(-(-b.count * b.item_bytes // 4) * 4 for b in offsets if n in lives[b])
        for n in range(len(steps))
    )
    assert peak <= total <= sum(-(-b.count * b.item_bytes // 4) * 4 for b in offsets)


def test_a_chain_takes_what_its_largest_step_does() -> None:
    sizes = [100, 40, 80, 60, 20]
    buffers = [Buffer(16, (0, 1), "image"), *(Buffer(size, (0, 1)) for size in sizes)]
    steps = [step(a, b) for a, b in pairwise(buffers)]
    assert place_buffers(steps)[1] == 140


def test_steps_stand_at_their_place_unless_they_wait() -> None:
    image, early, late, both = (Buffer(4, (0, 1), "image" * (k == 0)) for k in range(4))
    # The second is of the network's first node; the third reads it but is of the second node.
    steps = [step(image, late, 5), step(image, early, 1), step(early, both, 2)]
    assert order_steps(steps) == [steps[1], steps[2], steps[0]]
    waiting = [step(image, late, 5), step(late, early, 1), step(early, both, 2)]
    assert order_steps(waiting) == waiting
