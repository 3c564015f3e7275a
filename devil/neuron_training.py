"""Training a translator on features of units: batches, validation, the model (DeViL, §4.4).

The step is `devil.training.Trainer`'s. A batch differs from that of photos in one thing: a layer
that does not show a unit stays hidden, whatever token dropout draws.
"""

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from devil.backbones.base import Backbone
from devil.batches import Batch
from devil.config import BackboneConfig, TrainingConfig, TranslatorConfig, to_dict
from devil.errors import CaptionError, DataError
from devil.language_model import LanguageModel
from devil.manifest import package_versions
from devil.model import DeViL, SlotStatistics
from devil.neurons import NeuronFeatures
from devil.training import Trainer
from devil.translator import Translator, token_dropout
from devil.types import LayerShape

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExplainedBackbone:
    """What of a backbone goes into the trained model."""

    config: BackboneConfig
    digest: str
    shapes: dict[str, LayerShape]

    @classmethod
    def of(cls, backbone: Backbone, config: BackboneConfig) -> "ExplainedBackbone":
        """The facts of a loaded backbone."""
        return cls(config=config, digest=backbone.digest(), shapes=dict(backbone.shapes))


class NeuronBatches:
    """Batches of units; order, descriptions and hidden layers follow from (seed, step)."""

    def __init__(
        self, rows: NeuronFeatures, language_model: LanguageModel, config: TrainingConfig
    ) -> None:
        """Tokenise the descriptions.

        Raises:
            DataError: there are no units, one is hidden in every layer, or no description can be
                trained on.
        """
        if not rows.keys or not rows.visible.any(dim=1).all():
            raise DataError(
                f"{len(rows.keys)} units to train on, each of which some layer must show; leave "
                "the others out."
            )
        self.rows, self.config = rows, config
        self.captions = tokenised(rows.references, language_model, config)
        if not any(self.captions):
            raise DataError(
                f"every description is empty or longer than max_caption_tokens = "
                f"{config.max_caption_tokens} tokens; raise that."
            )

    def __call__(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps `start` to `stop` − 1."""
        count = len(self.rows.keys)
        size = min(self.config.batch_size, count)
        steps = count // size
        for step in range(start, stop):
            epoch, place = divmod(step, steps)
            order = np.random.default_rng([self.config.seed, 1, epoch]).permutation(count)
            yield self._batch(step, order[place * size : (place + 1) * size])

    def _batch(self, step: int, rows: np.ndarray) -> Batch:
        rng = np.random.default_rng([self.config.seed, 2, step])
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        captions = [_drawn(self.captions[row], rng) for row in rows]
        index = torch.from_numpy(rows)
        shown = self.rows.visible[index]
        return Batch(
            step=step,
            features={layer: v[index].float() for layer, v in self.rows.features.items()},
            captions=captions,
            visible=visible_after_dropout(shown, self.config.token_dropout, generator),
            global_tokens=max(1, sum(len(ids) + 1 for ids in captions if ids)),
        )


def tokenised(
    references: Sequence[Sequence[str]], language_model: LanguageModel, config: TrainingConfig
) -> list[list[list[int]]]:
    """Token ids of each unit's descriptions, without those that are too long, counted aloud."""
    result: list[list[list[int]]] = []
    problems = []
    for texts in references:
        ids = []
        for text in texts:
            try:
                ids.append(language_model.caption_ids(text, limit=config.max_caption_tokens))
            except CaptionError as error:
                problems.append(error)
        result.append(ids)
    if problems:
        logger.warning("%d descriptions left out: %s", len(problems), problems[0])
    return result


def _drawn(captions: Sequence[list[int]], rng: np.random.Generator) -> list[int]:
    """One of a unit's descriptions at random; empty, which carries no label, if it has none."""
    return captions[int(rng.integers(len(captions)))] if captions else []


def visible_after_dropout(
    shown: Bool[Tensor, "batch layer"], p: float, generator: torch.Generator
) -> Bool[Tensor, "batch layer"]:
    """Token dropout on the layers that show a unit.

    Each is hidden with probability p; a row that lost all of them is drawn again, alone.
    """
    assert shown.any(dim=1).all()
    batch, layers = shown.shape
    visible = shown & token_dropout(batch, layers, p, generator)
    while not visible.any(dim=1).all():
        lost = ~visible.any(dim=1)
        again = token_dropout(int(lost.sum()), layers, p, generator)
        visible[lost] = shown[lost] & again
    return visible


def train_on_neurons(
    train: NeuronFeatures,
    validation: NeuronFeatures,
    backbone: ExplainedBackbone,
    language_model: LanguageModel,
    translator: TranslatorConfig,
    config: TrainingConfig,
    *,
    name: str = "devil-neurons",
) -> DeViL:
    """Train a translator; keep the weights with the lowest loss on the validation units.

    Without validation units, the last weights are kept.

    Args:
        train, validation: different units; those of the test are in neither.
        backbone: whose features these are.
        language_model: frozen.
        translator: sizes; class tokens must be off.
        config: the optimisation; `captions_per_image` and `validation_rows` do not count here.
        name: of the model.

    Raises:
        DataError: there is nothing to train on, or class tokens are asked for.
    """
    if translator.class_tokens:
        raise DataError("class tokens know no locations, so no mask can pool them; switch them off")
    batches = NeuronBatches(train, language_model, config)
    torch.manual_seed(config.seed)
    channels = {layer: vectors.shape[1] for layer, vectors in train.features.items()}
    parts = Translator(translator, channels, language_model.embedding_width)
    statistics = feature_statistics(train)
    parts.standardise_by(statistics)
    trainer = Trainer(parts.to(language_model.device), language_model, config)
    losses = _run(trainer, batches, validation)
    best = min(losses, key=lambda step: losses[step]) if losses else config.steps
    return DeViL(
        translator=parts,
        language_model=language_model,
        backbone_config=backbone.config,
        backbone_digest=backbone.digest,
        shapes=backbone.shapes,
        statistics=statistics,
        summary={
            "steps": best,
            "config": to_dict(config),
            "validation_loss": {str(step): loss for step, loss in losses.items()},
            "train_units": len(train.keys),
            "validation_units": len(validation.keys),
            "scores": {},
            "versions": package_versions(),
        },
        name=name,
    )


def _run(trainer: Trainer, batches: NeuronBatches, validation: NeuronFeatures) -> dict[int, float]:
    """All steps; leaves the best weights in the translator. Step → validation loss."""
    config = trainer.config
    losses: dict[int, float] = {}
    best: tuple[float, dict[str, Tensor]] | None = None
    for batch in batches(0, config.steps):
        metrics = trainer.train_step(batch)
        step = metrics.step + 1
        if step % config.log_every == 0:
            logger.info("step %d of %d: loss %.4f", step, config.steps, metrics.loss)
        if validation.keys and (step % config.validate_every == 0 or step == config.steps):
            losses[step] = validation_loss(trainer, validation)
            logger.info("step %d: validation loss %.4f", step, losses[step])
            if best is None or losses[step] < best[0]:
                best = losses[step], copy.deepcopy(trainer.translator.state_dict())
    if best is not None:
        trainer.translator.load_state_dict(best[1])
    return losses


@torch.inference_mode()
def validation_loss(trainer: Trainer, rows: NeuronFeatures, *, batch_size: int = 64) -> float:
    """Mean cross-entropy of all descriptions, all layers that show the unit, in nats per token.

    Raises:
        DataError: no description can be scored.
    """
    captions = tokenised(rows.references, trainer.lm, trainer.config)
    tokens = sum(len(ids) + 1 for texts in captions for ids in texts)
    if not tokens:
        raise DataError("no description of the validation units can be scored; all are too long.")
    total = 0.0
    for start in range(0, len(rows.keys), batch_size):
        span = slice(start, start + batch_size)
        most = max(1, *map(len, captions[span]), 1)
        batch = Batch(
            step=0,
            features={layer: v[span].float() for layer, v in rows.features.items()},
            captions=[ids for texts in captions[span] for ids in _filled(texts, most)],
            visible=rows.visible[span],
            global_tokens=tokens,
        )
        total += float(trainer.loss(batch))
    assert math.isfinite(total)
    return total


def _filled(captions: list[list[int]], count: int) -> list[list[int]]:
    """`count` captions; those that are not there are empty, and carry no label."""
    return captions + [[] for _ in range(count - len(captions))]


def feature_statistics(rows: NeuronFeatures) -> dict[str, SlotStatistics]:
    """Mean and deviation of each layer's features over the units that it shows."""
    result = {}
    for index, (layer, vectors) in enumerate(rows.features.items()):
        shown = vectors[rows.visible[:, index]].double()
        if not len(shown):
            raise DataError(f"{layer} shows no unit: every mask is empty on its grid; drop it.")
        std = shown.std(dim=0) if len(shown) > 1 else torch.ones(shown.shape[1])
        result[layer] = SlotStatistics(shown.mean(dim=0).float(), std.float())
    return result


@torch.inference_mode()
def neuron_prefix(
    model: DeViL, rows: NeuronFeatures, *, batch_size: int = 1024
) -> Float[Tensor, "unit prefix hidden"]:
    """Prefix embeddings of units from all layers that show them."""
    parts = []
    for start in range(0, max(1, len(rows.keys)), batch_size):
        span = slice(start, start + batch_size)
        features = {layer: v[span].float().to(model.device) for layer, v in rows.features.items()}
        parts.append(model.translator(features, rows.visible[span].to(model.device)))
    return torch.cat(parts)
