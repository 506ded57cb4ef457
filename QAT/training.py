"""Fine-tuning of an integer network: steps, evaluations, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax
from torch.nn.parallel import DistributedDataParallel

from ompq.data import Loader
from ompq.errors import OmpqError
from ompq.fixed_point import IntegerNetwork
from ompq.metrics import Accuracy, predict
from ompq.runtime import Ranks, progress, say
from QAT.recovery import load_checkpoint, save_checkpoint
from QAT.settings import TrainingSettings

LAST, BEST = "checkpoint.pth.tar", "model_best.pth.tar"


@dataclass(frozen=True)
class Task:
    """A network to fine-tune, the images, and where checkpoints go.

    `train` gives this rank's share of every global batch; `test` this rank's share of the images
    that decide which checkpoint is the best. `fingerprint` is what a resumed run must have in
    common with the one that was killed.
    """

    network: IntegerNetwork
    teacher: nn.Module | None
    train: Loader
    test: Loader
    settings: TrainingSettings
    device: torch.device
    ranks: Ranks
    folder: Path
    fingerprint: dict[str, Any]
    log: Any = None
    say: Callable[[str], None] = say


@dataclass
class Progress:
    """How far a fine-tuning has come; JSON-ready by `asdict`.

    `losses` is the sum over the `counted` steps since the last evaluation; `history` holds one
    entry per evaluation, the first before any step: step, epoch, loss (None there), top-1, top-5.
    """

    step: int = 0
    losses: float = 0.0
    counted: int = 0
    best_top1: float = -1.0
    seconds: float = 0.0
    history: list[dict[str, float | None]] = field(default_factory=list)


def fine_tune(task: Task, resume: bool, start_epoch: int = 0) -> Progress:
    """Train the network in place, and leave the best weights in it, those at the start included.

    After every evaluation the last and the best state are written to `task.folder`. A resumed run
    goes on from the last one and ends with the numbers of an uninterrupted one.

    Args:
        task: what to train, on what, and how.
        resume: go on from `task.folder`.
        start_epoch: begin the schedule there.

    Raises:
        OmpqError: the loss is not finite, or the checkpoint is of another run.
    """
    if not 0 <= start_epoch <= task.settings.epochs:
        raise OmpqError(
            f"--start_epoch is {start_epoch}; with --epochs {task.settings.epochs} it is one of "
            f"0 to {task.settings.epochs}"
        )
    run = _Run(task)
    if not (resume and run.restore()):
        run.progress.step = start_epoch * run.steps_per_epoch
    if not run.progress.history:
        run.begin()
    for epoch in range(run.progress.step // max(1, run.steps_per_epoch), task.settings.epochs):
        run.epoch(epoch)
    state = load_checkpoint(task.folder / BEST, task.fingerprint)
    task.network.module.load_state_dict(state["network"])
    task.network.module.eval()
    return run.progress


def evaluate_all_ranks(task: Task, module: nn.Module | None = None) -> Accuracy:
    """Accuracy of the network (or of another one) on the test images of all ranks."""
    accuracy = predict(module or task.network.module, task.test, task.device).accuracy()
    if task.ranks.world_size == 1:
        return accuracy
    counts = [accuracy.top1 * accuracy.count, accuracy.top5 * accuracy.count, accuracy.count]
    total = torch.tensor(counts, dtype=torch.float64, device=task.device)
    distributed.all_reduce(total)
    hits1, hits5, count = total.tolist()
    return Accuracy(hits1 / count, hits5 / count, int(count))


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)) (Hinton et al., arXiv:1503.02531)."""
    log_shares = log_softmax(student / temperature, dim=1)
    shares = softmax(teacher / temperature, dim=1)
    return kl_div(log_shares, shares, reduction="batchmean") * temperature**2


def _sharing_gradients(module: nn.Module, apex: bool) -> nn.Module:
    """The network, its gradients averaged over all ranks after every backward pass."""
    if not apex:
        return DistributedDataParallel(module, broadcast_buffers=False)
    return apex_parallel().DistributedDataParallel(module)


def apex_parallel() -> ModuleType:
    """NVIDIA's `apex.parallel`.

    Raises:
        OmpqError: it is not installed; PyPI's package named apex is another one.
    """
    try:
        parallel = import_module("apex.parallel")
    except ImportError as error:
        raise OmpqError(
            "--apex needs NVIDIA Apex, built from github.com/NVIDIA/apex (PyPI's apex is another "
            "package); leave --apex out for PyTorch's own, which gives the same"
        ) from error
    return parallel


class _Run:
    """The state of one fine-tuning in this process."""

    def __init__(self, task: Task) -> None:
        self.task = task
        settings = task.settings
        module = task.network.module
        self.progress = Progress()
        self.losses = torch.zeros((), dtype=torch.float64, device=task.device)
        self.steps_per_epoch = len(task.train)
        self.total_steps = settings.epochs * self.steps_per_epoch
        self.optimizer = torch.optim.SGD(
            [p for p in module.parameters() if p.requires_grad],
            settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        stepping: nn.Module = module
        if task.ranks.world_size > 1:
            stepping = _sharing_gradients(module, settings.apex)
        self.forward: Any = torch.compile(stepping) if settings.compile else stepping

    def restore(self) -> bool:
        """Go on from the last checkpoint; tells whether there is one."""
        file = self.task.folder / LAST
        if not file.is_file():
            self._tell(f"note: {self.task.folder} holds no checkpoint; starting anew")
            return False
        state = load_checkpoint(file, self.task.fingerprint)
        self.task.network.module.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])
        self.losses.fill_(self.progress.losses)
        torch.set_rng_state(state["rng"])
        if self.task.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"], self.task.device)
        return True

    def begin(self) -> None:
        """Evaluate and keep the network as it is before any step."""
        accuracy = self._record(self.progress.step // max(1, self.steps_per_epoch), None)
        self._tell(f"quantized, before training: top-1 {accuracy.top1:.2f} %")
        self._save(LAST)

    def epoch(self, epoch: int) -> None:
        """The steps of an epoch that are still to be done."""
        settings, count = self.task.settings, self.steps_per_epoch
        evaluations = {count * (k + 1) // settings.evaluations for k in range(settings.evaluations)}
        start = time.perf_counter()
        remaining = count - (self.progress.step - epoch * count)
        bar = progress(self._batches(epoch), f"epoch {epoch + 1}/{settings.epochs}", remaining)
        for images, labels in bar:
            self.losses += self._step(images, labels)
            self.progress.step += 1
            self.progress.counted += 1
            done = self.progress.step - epoch * count
            if settings.print_steps and done % settings.print_steps == 0:
                loss = self._mean_loss()
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

    def _mean_loss(self) -> float:
        """Of the steps since the last evaluation, over all ranks (all of which must ask)."""
        if self.task.ranks.world_size > 1:
            distributed.all_reduce(self.losses)
            self.losses /= self.task.ranks.world_size
        return float(self.losses) / max(1, self.progress.counted)

    def _check_finite(self) -> None:
        """Stop before a state that is lost replaces one that is not."""
        loss = self._mean_loss()
        module = self.task.network.module
        if math.isfinite(loss) and all(bool(p.isfinite().all()) for p in module.parameters()):
            return
        raise OmpqError(
            f"training diverged by step {self.progress.step} (loss {loss:.4g}); lower --lr (it is "
            f"{self.task.settings.learning_rate}) or give more bits, and start anew: with another "
            f"--save_path, or after deleting {self.task.folder / LAST}"
        )

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.task.train.set_epoch(epoch)
        done = self.progress.step - epoch * self.steps_per_epoch
        yield from islice(self.task.train, done, self.steps_per_epoch)

    def _step(self, images: Tensor, labels: Tensor) -> Tensor:
        settings, task = self.task.settings, self.task
        if settings.fix_norms is not None and self.progress.step >= settings.fix_norms:
            task.network.freeze_norms()
        task.network.module.train()
        share = self.progress.step / max(1, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * share))
        images, labels = images.to(task.device), labels.to(task.device)
        with self._autocast():
            logits = self.forward(images)
            loss = self._loss(logits.float(), images, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self.task.settings.amp:
            return nullcontext()
        return torch.autocast(self.task.device.type, torch.bfloat16)

    def _loss(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        loss = cross_entropy(logits, labels)
        if self.task.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.task.teacher(images).float()
        alpha, temperature = self.task.settings.distill_alpha, self.task.settings.temperature
        return alpha * distillation_loss(logits, taught, temperature) + (1 - alpha) * loss

    def _evaluate(self, epoch: int) -> None:
        loss = self._mean_loss()
        accuracy = self._record(epoch + 1, loss)
        self._tell(f"epoch {epoch + 1}: loss {loss:.4f}, top-1 {accuracy.top1:.2f} %")
        if self.task.log is not None:
            self.task.log.add_scalar("loss", loss, self.progress.step)
            self.task.log.add_scalar("top1", accuracy.top1, self.progress.step)

    def _record(self, epoch: int, loss: float | None) -> Accuracy:
        """Evaluate, remember it, and keep the state where it is the best."""
        accuracy = evaluate_all_ranks(self.task)
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
        """The whole state, from rank 0; the other ranks wait for it."""
        self._mean_loss()
        self.progress.losses = float(self.losses)
        if self.task.ranks.is_main:
            cuda = self.task.device.type == "cuda"
            state = {
                "network": self.task.network.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": asdict(self.progress),
                "total_steps": self.total_steps,
                "rng": torch.get_rng_state(),
                "cuda_rng": torch.cuda.get_rng_state(self.task.device) if cuda else None,
            }
            save_checkpoint(self.task.folder / name, state, self.task.fingerprint)
        if self.task.ranks.world_size > 1:
            distributed.barrier()
