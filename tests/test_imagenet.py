"""EfficientNet-Lite0 with its ImageNet weights: right on real photographs, exact to the value,
and a classifier like any other."""

import json
from pathlib import Path

import pytest
import skimage.data
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo

from synthnb.models.classifiers import load_classifier
from synthnb.studies.parameters import locate

NAME = "imagenet/efficientnet_lite0"
PHOTOGRAPHS = {  # photograph -> the class that comes first, and its probability as the original weights give it
    "coffee": ("espresso", 0.951),
    "chelsea": ("tiger cat", 0.392),
    "camera": ("tripod", 0.938),
    "rocket": ("missile", 0.274),
    "china": ("palace", 0.299),
    "flower": ("daisy", 0.323),
}


@pytest.fixture(scope="module")
def net():
    return load_classifier(locate(NAME)).eval()


def photograph(name: str) -> Image.Image:
    """A real photograph that comes with scikit-learn or scikit-image."""
    pixels = load_sample_image(f"{name}.jpg") if name in ("china", "flower") else getattr(skimage.data, name)()
    return Image.fromarray(pixels).convert("RGB")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_names_photographs(net, name):
    """Other weights, another order of entries, or another mean and spread of the pixels change the probability."""
    prepare = timm.data.create_transform(**timm.data.resolve_data_config(net.pretrained_cfg))
    with torch.no_grad():
        found = net(prepare(photograph(name))[None]).softmax(1)[0]
    label, probability = PHOTOGRAPHS[name]
    assert ImageNetInfo("imagenet-1k").label_descriptions()[found.argmax()] == label
    assert found.max().item() == pytest.approx(probability, abs=0.02)


def test_every_weight_is_finite_and_in_its_place(net):
    state = load_file(f"{locate(NAME)}/model.safetensors")
    assert state.keys() == net.state_dict().keys() and len(state) == 296
    assert all(torch.isfinite(value.float()).all() for value in state.values())
    assert sum(p.numel() for p in net.parameters()) == 4_652_008


def test_is_a_classifier_like_any_other():
    torch.manual_seed(0)
    net = load_classifier(locate(NAME), 10, seed=3).train()
    assert net(torch.zeros(2, 3, 48, 48)).shape == (2, 10)
    assert any(isinstance(layer, torch.nn.BatchNorm2d) for layer in net.modules()), "dual norms need batch norms"


def test_licence_travels_with_it():
    folder = locate(NAME)
    assert "Apache" in Path(folder, "LICENSE.txt").read_text()
    assert json.loads(Path(folder, "config.json").read_text())["pretrained_cfg"]["license"] == "apache-2.0"


def test_unknown_shipped_name_is_refused():
    with pytest.raises(ValueError, match="efficientnet_lite0"):
        locate("imagenet/resnet50")
