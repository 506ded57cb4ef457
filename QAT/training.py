"""Fine-tuning of an integer network: steps, evaluations, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, distributed, nn

from ompq.data import Loader, iterate_pairs
from ompq.distillation import distillation_loss
from ompq.errors import OmpqError
from ompq.evaluation import Accuracy, find_device, flatten_logits, in_evaluation
from ompq.files import lock_folder
from ompq.integer import IntegerNetwork
from ompq.runtime import Ranks, progress, run_on_main, say
from QAT.batches import compute_label_loss, count_batches, drop_smaller, iterate_steps
from QAT.checkpoint import BEST, LAST, Resumed, load_checkpoint, save_checkpoint
from QAT.gradient_sharing import agree_on_buffers, share_gradients
from QAT.re_estimation import list_norms, re_estimate_norms
from QAT.settings import TrainingSettings
from QAT.task import Batches, TrainingTask, measure_accuracy, predict_test

# Images of all ranks that batch norms are estimated anew by.
RE_ESTIMATION_IMAGES = 10_000


@dataclass
class Progress:
    """Progress of a fine-tuning; JSON-ready by `asdict`.

    Attributes:
        step: Number of steps done.
        losses: Sum of the losses over the `counted` steps.
        counted: Number of steps since the last evaluation.
        best_top1: Best top-1 accuracy so far, in per cent.
        seconds: Seconds that training took, evaluations left out.
        history: One entry per evaluation, the first before any step: step, epoch, loss (None
            there), top-1, top-5.
        re_estimated_top1: Top-1 accuracy of the last state with batch norms estimated anew, in per
            cent; None where they were not.
    """

    step: int = 0
    losses: float = 0.0
    counted: int = 0
    best_top1: float = -1.0
    seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)
    re_estimated_top1: float | None = None


def fine_tune(
    network: IntegerNetwork,
    train: Batches,
    test: Batches,
    settings: TrainingSettings | None = None,
    *,
    teacher: nn.Module | None = None,
    folder: str | Path | None = None,
    say: Callable[[str], None] = say,
) -> Progress:
    """Train a network of integers in place, and leave the best weights in it.

    Those at the start count among them: the network is never worse than before.

    Args:
        network: Network of integers, of `prepare`, on the device to compute on.
        train: Batches of training images and labels, such as a `DataLoader`.
        test: Batches of images and labels that decide which weights are the best.
        settings: Settings of the training; None for the published ones.
        teacher: Float network whose logits are distilled; None for labels alone.
        folder: Folder that takes the checkpoints; None to keep none.
        say: Function that prints a line of progress.

    Returns:
        The progress at the end, with the accuracy of every evaluation.

    Raises:
        OmpqError: The loss is not finite, the teacher tells other classes, or another run holds
            the folder.
    """
    if not isinstance(network, IntegerNetwork):
        raise OmpqError(f"`network` is a {type(network).__name__}; give what `prepare` returned")
    device = find_device(network.module)
    with ExitStack() as held:
        place = held.enter_context(TemporaryDirectory()) if folder is None else folder
        held.enter_context(lock_folder(place, "folder"))
        task = TrainingTask(
            network=network,
            teacher=teacher,
            train=train,
            test=test,
            settings=settings or TrainingSettings(),
            device=device,
            ranks=Ranks(),
            folder=Path(place),
            fingerprint={},
            say=say,
        )
        return run_training(task)


def run_training(
    task: TrainingTask, resumed: Resumed | None = None, start_epoch: int = 0
) -> Progress:
    """Train the network in place, and leave the best weights in it, those at the start included.

    After every evaluation the last and the best state are written to `task.folder`. A resumed run
    goes on from the last one and ends with the numbers of an uninterrupted one.

    Args:
        task: Network to train, images and settings.
        resumed: What to go on from, of `read_resumed`; None to start anew.
        start_epoch: Epoch that the schedule starts with.

    Returns:
        The progress at the end.

    Raises:
        OmpqError: The loss is not finite, a checkpoint cannot be written, or `start_epoch` is none
            of the schedule.
    """
    if not 0 <= start_epoch <= task.settings.epochs:
        raise OmpqError(
            f"`start_epoch` is {start_epoch}; with `epochs` {task.settings.epochs} it is one of "
            f"0 to {task.settings.epochs}"
        )
    if not count_batches(task.train) and task.settings.epochs:
        raise OmpqError("there are no training images; give batches of images and labels")
    with nullcontext() if task.teacher is None else in_evaluation(task.teacher):
        return _train(task, resumed, start_epoch)


def _train(task: TrainingTask, resumed: Resumed | None, start_epoch: int) -> Progress:
    run = _TrainingRun(task)
    if resumed is not None:
        run.restore(resumed)
    else:
        run.progress.step = start_epoch * run.steps_per_epoch
    if not run.progress.history:
        run.evaluate_start()
    for epoch in range(run.progress.step // max(1, run.steps_per_epoch), task.settings.epochs):
        run.train_epoch(epoch)
    run.estimate_norms_anew()
    state = load_checkpoint(task.folder / BEST, task.fingerprint)
    task.network.module.load_state_dict(state["network"])
    task.network.module.eval()
    if state["progress"].get("re_estimated_top1") is not None:
        # What is best may be what an earlier run of this training estimated anew.
        run.progress.re_estimated_top1 = state["progress"]["re_estimated_top1"]
    return run.progress


class _TrainingRun:
    """The state of one fine-tuning in this process."""

    def __init__(self, task: TrainingTask) -> None:
        self.task = task
        settings = task.settings
        module = task.network.module
        self.progress = Progress()
        self.losses = torch.zeros((), dtype=torch.float64, device=task.device)
        self.steps_per_epoch = count_batches(task.train)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.optimizer = torch.optim.SGD(
            [p for p in module.parameters() if p.requires_grad],
            settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        stepping: nn.Module = module
        if task.ranks.world_size > 1:
            stepping = share_gradients(module, settings.apex)
        self.forward: Any = torch.compile(stepping) if settings.compile else stepping

    def restore(self, resumed: Resumed) -> None:
        """Go on from a state, and bring it and the best one into the folder where they are not."""
        state, folder = resumed.state, self.task.folder
        self.task.network.module.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self.losses.fill_(self.progress.losses)
        torch.set_rng_state(state["rng"])
        if self.task.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.task.device)
        if resumed.best is None:
            self._begin_anew_with_best()
        elif not (folder / BEST).is_file():
            self._write(BEST, resumed.best)
        if not (folder / LAST).is_file():
            self._save(LAST)

    def _begin_anew_with_best(self) -> None:
        """Take the state that is gone on from for the best one, since that one is lost."""
        last = self.progress.history[-1]
        before, self.progress.best_top1 = self.progress.best_top1, -1.0
        if last["step"] == self.progress.step:
            self.progress.best_top1 = last["top1"] or 0.0
            self._save(BEST)
        if before > self.progress.best_top1:
            self._tell(
                f"note: the best state so far (top-1 {before:.2f} %) is not beside the checkpoint; "
                "the best from there on counts"
            )

    def evaluate_start(self) -> None:
        """Evaluate and keep the network as it is before any step."""
        accuracy = self._record(self.progress.step // max(1, self.steps_per_epoch), None)
        self._tell(f"quantized, before training: top-1 {accuracy.top1:.2f} %")
        self._save(LAST)

    def train_epoch(self, epoch: int) -> None:
        """Take the steps of an epoch that are still to be done, with their evaluations."""
        settings, count = self.task.settings, self.steps_per_epoch
        evaluations = {count * (k + 1) // settings.evaluations for k in range(settings.evaluations)}
        start = time.perf_counter()
        remaining = count - (self.progress.step - epoch * count)
        bar = progress(
            self._iterate_remaining(epoch), f"epoch {epoch + 1}/{settings.epochs}", remaining
        )
        for batch in bar:
            if batch is not None:
                self.losses += self._take_step(*batch)
                self.progress.counted += 1
            self.progress.step += 1
            done = self.progress.step - epoch * count
            if settings.print_steps and done % settings.print_steps == 0:
                loss = self._average_loss()
                self._tell(f"epoch {epoch + 1} step {done}/{count}, loss {loss:.4f}")
                bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
            due = settings.checkpoint_steps and self.progress.step % settings.checkpoint_steps == 0
            if done in evaluations or due:
                self._check_finite()
                self.progress.seconds += time.perf_counter() - start
                if done in evaluations:
                    self._evaluate(epoch)
                self._save(LAST)
                start = time.perf_counter()

    def estimate_norms_anew(self) -> None:
        """Estimate the batch norms of the last state anew, and keep it where that is the best."""
        task = self.task
        settings, module = task.settings, task.network.module
        if not settings.re_estimate_norms or settings.fix_norms is not None or not settings.epochs:
            return
        if not list_norms(module):
            return
        batches = self._draw_images()
        # A small batch would count as much as a whole one.
        alone = task.ranks.world_size == 1
        re_estimate_norms(module, drop_smaller(batches) if alone else batches)
        agree_on_buffers(module, task.ranks)
        top1 = measure_accuracy(task, predict_test(task)).top1
        self.progress.re_estimated_top1 = top1
        self._tell(f"batch norms estimated anew: top-1 {top1:.2f} %")
        if top1 > self.progress.best_top1:
            self.progress.best_top1 = top1
            self._save(BEST)

    def _draw_images(self) -> Iterator[Tensor]:
        """Yield this rank's batches of training images, as many as the estimate needs."""
        if isinstance(self.task.train, Loader):
            self.task.train.set_epoch(self.task.settings.epochs)
        seen = 0
        for images, _ in iterate_pairs(self.task.train):
            yield images.to(self.task.device)
            seen += len(images) * self.task.ranks.world_size
            if seen >= RE_ESTIMATION_IMAGES:
                return

    def _average_loss(self) -> float:
        """Return the mean loss since the last evaluation, over all ranks, which must all ask."""
        if self.task.ranks.world_size > 1:
            # In place: ranks that hold the mean already have it again.
            distributed.all_reduce(self.losses)
            self.losses /= self.task.ranks.world_size
        return float(self.losses) / max(1, self.progress.counted)

    def _check_finite(self) -> None:
        """Stop before a diverged state replaces the last good checkpoint."""
        loss = self._average_loss()
        module = self.task.network.module
        if math.isfinite(loss) and all(bool(p.isfinite().all()) for p in module.parameters()):
            return
        raise OmpqError(
            f"training diverged by step {self.progress.step} (loss {loss:.4g}); lower "
            f"`learning_rate` (it is {self.task.settings.learning_rate}) or give more bits, and "
            f"start anew: with another `folder`, or after deleting {self.task.folder / LAST}"
        )

    def _iterate_remaining(self, epoch: int) -> Iterator[tuple[Tensor, Tensor] | None]:
        if isinstance(self.task.train, Loader):
            # Its order depends on the epoch alone, so that a resumed run repeats it.
            self.task.train.set_epoch(epoch)
        done = self.progress.step - epoch * self.steps_per_epoch
        # Several ranks take their steps together, and their norms see the images of all.
        alone = self.task.ranks.world_size == 1 and bool(list_norms(self.task.network.module))
        return iterate_steps(self.task.train, done, self.steps_per_epoch, drop_last_alone=alone)

    def _take_step(self, images: Tensor, labels: Tensor) -> Tensor:
        settings, task = self.task.settings, self.task
        if settings.fix_norms is not None and self.progress.step >= settings.fix_norms:
            task.network.freeze_norms()
        task.network.module.train()
        share = self.progress.step / max(1, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        images, labels = images.to(task.device), labels.to(task.device)
        with torch.autocast(task.device.type, torch.bfloat16, enabled=settings.amp):
            logits = self.forward(images)
            loss = self._compute_loss(logits.float(), images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _compute_loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        alpha, temperature = self.task.settings.distill_alpha, self.task.settings.temperature
        teacher = self.task.teacher
        if teacher is None:
            return compute_label_loss(logits, labels)
        with torch.no_grad():
            try:
                taught = flatten_logits(teacher(images), len(images)).float()
            except OmpqError as error:
                raise OmpqError(f"teacher: {error}") from error
        if taught.shape != logits.shape:
            sizes = ["×".join(map(str, found.shape)) for found in (taught, logits)]
            raise OmpqError(
                f"the teacher gives {sizes[0]} logits, the network {sizes[1]}; give `teacher` one "
                "of these classes"
            )
        loss = alpha * distillation_loss(logits, taught, temperature)
        # Where labels count for nothing, they may be anything.
        return loss if alpha == 1 else loss + (1 - alpha) * compute_label_loss(logits, labels)

    def _evaluate(self, epoch: int) -> None:
        loss = self._average_loss()
        accuracy = self._record(epoch + 1, loss)
        self._tell(f"epoch {epoch + 1}: loss {loss:.4f}, top-1 {accuracy.top1:.2f} %")
        if self.task.log is not None:
            self.task.log.add_scalar("loss", loss, self.progress.step)
            self.task.log.add_scalar("top1", accuracy.top1, self.progress.step)

    def _record(self, epoch: int, loss: float | None) -> Accuracy:
        """Evaluate, add it to the history, and keep the state where it is the best."""
        agree_on_buffers(self.task.network.module, self.task.ranks)
        accuracy = measure_accuracy(self.task, predict_test(self.task))
        entry: dict[str, float | None] = {"step": self.progress.step, "epoch": epoch, "loss": loss}
        self.progress.history.append(entry | {"top1": accuracy.top1, "top5": accuracy.top5})
        self.losses.zero_()
        self.progress.counted = 0
        if accuracy.top1 > self.progress.best_top1:
            self.progress.best_top1 = accuracy.top1
            self._save(BEST)
        return accuracy

    def _tell(self, text: str) -> None:
        if self.task.ranks.is_main:
            self.task.say(text)

    def _save(self, name: str) -> None:
        """Write the whole state on rank 0, while the other ranks wait."""
        self._average_loss()
        agree_on_buffers(self.task.network.module, self.task.ranks)
        self.progress.losses = float(self.losses)
        cuda = self.task.device.type == "cuda"
        state = {
            "network": self.task.network.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
            "total_steps": self.total_steps,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.task.device) if cuda else None,
        }
        self._write(name, state)

    def _write(self, name: str, state: dict[str, Any]) -> None:
        """Write a state on rank 0 while the other ranks wait; where it fails, it fails on all."""
        file, fingerprint = self.task.folder / name, self.task.fingerprint
        run_on_main(self.task.ranks, lambda: save_checkpoint(file, state, fingerprint))
