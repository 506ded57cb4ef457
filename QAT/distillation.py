"""Distillation: a teacher that sees images as it saw its own in training, and its loss."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ompq.data import preprocess_for
from ompq.errors import UNSUITED_ERRORS, OmpqError
from ompq.preprocess import Preprocess
from ompq.zoo import Network, load_network
from QAT.options import NO_TEACHER

# Shares of red, green and blue in a grey value (ITU-R BT.601), as Pillow's mode "L" takes them.
_LUMINANCE = (0.299, 0.587, 0.114)


class Teacher(nn.Module):
    """A float network that takes images made for another one.

    The student's normalisation is undone, the images are brought to the teacher's size, channels
    and normalisation. No gradient is needed, and none is kept.

    Args:
        module: The network that teaches.
        student: Preprocessing that the images come with.
        own: Preprocessing that the teacher was trained with.
    """

    mean: Tensor
    std: Tensor
    own_mean: Tensor
    own_std: Tensor

    def __init__(self, module: nn.Module, student: Preprocess, own: Preprocess) -> None:
        super().__init__()
        self.module, self.student, self.own = module, student, own
        values = {"mean": student.mean, "std": student.std}
        values |= {"own_mean": own.mean, "own_std": own.std}
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the teacher's logits (n × classes) of the student's images (n × channels × …)."""
        logits: Tensor = self.module(self.adapt(images))
        return logits.flatten(1)

    def adapt(self, images: Tensor) -> Tensor:
        """Turn images that are normalised for the student into the teacher's.

        Args:
            images: Images as the student takes them, n × channels × height × width.
        """
        same_values = self.student.mean == self.own.mean and self.student.std == self.own.std
        size = (self.own.input_size, self.own.input_size)
        if same_values and images.shape[-2:] == size:
            return images
        pixels = _convert_channels(images * self.std + self.mean, self.own.channels)
        if pixels.shape[-2:] != size:
            # Bicubic interpolation overshoots what pixels can be.
            mode = self.own.interpolation
            pixels = interpolate(pixels, size, mode=mode, antialias=True).clamp_(0, 1)
        return (pixels - self.own_mean) / self.own_std


def _convert_channels(pixels: Tensor, channels: int) -> Tensor:
    """Turn grey pixels into coloured ones, or coloured into grey ones, as Pillow does."""
    if pixels.shape[1] == channels:
        return pixels
    if channels == 1:
        shares = pixels.new_tensor(_LUMINANCE).view(-1, 1, 1)
        return (pixels[:, :3] * shares).sum(1, keepdim=True)
    coloured = pixels[:, :3].expand(-1, 3, -1, -1)
    opaque = torch.ones_like(coloured[:, :1])
    return torch.cat([coloured, opaque], 1)[:, :channels]


def load_teacher(
    arguments: argparse.Namespace, num_classes: int, student: Preprocess, device: torch.device
) -> Teacher | None:
    """Load the teacher that the command line names; None where it names none.

    Args:
        arguments: Arguments of `QAT.options.build_parser`.
        num_classes: Number of classes that the student tells.
        student: Preprocessing of the student's images.
        device: Device to compute on.

    Raises:
        OmpqError: It cannot be loaded or run, or tells other classes than the student.
    """
    if arguments.distill_method == NO_TEACHER:
        return None
    name = arguments.teacher_arch
    own_file = ".py:" in name
    try:
        network = load_network(
            name,
            path=arguments.teacher_path,
            # The factory of a user's own file may give trained weights itself.
            pretrained=arguments.teacher_path is None and not own_file,
        )
    except OmpqError as error:
        told = str(error).replace("`path`", "`teacher_path`")
        told = told.replace("`num_classes`", "the number of classes")
        raise OmpqError(f"`teacher_arch` {name}: {told}") from error
    own = _choose_preprocess(arguments.dataset, network, student, own_file)
    teacher = Teacher(network.module.requires_grad_(False), student, own).to(device).eval()
    found = _count_classes(teacher, name, device)
    if found != num_classes:
        raise OmpqError(
            f"the teacher {name} (`teacher_arch`) has {found} classes, the network {num_classes}; "
            "give `teacher_path` a checkpoint for these images"
        )
    return teacher


def _choose_preprocess(
    dataset: str, network: Network, student: Preprocess, own_file: bool
) -> Preprocess:
    """Return what the teacher was trained with: its own word, its library's or the data's."""
    told: Any = getattr(network.module, "preprocess", None)
    if isinstance(told, Preprocess):
        return told
    # Of a network that says nothing, the student's images are the best guess.
    return student if own_file else preprocess_for(dataset, network.preprocess)


def _count_classes(teacher: Teacher, name: str, device: torch.device) -> int:
    student = teacher.student
    side = student.input_size
    image = torch.zeros(1, student.channels, side, side, device=device)
    try:
        return int(teacher(image).shape[1])
    except UNSUITED_ERRORS as error:
        size, reason = teacher.own.input_size, str(error).split("\n")[0][:160]
        raise OmpqError(
            f"the teacher {name} (`teacher_arch`) cannot run on images of {teacher.own.channels}×"
            f"{size}×{size}: {reason}"
        ) from error
