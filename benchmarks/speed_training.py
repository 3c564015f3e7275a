"""The training step on stored features, and the extraction of features, as cases to measure."""

import copy
import io
import itertools
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.baselines import batched_training_loss, plain_training_loss
from benchmarks.cases import Case, Comparison
from benchmarks.roofline import Phase, vision
from benchmarks.speed_models import Explained, caption_lengths
from benchmarks.timing import Side
from devil.batches import Batch
from devil.config import BackboneConfig, ExtractionConfig, TrainingConfig
from devil.cost import head_weights, matrix_weights, training_flops
from devil.data.source import open_source
from devil.extraction import Extractor
from devil.features import FeatureStore, tensor_column
from devil.images import open_image
from devil.language_model import LanguageModel
from devil.manifest import Manifest
from devil.pooling import dropout_masks, row_generator
from devil.training import Trainer
from devil.translator import Translator, token_dropout

BATCHES = 8
"""Different batches, taken in turn."""


class Step(NamedTuple):
    """What a training step is compared by."""

    loss: float
    gradient_norm: float


def training_batches(
    translator: Translator, lm: LanguageModel, size: int, each: int, *, seed: int = 0
) -> list[Batch]:
    """Random features, captions as long as CC3M's, and layers that token dropout leaves."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = lm.model.get_input_embeddings().num_embeddings
    batches = []
    for number in range(BATCHES):
        lengths = caption_lengths(size * each, seed=seed + number)
        captions = [torch.randint(3, vocabulary, (n,), generator=generator) for n in lengths]
        batches.append(
            Batch(
                step=0,
                features={
                    slot: torch.randn(
                        size, len(translator.get_buffer(f"feature_mean_{i}")), generator=generator
                    )
                    for i, slot in enumerate(translator.slots)
                },
                captions=[ids.tolist() for ids in captions],
                visible=token_dropout(size, len(translator.slots), 0.5, generator),
                global_tokens=sum(lengths) + len(lengths),
            )
        )
    return batches


class PlainTraining:
    """A step with PyTorch's default AdamW and a loss of the baselines."""

    def __init__(self, translator: Translator, lm: LanguageModel, loss: Callable[..., Tensor]):
        self.translator, self.lm, self.loss = translator, lm, loss
        self.optimiser = torch.optim.AdamW(translator.parameters(), lr=1e-4, weight_decay=1e-6)
        self.device = translator.prefix_tokens.device

    def step(self, batch: Batch) -> Step:
        """Loss, gradient, clipping, update."""
        features = {slot: values.to(self.device) for slot, values in batch.features.items()}
        visible = batch.visible.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss(self.translator, self.lm, features, visible, batch.captions)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.translator.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return Step(float(loss.detach()), float(norm))


class EngineTraining:
    """The trainer's step."""

    def __init__(
        self, translator: Translator, lm: LanguageModel, dtype: str, *, compile: bool = False
    ) -> None:
        config = TrainingConfig(
            precision="float32" if dtype == "float32" else "bfloat16",
            compile=compile,
            warmup_steps=0,
            learning_rate=1e-4,
            max_caption_tokens=60,
        )
        self.trainer = Trainer(translator, lm, config)

    def step(self, batch: Batch) -> Step:
        """The same as `PlainTraining.step`."""
        found = self.trainer.train_step(batch._replace(step=self.trainer.step))
        return Step(found.loss, found.gradient_norm)


def training_case(
    explained: Explained,
    dtypes: Sequence[str],
    *,
    size: int = 64,
    each: int = 1,
    compile: bool = False,
) -> Case:
    """One optimiser step on stored features; every side trains its own translator.

    With `compile` the engine's last number format is measured compiled, too.
    """
    translator, lm = explained.model.translator, explained.model.language_model
    batches = training_batches(translator, lm, size, each)
    turns: dict[str, Iterator[Batch]] = {}

    def side(name: str, work: PlainTraining | EngineTraining, dtype: str) -> Side:
        turns[name] = itertools.cycle(batches)
        return Side(run=lambda: work.step(next(turns[name])), dtype=dtype)

    def compare(results: Mapping[str, Any], dtype: str) -> Comparison:
        allowed = 1e-4 if dtype == "float32" else 5e-2
        apart = max(
            abs(found - expected) / abs(expected)
            for name in ("plain", "batched")
            for found, expected in zip(results[dtype], results[name], strict=True)
        )
        return Comparison(apart <= allowed, {"relative_difference": apart, "allowed": allowed})

    def phases(result: Step) -> list[Phase]:
        flops = [training_flops(translator, lm, b.visible, b.captions) for b in batches]
        trained = translator.parameter_count()
        frozen = matrix_weights(lm.model.base_model) + head_weights(lm)
        # Forward and backward read the weights; AdamW reads four numbers of each and writes three.
        return [Phase(sum(flops) / len(flops), 2 * (trained + frozen)), Phase(0, 0, 8 * trained)]

    baseline = "bfloat16" if explained.images.is_cuda else "float32"
    plain = PlainTraining(copy.deepcopy(translator), lm, plain_training_loss)
    batched = PlainTraining(copy.deepcopy(translator), lm, batched_training_loss)
    engines = {d: EngineTraining(copy.deepcopy(translator), lm, d) for d in dtypes}
    others = {}
    if compile:
        quick = EngineTraining(copy.deepcopy(translator), lm, dtypes[-1], compile=True)
        others["compiled"] = side("compiled", quick, dtypes[-1])
    return Case(
        task="train",
        setting=f"{size} images, {len(translator.layers)} layers, {each} captions each",
        model=explained.name,
        ours={d: side(d, engine, d) for d, engine in engines.items()},
        plain=side("plain", plain, baseline),
        batched=side("batched", batched, baseline),
        compare=compare,
        phases=phases,
        others=others,
    )


def write_photo_shard(folder: Path, count: int, *, side: int = 400, seed: int = 0) -> str:
    """A webdataset shard of JPEGs of smooth random colours; returns its path."""
    rng = np.random.default_rng(seed)
    path = folder / "00000.tar"
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            grain = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            photo = io.BytesIO()
            grain.resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(photo, "JPEG")
            members = {"jpg": photo.getvalue(), "txt": b"a photo of something"}
            members["json"] = json.dumps({"key": f"{index:05d}"}).encode()
            for suffix, content in members.items():
                entry = tarfile.TarInfo(f"{index:05d}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return str(path)


def _photos(shard: str) -> dict[str, bytes]:
    with tarfile.open(shard) as tar:
        names = [name for name in tar.getnames() if name.endswith(".jpg")]
        return {name.removesuffix(".jpg"): tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]


class PlainExtraction:
    """Decode, transform, backbone, mean and draws, for `batch` photos at a time, in one thread."""

    def __init__(self, explained: Explained, config: ExtractionConfig, batch: int) -> None:
        assert explained.model.backbone is not None
        self.backbone, self.config, self.batch = explained.model.backbone, config, batch

    @torch.no_grad()
    def __call__(self, photos: Mapping[str, bytes]) -> dict[str, np.ndarray]:
        """(photo, 1 + draws, channels) for each layer."""
        found: dict[str, list[np.ndarray]] = {layer: [] for layer in self.backbone.layers}
        keys = list(photos)
        for start in range(0, len(keys), self.batch):
            part = keys[start : start + self.batch]
            tensors = [self.backbone.transform(open_image(photos[key])) for key in part]
            features = self.backbone(torch.stack(tensors).to(self.backbone.device))
            for layer, rows in found.items():
                for key, feature_map in zip(part, features[layer].map.float(), strict=True):
                    rows.append(self._pooled(layer, key, feature_map).cpu().numpy())
        return {layer: np.stack(rows) for layer, rows in found.items()}

    def _pooled(self, layer: str, key: str, feature_map: Tensor) -> Tensor:
        vectors = feature_map.flatten(1)
        generator = row_generator(self.config.seed, f"{layer}|{key}")
        masks = dropout_masks(
            self.config.draws, vectors.shape[1], self.config.feature_dropout, generator
        )
        kept = [vectors[:, mask.to(vectors.device)].mean(dim=1) for mask in masks]
        return torch.stack([vectors.mean(dim=1), *kept])


def extraction_case(
    explained: Explained, config: BackboneConfig, folder: Path, *, photos: int, plain_photos: int
) -> Case:
    """A shard of photos into the feature store; the baselines leave out the writing."""
    extraction = ExtractionConfig()
    backbone = explained.model.backbone
    assert backbone is not None
    shard = write_photo_shard(folder, photos)
    source = open_source(str(shard))
    (whole,) = source.shards()
    encoded = _photos(shard)
    first = dict(list(encoded.items())[:plain_photos])
    dtype = "bfloat16" if explained.images.is_cuda else "float32"
    number = itertools.count()

    def ours() -> FeatureStore:
        manifest = Manifest.of(backbone, config, extraction)
        store = FeatureStore.create(str(folder / f"store{next(number)}"), manifest)
        Extractor(backbone, source, store)(whole)
        return store

    def compare(results: Mapping[str, Any], dtype: str) -> Comparison:
        store: FeatureStore = results[dtype]
        columns = [f"feature.{layer}" for layer in backbone.layers]
        table = store.read(store.parts()[0], columns)
        apart = 0.0
        for layer, column in zip(backbone.layers, columns, strict=True):
            found = tensor_column(table, column).astype(np.float32)
            for name in ("plain", "batched"):
                expected = results[name][layer]
                scale = np.abs(expected).max()
                apart = max(apart, float(np.abs(found[: len(expected)] - expected).max() / scale))
        allowed = 2e-3 if dtype == "float32" else 5e-2  # the store holds float16
        return Comparison(apart <= allowed, {"relative_difference": apart, "allowed": allowed})

    def phases(result: FeatureStore) -> list[Phase]:
        one = vision(backbone, explained.images)
        return [Phase(one.flops * photos, one.weights)]

    return Case(
        task="extract",
        setting=f"{photos} photos, {extraction.draws} draws",
        model=explained.name.split(" + ")[0],
        ours={dtype: Side(run=ours, dtype=dtype)},
        plain=Side(
            run=lambda: PlainExtraction(explained, extraction, 1)(first),
            share=plain_photos / photos,
            dtype="float32",
        ),
        batched=Side(
            run=lambda: PlainExtraction(explained, extraction, 64)(encoded), dtype="float32"
        ),
        compare=compare,
        phases=phases,
    )
