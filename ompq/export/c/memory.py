"""Where values lie in memory: those that are never needed at once may share it."""

from __future__ import annotations

from collections.abc import Sequence

from ompq.export.c.program import Buffer, Step

_ALIGNMENT = 4


def order_steps(steps: Sequence[Step]) -> list[Step]:
    """Put steps into the order of the network, as far as what they read is computed by then.

    A value at its own place of the network, rather than where it is read, leaves what it is made of
    no longer than needed.

    Args:
        steps: Steps, each behind those whose results it reads.
    """
    ready: dict[Buffer, int] = {}
    turns: list[int] = []
    for step in steps:
        turn = max([step.computation.number, *(ready.get(buffer, -1) for buffer in step.reads())])
        written = step.target.buffer
        ready[written] = max(ready.get(written, -1), turn)
        turns.append(turn)
    ordered = sorted(range(len(steps)), key=turns.__getitem__)
    return [steps[place] for place in ordered]


def place_buffers(steps: Sequence[Step]) -> tuple[dict[Buffer, int], int]:
    """Find a place in one block of memory for every buffer, the largest first.

    Args:
        steps: Steps in the order in which they run.

    Returns:
        Buffer → offset in bytes, for the buffers that are the program's own; bytes of the block.
    """
    lives = _find_lives(steps)
    offsets: dict[Buffer, int] = {}
    total = 0
    for buffer in sorted(lives, key=lambda buffer: (-_count_bytes(buffer), lives[buffer])):
        begin, end = lives[buffer]
        others = [b for b in offsets if lives[b][0] <= end and begin <= lives[b][1]]
        taken = sorted((offsets[b], offsets[b] + _count_bytes(b)) for b in others)
        offset = 0
        for start, stop in taken:
            if offset + _count_bytes(buffer) <= start:
                break
            offset = max(offset, stop)
        offsets[buffer] = offset
        total = max(total, offset + _count_bytes(buffer))
    return offsets, total


def _find_lives(steps: Sequence[Step]) -> dict[Buffer, tuple[int, int]]:
    """Find the first and the last step at which each buffer is needed."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for number, step in enumerate(steps):
        for buffer in [step.target.buffer, *step.reads()]:
            if not buffer.pointer:
                lives[buffer] = lives.get(buffer, (number, number))[0], number
    return lives


def _count_bytes(buffer: Buffer) -> int:
    size = buffer.count * buffer.item_bytes
    return -(-size // _ALIGNMENT) * _ALIGNMENT
