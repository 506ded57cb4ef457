"""Networks by name: where they come from, what their images go through, what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision import models

from ompq.errors import OmpqError
from ompq.zoo import RANDOM_WEIGHTS, _sources, load_network


@pytest.mark.parametrize(
    ("name", "size", "resize", "interpolation"),
    [
        ("resnet18", 224, 256, "bilinear"),
        ("mobilenetv2", 224, 256, "bilinear"),
        ("inceptionv3", 299, 342, "bilinear"),
        ("timm:resnet18", 224, 235, "bicubic"),
        ("efficientnet_lite0", 224, 256, "bicubic"),
        ("deit_tiny_patch16_224", 224, 248, "bicubic"),
        ("small_resnet", 32, 32, "bilinear"),
    ],
)
def test_name_and_preprocess(name: str, size: int, resize: int, interpolation: str) -> None:
    network = load_network(name)
    preprocess = network.preprocess
    assert (preprocess.input_size, preprocess.resize) == (size, resize)
    assert preprocess.interpolation == interpolation
    assert network.source == RANDOM_WEIGHTS == "random initialisation"
    assert not network.module.training
    assert {p.dtype for p in network.module.parameters()} == {torch.float32}


def test_small_resnet_is_small_and_takes_small_images() -> None:
    network = load_network("small_resnet")
    assert network.num_classes == 10
    assert 100_000 < sum(p.numel() for p in network.module.parameters()) < 300_000
    for size in (8, 32):
        assert network.module(torch.zeros(2, 3, size, size)).shape == (2, 10)


def test_number_of_classes() -> None:
    assert load_network("resnet18").num_classes == 1000
    assert load_network("resnet18", num_classes=10).num_classes == 10
    assert load_network("timm:resnet18", num_classes=10).num_classes == 10
    with pytest.raises(OmpqError, match="`num_classes` must be at least 1"):
        load_network("resnet18", num_classes=0)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("resnet81", "there is no network called 'resnet81'; did you mean resnet18"),
        ("timm:qqqq", "timm has no network called 'qqqq'"),
        ("torchvision:efficientnet_lite0", "torchvision has no network"),
        ("keras:resnet18", "'keras' is no library"),
        ("net.py", "net.py:FACTORY"),
    ],
)
def test_unknown_names(name: str, complaint: str) -> None:
    with pytest.raises(OmpqError, match=complaint) as caught:
        load_network(name)
    assert "\n" not in str(caught.value)


def test_unknown_to_pytorchcv() -> None:
    pytest.importorskip("pytorchcv")
    with pytest.raises(OmpqError, match="pytorchcv has no network called 'resnet19'; did you mean"):
        load_network("pytorchcv:resnet19")


def test_a_library_that_refuses_the_number_of_classes() -> None:
    pytest.importorskip("pytorchcv")
    with pytest.raises(OmpqError, match="cannot build the network with 7 classes"):
        load_network("pytorchcv:resnet20_cifar10", num_classes=7)


def test_path_and_pretrained_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(OmpqError, match="`path` and `pretrained` name two sources of weights"):
        load_network("resnet18", path=tmp_path, pretrained=True)


class TestPretrained:
    def test_without_a_connection(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise URLError("Name or service not known")

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr("torch.hub.urlopen", refuse)
        with pytest.raises(OmpqError, match=r"resnet18 cannot be fetched.*`path`") as caught:
            load_network("resnet18", pretrained=True)
        assert "\n" not in str(caught.value)

    def test_no_weights_at_all(self) -> None:
        with pytest.raises(OmpqError, match="ompq has no weights for small_resnet"):
            load_network("small_resnet", pretrained=True)

    def test_weights_in_a_package_called_after_the_network(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        package = tmp_path / "small_resnet_pytorch_model"
        package.mkdir()
        weights = load_network("small_resnet", num_classes=7).module.state_dict()
        torch.save(weights, package / "w.pth")
        (package / "__init__.py").write_text(
            "import os\nclass SmallResnetModelFile:\n    @staticmethod\n"
            "    def get_model_file_path():\n"
            "        return os.path.join(os.path.dirname(__file__), 'w.pth')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        network = load_network("small_resnet", pretrained=True)
        assert network.source == "the package small-resnet-pytorch-model"
        assert network.module.classifier.weight.equal(weights["classifier.weight"])

    def test_says_whose_weights_and_keeps_their_classes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weights = models.resnet18().state_dict()
        monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_, **__: weights)
        network = load_network("resnet18", pretrained=True)
        assert network.source == "torchvision's IMAGENET1K_V1"
        assert network.module.fc.weight.equal(weights["fc.weight"])
        with pytest.raises(OmpqError, match="`num_classes` 10 contradicts `pretrained`"):
            load_network("resnet18", pretrained=True, num_classes=10)


def test_the_librarys_own_file_brings_its_preprocess(tmp_path: Path) -> None:
    url = models.Inception_V3_Weights.IMAGENET1K_V1.url
    file = tmp_path / url.rpartition("/")[2]
    reference = models.inception_v3(weights=None, init_weights=False)
    torch.save(reference.state_dict(), file)
    assert load_network("inceptionv3", path=file).module.transform_input
    file = file.rename(tmp_path / "mine.pth")
    assert not load_network("inceptionv3", path=file).module.transform_input


def test_v2_weights_of_torchvision_are_resized_as_they_were_made(tmp_path: Path) -> None:
    file = tmp_path / models.MobileNet_V2_Weights.IMAGENET1K_V2.url.rpartition("/")[2]
    torch.save(models.mobilenet_v2().state_dict(), file)
    assert load_network("mobilenetv2", path=file).preprocess.resize == 232


def test_import_is_light() -> None:
    code = (
        "import sys, ompq.zoo; "
        "sys.exit(sum(m in sys.modules for m in ('timm', 'pytorchcv', 'nvidia.dali')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_aliases_lead_somewhere() -> None:
    for alias in _sources.ALIASES:
        assert _sources.find_source(alias).name == _sources.ALIASES[alias]
