"""What is fine-tuned, on which images, and how it is judged by those of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import distributed, nn

from ompq.errors import OmpqError
from ompq.evaluation import NO_IMAGES, Accuracy, Predictions, predict
from ompq.integer import IntegerNetwork
from ompq.runtime import Ranks, say
from QAT.settings import TrainingSettings


class Batches(Protocol):
    """What yields batches of images and labels: a `Loader`, a `DataLoader`, a list."""

    def __iter__(self) -> Iterator[Any]:
        """Yield pairs of images (n × channels × height × width) and labels (n)."""

    def __len__(self) -> int:
        """Return the number of batches."""


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """A network to fine-tune, the images, and where checkpoints go.

    Attributes:
        network: Network of integers, trained in place.
        teacher: Float network whose logits are distilled; None for labels alone.
        train: This rank's share of every global batch of training images.
        test: This rank's share of the images that decide which checkpoint is the best.
        settings: Settings of the training.
        device: Device that holds the networks.
        ranks: This process among those that train.
        folder: Folder of the checkpoints.
        fingerprint: What a resumed run must have in common with the one that was killed.
        log: Writer that takes scalars by `add_scalar`; None for none.
        say: Function that prints a line, called on the first rank alone.
    """

    network: IntegerNetwork
    teacher: nn.Module | None
    train: Batches
    test: Batches
    settings: TrainingSettings
    device: torch.device
    ranks: Ranks
    folder: Path
    fingerprint: dict[str, Any]
    log: Any = None
    say: Callable[[str], None] = say


def predict_test(task: TrainingTask, module: nn.Module | None = None) -> Predictions:
    """Predict the classes of this rank's test images.

    Args:
        task: Task whose test images, device and ranks are used.
        module: Network that predicts; None for the one that the task trains.
    """
    # Of few images a rank may have none, or none that can be read.
    several = task.ranks.world_size > 1
    return predict(module or task.network.module, task.test, task.device, may_be_empty=several)


def measure_accuracy(task: TrainingTask, found: Predictions) -> Accuracy:
    """Measure the accuracy on the test images of all ranks.

    Args:
        task: Task whose ranks and device are used.
        found: Predictions of this rank.
    """
    if task.ranks.world_size == 1:
        return found.accuracy()
    accuracy = found.accuracy() if len(found) else Accuracy(0.0, 0.0, 0)
    counts = [accuracy.top1 * accuracy.count, accuracy.top5 * accuracy.count, accuracy.count]
    total = torch.tensor(counts, dtype=torch.float64, device=task.device)
    distributed.all_reduce(total)
    hits1, hits5, count = total.tolist()
    if not count:
        raise OmpqError(NO_IMAGES)
    return Accuracy(hits1 / count, hits5 / count, int(count))
