"""What images go through: the author's word, the data set's own, and the user's wishes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from ompq.data import ImageWishes, choose_preprocess, find_input_shape, make_loader
from ompq.data.datasets.fashion_mnist import DEBIAN_FOLDER, open_fashion_mnist
from ompq.errors import OmpqError
from ompq.preprocess import Preprocess
from ompq.zoo import Network

DIGITS = Preprocess(8, 8, (0.3058,) * 3, (0.3764,) * 3)


def make_network(told: Preprocess | None = None, channels: int = 3) -> Network:
    module = nn.Sequential(nn.Conv2d(channels, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if told is not None:
        module.preprocess = told
    return Network("own.py:make", module.eval(), told or Preprocess(), num_classes=2, source="")


def sizes(preprocess: Preprocess) -> tuple[int, int]:
    return preprocess.resize, preprocess.input_size


@pytest.mark.parametrize(
    ("told", "wished", "found"),
    [
        (None, {}, (256, 224)),
        (None, {"input_size": 32}, (32, 32)),
        (None, {"input_size": 99}, (99, 99)),
        (None, {"input_size": 112}, (128, 112)),
        (None, {"input_size": 32, "resize": 40}, (40, 32)),
        (None, {"resize": 300}, (300, 224)),
        (Preprocess(32, 36), {}, (36, 32)),
        (Preprocess(32, 36), {"input_size": 32}, (36, 32)),
        (Preprocess(32, 36), {"input_size": 48}, (48, 48)),
        (Preprocess(32, 36), {"resize": 32}, (32, 32)),
    ],
)
def test_folders_of_images_are_zoomed_only_where_somebody_says_so(
    told: Preprocess | None, wished: dict[str, int], found: tuple[int, int]
) -> None:
    chosen = choose_preprocess("folder", make_network(told), ImageWishes(**wished))
    assert sizes(chosen) == found


@pytest.mark.parametrize(
    ("dataset", "told", "wished", "found"),
    [
        ("digits", None, {}, (8, 8)),
        ("digits", Preprocess(32, 36), {}, (8, 8)),
        ("digits", Preprocess(8, 10), {}, (10, 8)),
        ("digits", None, {"input_size": 32}, (32, 32)),
        ("digits", Preprocess(32, 36), {"input_size": 32}, (36, 32)),
        ("cifar10", Preprocess(224, 256), {}, (32, 32)),
        ("cifar10", None, {"input_size": 28}, (32, 28)),
        ("cifar10", None, {"resize": 40}, (40, 32)),
        ("fashion_mnist", None, {}, (32, 32)),
        ("fashion_mnist", None, {"input_size": 28}, (32, 28)),
        ("fashion_mnist", Preprocess(28, 28), {}, (28, 28)),
    ],
)
def test_images_of_a_native_size_keep_it(
    dataset: str, told: Preprocess | None, wished: dict[str, int], found: tuple[int, int]
) -> None:
    chosen = choose_preprocess(dataset, make_network(told), ImageWishes(**wished))
    assert sizes(chosen) == found


def test_the_authors_normalisation_holds_for_every_data_set() -> None:
    told = Preprocess(32, 32, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    for dataset in ("folder", "digits", "cifar10"):
        chosen = choose_preprocess(dataset, make_network(told))
        assert (chosen.mean, chosen.std) == (told.mean, told.std)
    assert choose_preprocess("digits", make_network()) == DIGITS


def test_the_user_has_the_last_word() -> None:
    wishes = ImageWishes(mean=(0.5,), std=(0.1, 0.2, 0.3), interpolation="bicubic")
    chosen = choose_preprocess("digits", make_network(Preprocess(8, 8)), wishes)
    assert chosen == Preprocess(8, 8, (0.5,) * 3, (0.1, 0.2, 0.3), "bicubic")
    with pytest.raises(OmpqError, match=r"`resize` \(24\) is smaller than `input_size` \(32\)"):
        choose_preprocess("cifar10", make_network(), ImageWishes(resize=24))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_network_that_says_nothing_is_asked_for_its_channels(channels: int) -> None:
    network = make_network(channels=channels)
    assert choose_preprocess("folder", network, ImageWishes(16)).channels == channels
    assert find_input_shape(network, 16) == (channels, 16, 16)
    grey = choose_preprocess("digits", network)
    assert grey.mean == (0.3058,) * channels


def test_a_network_that_takes_no_image_keeps_three_channels() -> None:
    assert choose_preprocess("folder", make_network(channels=7)).channels == 3


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Fashion-MNIST is not installed")
@pytest.mark.parametrize("told", [None, Preprocess(28, 28, (0.0,), (1.0,))])
def test_fashion_mnist_of_28_pixels_is_the_picture_itself(told: Preprocess | None) -> None:
    network = make_network(told, channels=1)
    wishes = ImageWishes(28, mean=(0.0,), std=(1.0,))
    chosen = choose_preprocess("fashion_mnist", network, wishes)
    images, _ = next(iter(make_loader("fashion_mnist", None, "val", chosen, 20)))
    stored = open_fashion_mnist(None, "val").images[:20]
    assert torch.equal(images, stored / 255)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("stored", ["L", "RGB"])
def test_files_come_in_the_networks_channels(tmp_path: Path, channels: int, stored: str) -> None:
    noise = torch.randint(256, (32, 32, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.to(torch.uint8).numpy()).convert(stored)
    (tmp_path / "val" / "a").mkdir(parents=True)
    picture.save(tmp_path / "val" / "a" / "1.png")
    preprocess = Preprocess(32, 32, (0.0,) * channels, (1.0,) * channels)
    images, _ = next(iter(make_loader("folder", tmp_path, "val", preprocess, 1)))
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    expected = torch.frombuffer(bytearray(picture.convert(mode).tobytes()), dtype=torch.uint8)
    assert torch.equal(images[0], expected.view(32, 32, channels).permute(2, 0, 1) / 255)


def test_channels_that_no_image_has_are_refused(tmp_path: Path) -> None:
    odd = Preprocess(8, 8, (0.5,) * 5, (0.5,) * 5)
    with pytest.raises(OmpqError, match="`mean` names 5 channels"):
        make_loader("digits", None, "val", odd, 4)
