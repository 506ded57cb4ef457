"""The batches of an epoch, one for each step, and the loss by their labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from torch import Tensor
from torch.nn.functional import cross_entropy

from ompq.data import iterate_pairs
from ompq.errors import OmpqError
from QAT.task import Batches

# Labels that PyTorch's loss passes over.
_IGNORED = -100


def count_batches(batches: Batches) -> int:
    """Count the batches of an epoch.

    Args:
        batches: Batches of training images and labels.

    Raises:
        OmpqError: They do not tell how many they are.
    """
    try:
        return len(batches)
    except TypeError as error:
        raise OmpqError(
            f"`train` is a {type(batches).__name__} that has no length, which the schedule needs; "
            "give a list, or a DataLoader of a data set with a length"
        ) from error


def iterate_steps(
    batches: Batches, done: int, count: int, *, drop_last_alone: bool
) -> Iterator[tuple[Tensor, Tensor] | None]:
    """Yield the batch of every step that is still to be done.

    Args:
        batches: Batches of training images and labels.
        done: Steps of the epoch that were taken before: their batches are gone through, so that
            order and images agree.
        count: Steps of the epoch.
        drop_last_alone: Whether a last image that is left over alone is dropped; batch norms can
            tell nothing of one.

    Yields:
        Images and labels; None for a step that has none.
    """
    largest = number = 0
    for number, (images, labels) in enumerate(islice(iterate_pairs(batches), count), start=1):
        largest = max(largest, len(images))
        if number > done:
            is_left_over = drop_last_alone and number == count and len(images) == 1 < largest
            yield None if is_left_over else (images, labels)
    # Files that could not be read may leave fewer batches than were counted.
    yield from [None] * (count - max(number, done))


def drop_smaller(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the batches of images that are as large as the first one.

    Args:
        batches: Batches of images.
    """
    whole = 0
    for images in batches:
        whole = whole or len(images)
        if len(images) >= whole:
            yield images


def compute_label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross entropy of logits and labels.

    Args:
        logits: Logits, n × classes.
        labels: Class of every image, n; or shares of the classes, n × classes.

    Raises:
        OmpqError: A label is none of the classes; on accelerators, which would have to be waited
            for, PyTorch tells it.
    """
    if labels.device.type == "cpu" and not labels.is_floating_point():
        classes = logits.shape[1]
        others = labels[((labels < 0) | (labels >= classes)) & (labels != _IGNORED)]
        if len(others):
            raise OmpqError(
                f"there is a label {int(others[0])}, and the network tells classes 0 to "
                f"{classes - 1}; correct the labels, or distil with `distill_alpha` 1 alone"
            )
    return cross_entropy(logits, labels)
