"""The embedded models: equal seeds give equal weights, and the ordinary loaders read them."""

import math

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from devil.data.embedded import BACKBONE, LAYERS, Labels, train_backbone, train_language_model
from devil.data.scenes import COLOURS, SceneConfig, scene_captions, scenes
from devil.errors import DataError

EASY = SceneConfig(
    min_objects=1, max_objects=1, kinds=("circle",), colours=("red", "blue"), textures=("plain",)
)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "weights.safetensors"
    pictures = scenes(120, 0, EASY)
    return train_backbone(
        pictures, path, seed=1, steps=90, batch_size=8, held_out=40, labels=Labels.of(EASY)
    )


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    captions = scene_captions(400, 0)
    return train_language_model(
        captions, folder, seed=1, steps=150, batch_size=8, held_out=40, width=64, depth=2, heads=2
    )


def test_the_backbone_learns(backbone):
    """One object in one of two colours: far above the better of the two guesses."""
    assert backbone.image_accuracy > 0.85 > 0.7 > backbone.chance_image_accuracy
    assert backbone.local_accuracy["layer3"] > 0.85
    assert backbone.seconds > 0


def test_timm_loads_the_backbone(backbone):
    """A strict load by timm's own name, through timm's own transform, gives the measured share."""
    model = timm.create_model(BACKBONE, num_classes=len(backbone.labels)).eval()
    model.load_state_dict(load_file(backbone.path), strict=True)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    held_out = list(scenes(40, 0, EASY))
    with torch.no_grad():
        logits = model(torch.stack([transform(scene.image) for scene in held_out]))
    told = [backbone.labels[i] for i in logits[:, :2].argmax(1).tolist()]
    right = [name == scene.objects[0].name for name, scene in zip(told, held_out, strict=True)]
    assert sum(right) / len(right) == pytest.approx(backbone.image_accuracy, abs=0.03)
    names = dict(model.named_modules())
    assert all(layer in names for layer in LAYERS)


def test_equal_seeds_give_equal_backbones(tmp_path):
    def weights(name, seed):
        path = tmp_path / name
        torch.rand(1)  # the global random state must not matter
        train_backbone(scenes(20, 0), path, seed=seed, steps=3, batch_size=4, held_out=4)
        return load_file(path)

    first, second, other = weights("a", 0), weights("b", 0), weights("c", 1)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.0.weight"], other["conv1.0.weight"])


def test_the_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_backbone(scenes(8, 0), tmp_path / "w", steps=1, batch_size=4, held_out=2)
    train_language_model(
        scene_captions(20, 0), tmp_path / "lm", steps=1, held_out=5, width=16, depth=1, heads=2
    )
    assert torch.equal(torch.rand(3), expected)


def test_label_names_follow_their_targets():
    """Each logit is trained on what its name says."""
    from devil.data.embedded.views import image_targets, view_scenes

    labels = Labels.of()
    model = timm.create_model(BACKBONE, num_classes=len(labels.names))
    some = list(scenes(12, 2))
    views = view_scenes(some, model, labels)
    for scene, row in zip(some, image_targets(views, labels), strict=True):
        told = {labels.names[index] for index in row.nonzero()[:, 0].tolist()}
        truth = {scene.background}
        for item in scene.objects:
            truth |= {item.name, item.kind, item.colour, item.texture}
        assert told == truth


def test_masks_pass_through_the_same_geometry_as_pictures():
    """A location that an object fills shows that object's colour in the transformed picture."""
    from devil.data.embedded.views import view_scenes

    config = SceneConfig(textures=("plain",), kinds=("square", "circle"), colours=("red", "blue"))
    labels = Labels.of(config)
    model = timm.create_model(BACKBONE, num_classes=len(labels.names))
    some = list(scenes(12, 2, config))
    views = view_scenes(some, model, labels)
    assert views.images.shape[1:] == (3, 160, 160) and views.shares.shape[2:] == (10, 10)
    checked = 0
    for scene, image, shares in zip(some, views.images, views.shares, strict=True):
        for slot, item in enumerate(scene.objects):
            for row, column in (shares[slot] == 1).nonzero().tolist():
                cell = image[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16].float()
                wanted = torch.tensor(COLOURS[item.colour]).float()
                assert (cell.mean((1, 2)) - wanted).abs().max() < 45
                checked += 1
    assert checked > 20


def test_too_few_scenes_are_refused(tmp_path):
    with pytest.raises(DataError, match="held_out"):
        train_backbone(scenes(5, 0), tmp_path / "w", held_out=4, batch_size=4)
    with pytest.raises(DataError, match="no scenes"):
        train_backbone(iter(()), tmp_path / "w")


def test_a_scene_without_a_label_is_refused(tmp_path):
    with pytest.raises(DataError, match="no label names"):
        train_backbone(scenes(30, 0), tmp_path / "w", labels=Labels.of(EASY))


def test_transformers_loads_the_language_model(language_model):
    tokenizer = AutoTokenizer.from_pretrained(language_model.folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(language_model.folder, local_files_only=True)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    start = torch.tensor([[tokenizer.bos_token_id]])
    tokens = model.eval().generate(start, do_sample=False, max_new_tokens=20)
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    assert any(word in text.split() for word in COLOURS), text
    assert tokens[0, -1] == tokenizer.eos_token_id


def test_words_are_single_tokens_and_text_comes_back(language_model):
    tokenizer = AutoTokenizer.from_pretrained(language_model.folder, local_files_only=True)
    for word in (*COLOURS, *SceneConfig().kinds, "striped", "large", "left"):
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1, word
    for group in scene_captions(20, 9):
        for caption in group:
            assert tokenizer.decode(tokenizer.encode(caption)) == caption
    assert tokenizer.unk_token is None and tokenizer.decode(tokenizer.encode("ünseen")) == "ünseen"


def test_the_perplexity_is_that_of_the_saved_model(language_model):
    """Recomputed one caption at a time from the folder; and far below the vocabulary's size."""
    tokenizer = AutoTokenizer.from_pretrained(language_model.folder)
    model = AutoModelForCausalLM.from_pretrained(language_model.folder).eval()
    total, count = 0.0, 0
    for group in list(scene_captions(400, 0))[:40]:
        for caption in group:
            ids = [tokenizer.bos_token_id, *tokenizer.encode(caption), tokenizer.eos_token_id]
            tokens = torch.tensor([ids])
            with torch.no_grad():
                total += model(tokens, labels=tokens).loss.item() * (len(ids) - 1)
            count += len(ids) - 1
    assert language_model.perplexity == pytest.approx(math.exp(total / count), rel=1e-4)
    assert language_model.perplexity < 15
    assert len(set(language_model.samples)) > 1


def test_equal_seeds_give_equal_language_models(tmp_path):
    def weights(name):
        train_language_model(
            scene_captions(30, 0), tmp_path / name, steps=2, held_out=5, width=16, depth=1, heads=2
        )
        return load_file(tmp_path / name / "model.safetensors")

    first, second = weights("a"), weights("b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_too_few_captions_are_refused(tmp_path):
    with pytest.raises(DataError, match="held_out"):
        train_language_model(scene_captions(5, 0), tmp_path, held_out=5)
