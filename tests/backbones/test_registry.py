"""Loading by name: errors that list the right names, seeds, local weights."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import timm
import torch
import torchvision
import transformers

from devil.backbones import Backbone, load_backbone
from devil.config import BackboneConfig
from devil.errors import BackboneError

TINY = "timm:test_vit"


def load(name: str, weights: str | Path = "random", **fields: int) -> Backbone:
    return load_backbone(BackboneConfig(name=name, weights=str(weights), **fields))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jax:resnet50", r"unknown library 'jax'; allowed: .*'open_clip'.*'timm'"),
        ("timm:vit_tinny_patch16_224", "no model 'vit_tinny.*vit_tiny_patch16_224"),
        ("torchvision:resnet51", "no model 'resnet51'.*'resnet50'"),
        ("torchvision:resnet50/V9", "no weights 'V9'; tags: .*IMAGENET1K_V2"),
        ("open_clip:ViT-B-33", "no architecture 'ViT-B-33'.*'ViT-B-32'"),
        ("open_clip:ViT-B-32/mine", "no weights 'mine'; its tags: .*'openai'"),
        ("transformers:nobody/nothing", "nobody/nothing.* cannot be loaded .*Check the name"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message) as caught:
        load(name)
    assert len(str(caught.value)) < 1500
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_pretrained_needs_a_tag_in_open_clip() -> None:
    with pytest.raises(BackboneError, match=r"names no weights; its tags: .*openai.*or give"):
        load("open_clip:RN50", "pretrained")


def test_pretrained_out_of_reach_says_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"cannot be loaded .*weights=PATH.*weights='random'"):
        load("timm:test_vit2", "pretrained")


@pytest.mark.parametrize("name", [TINY, "torchvision:squeezenet1_0", "open_clip:RN50"])
def test_random_weights_follow_the_seed(name: str) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    digests = [load(name, seed=seed, image_size=64).digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_text_towers_that_need_the_hub_are_not_built() -> None:
    assert load("open_clip:roberta-ViT-B-32", image_size=64).has_class_token


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_local_weights_with_other_classes(library: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights.{suffix}"
    if library == "timm":
        name, model = TINY, timm.create_model("test_vit", num_classes=7)
    else:
        name, model = "torchvision:squeezenet1_0", torchvision.models.squeezenet1_0(num_classes=7)
    if suffix == "pt":
        state = {f"module.{key}": value for key, value in model.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        safetensors.torch.save_model(model, path)
    backbone = load(name, path, image_size=160)
    images = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(backbone.module(images), model.eval()(images))
    assert backbone.module(images).shape == (2, 7)


def test_local_weights_without_a_head(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", num_classes=0)
    safetensors.torch.save_model(model, tmp_path / "trunk.safetensors")
    backbone = load(TINY, tmp_path / "trunk.safetensors")
    images = torch.randn(1, 3, 160, 160)
    torch.testing.assert_close(backbone.module(images), model.eval()(images))


@pytest.mark.parametrize("prefix", ["visual.", ""])
def test_local_weights_of_open_clip(prefix: str, tmp_path: Path) -> None:
    visual = load("open_clip:RN50", seed=5, image_size=64).module
    state = {f"{prefix}{key}": value.contiguous() for key, value in visual.state_dict().items()}
    if prefix:
        state["logit_scale"] = torch.tensor(1.0)
    safetensors.torch.save_file(state, tmp_path / "clip.safetensors")
    backbone = load("open_clip:RN50", tmp_path / "clip.safetensors", image_size=64)
    assert backbone.digest() == load("open_clip:RN50", seed=5, image_size=64).digest()


def test_a_tag_chooses_the_activation_of_local_weights() -> None:
    plain, quick = (load(f"open_clip:ViT-B-32{tag}", image_size=64) for tag in ("", "/openai"))
    assert plain.digest() == quick.digest()
    kinds = [type(b.module.transformer.resblocks[0].mlp.gelu) for b in (plain, quick)]
    assert kinds == [torch.nn.GELU, open_clip.transformer.QuickGELU]


def test_weights_of_a_transformers_folder(hub_folder: Callable[[str], Path]) -> None:
    folder = hub_folder("clip")
    own = load(f"transformers:{folder}", "pretrained")
    assert own.digest() != load(f"transformers:{folder}", "random").digest()
    # The file holds both towers.
    assert own.digest() == load(f"transformers:{folder}", folder / "model.safetensors").digest()


def test_weights_of_a_classifier_around_a_transformers_model(
    hub_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = hub_folder("dinov2")
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.Dinov2ForImageClassification(config).eval()
    # On disk tensors have older names than in the module.
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    images = torch.randn(1, 3, 64, 64)
    expected = model.dinov2(images, output_hidden_states=True).hidden_states[4][:, 0]
    for file in ("model.safetensors", "state.pt"):
        features = load(f"transformers:{folder}", tmp_path / file)(images)
        torch.testing.assert_close(features["encoder.layer.3"].class_token, expected)
    config.num_hidden_layers = 9
    deeper = tmp_path / "deeper"
    transformers.Dinov2Model(config).save_pretrained(deeper)
    with pytest.raises(BackboneError, match=r"18 unexpected: encoder\.layer\.8\."):
        load(f"transformers:{folder}", deeper / "model.safetensors")
    with pytest.raises(BackboneError, match=r"do not fit ViTModel \(.*missing: .*layers\.0"):
        load(f"transformers:{hub_folder('vit')}", deeper / "model.safetensors")


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    state = timm.create_model("test_vit").state_dict()
    state["extra"] = torch.zeros(1)
    state["blocks.0.norm1.weight"] = torch.zeros(3)
    del state["blocks.1.norm1.bias"]
    safetensors.torch.save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(BackboneError, match="do not fit VisionTransformer") as caught:
        load(TINY, tmp_path / "odd.safetensors")
    message = str(caught.value)
    assert "1 missing: blocks.1.norm1.bias;" in message
    assert "1 unexpected: extra;" in message
    assert "blocks.0.norm1.weight (3,) instead of (64,)" in message


class Payload:
    """What a pickle may smuggle in."""

    def __reduce__(self) -> tuple:
        return json.dumps, ("run",)


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"nowhere\.pt does not exist.*'random'"):
        load(TINY, tmp_path / "nowhere.pt")
    for name in ("text.safetensors", "text.pt", "empty.safetensors", "empty.pt"):
        (tmp_path / name).write_text("hello, no tensors here" if "text" in name else "")
        with pytest.raises(BackboneError, match=rf"{name} cannot be read .*safetensors file or"):
            load(TINY, tmp_path / name)
    torch.save({"a": Payload()}, tmp_path / "pickled.pt")
    with pytest.raises(BackboneError, match=r"UnpicklingError.*Weights only load failed"):
        load(TINY, tmp_path / "pickled.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    with pytest.raises(BackboneError, match="holds no state dict"):
        load(TINY, tmp_path / "numbers.pt")


def test_an_image_size_that_the_model_cannot_take(hub_folder: Callable[[str], Path]) -> None:
    with pytest.raises(BackboneError, match=r"cannot be loaded .*image_size"):
        load(f"transformers:{hub_folder('vit')}", image_size=96)
