"""Descriptions of a network's units (MILANNOTATIONS): features, training, scores beside controls.

    python pipelines/evaluate.py neurons milannotations --experiment alexnet-to-resnet152 \\
        --backbone.name torchvision:resnet101/IMAGENET1K_V2 \\
        --language-model.name facebook/opt-125m --bert.model roberta-large --output runs/neurons

The data set lies as published, `<root>/<model>/<dataset>` (see `devil.data.milan`). Features of the
units are kept in `features/`, and a run that is started again goes on; the trained model is in
`model/`. With `--text-only` no images are needed: what constants, copied descriptions and people
score tells how a model's score on these units is to be read.

Writes `neurons.json` and `captions.json`, and prints the tables.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from devil.backbones import load_backbone
from devil.config import (
    BackboneConfig,
    DecodingConfig,
    LanguageModelConfig,
    TrainingConfig,
    TranslatorConfig,
    to_dict,
)
from devil.data.milan import Neuron, open_exemplars, read_source
from devil.errors import ConfigError, DataError
from devil.evaluation.bert_scores import BertScoreConfig
from devil.evaluation.captioning import EVERY, check_metrics
from devil.evaluation.neuron_scores import (
    BY_UNIT,
    HUMAN,
    HUMAN_NEAREST,
    NeuronScores,
    best_constants,
    score_neurons,
)
from devil.evaluation.neurons import (
    MAX_NEW_TOKENS,
    MODEL,
    NEAREST_UNIT,
    Experiment,
    NeuronSplit,
    copied_captions,
    model_captions,
    named_experiment,
    references_of,
    split_neurons,
)
from devil.evaluation.tool_versions import tool_versions
from devil.files import write_json
from devil.language_model import load_language_model
from devil.neuron_training import ExplainedBackbone, train_on_neurons
from devil.neurons import NeuronFeatures, neuron_features
from devil.report.table import ReportTable
from pipelines.cli import absolute
from pipelines.pool import PoolConfig, over_pool, own_device
from pipelines.runs import claim_run

logger = logging.getLogger("neurons")

COLUMNS = {
    "BERTScore": "bert_score",
    "CIDEr": "cider",
    "BLEU-4": "bleu_4",
    "ROUGE-L": "rouge_l",
    "METEOR": "meteor",
    "SPICE": "spice",
}


@dataclass(frozen=True, kw_only=True)
class NeuronsOptions:
    """Options of an experiment on units."""

    root: tyro.conf.Positional[str]
    """Folder of the data set."""
    experiment: str
    """Name of one of the 13 experiments, or SOURCE for one within `<model>/<dataset>`."""
    output: str
    """Folder of features, model and results."""
    text_only: bool = False
    """Score constants, copied descriptions and people alone; needs no images, and no models."""
    backbone: BackboneConfig = field(
        default_factory=lambda: BackboneConfig(name="torchvision:resnet101/IMAGENET1K_V2")
    )
    """The explained model; it may be another than the networks whose units are described."""
    language_model: LanguageModelConfig = field(
        default_factory=lambda: LanguageModelConfig(name="facebook/opt-125m")
    )
    translator: TranslatorConfig = field(default_factory=TranslatorConfig)
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=20_000, warmup_steps=500, validate_every=500, max_caption_tokens=40
        )
    )
    """The weights with the lowest validation loss are kept."""
    decoding: DecodingConfig = field(
        default_factory=lambda: DecodingConfig(max_new_tokens=MAX_NEW_TOKENS)
    )
    metrics: tuple[str, ...] = EVERY
    """Caption metrics; what cannot run here is named with its reason."""
    bert: BertScoreConfig = field(
        default_factory=lambda: BertScoreConfig(idf=True, rescale_with_baseline=True, lower=True)
    )
    test_share: float = 0.1
    """Share of a source's units that an experiment within it tests."""
    validation_share: float = 0.1
    """Share of the training units that chooses the weights."""
    chunk: int = 64
    """Units that a worker takes at a time."""
    batch_size: int = 64
    """Images per pass of the backbone."""
    pool: PoolConfig = field(default_factory=PoolConfig)
    seed: int = 0
    """Of the split, the shuffling, and the random descriptions; training has its own."""

    def __post_init__(self) -> None:
        check_metrics(self.metrics)
        for name in ("test_share", "validation_share"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a share between 0 and 1.")
        for name in ("chunk", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; at least 1 is needed.")


class NeuronWorker:
    """One actor's backbone."""

    def __init__(self, root: str, backbone: BackboneConfig, batch_size: int) -> None:
        device = own_device()
        self.backbone = load_backbone(backbone, device=device)
        self.root, self.batch_size = root, batch_size

    def __call__(self, chunk: str) -> dict[str, Any]:
        """Features of some units of one layer, given as JSON, into the file that it names."""
        path, source, layer, units = json.loads(chunk)
        neurons = [
            Neuron(source=source, layer=layer, unit=u, descriptions=tuple(d)) for u, d in units
        ]
        exemplars = open_exemplars(self.root, source, layer)
        rows = neuron_features(self.backbone, exemplars, neurons, batch_size=self.batch_size)
        temporary = Path(path).with_suffix(".tmp")
        rows.save(temporary)
        temporary.replace(path)
        return {"units": len(neurons)}


def neurons(options: NeuronsOptions) -> dict[str, Any]:
    """Run one experiment; returns what `neurons.json` holds.

    Raises:
        ConfigError: the experiment is unknown, or the output folder belongs to a run with other
            options.
        DataError: the data set is incomplete, or a metric is unknown.
    """
    experiment = _experiment(options)
    sources = dict.fromkeys((*experiment.train, *experiment.test))
    units = {s: read_source(options.root, s, arrays=not options.text_only) for s in sources}
    split = split_neurons(
        experiment,
        units,
        seed=options.seed,
        test_share=options.test_share,
        validation_share=options.validation_share,
    )
    logger.info("units: %s", {name: len(part) for name, part in split._asdict().items()})
    train = [list(neuron.descriptions) for neuron in split.train]
    references = references_of(split.test)
    captions: dict[str, dict[str, str]] = {}
    described: dict[str, Any] = {}
    if not options.text_only:
        captions, described = _model_captions(options, split)
        references = {key: references[key] for key in captions[MODEL]}
    by_unit = [m for m in BY_UNIT if m in options.metrics]
    constants = best_constants(train, metrics=by_unit, bert=options.bert, seed=options.seed)
    captions |= {name: dict.fromkeys(references, text) for name, text in constants.items()}
    captions |= copied_captions(list(references), train, seed=options.seed)
    write_json(Path(options.output) / "captions.json", captions)
    scores = score_neurons(captions, references, train, metrics=options.metrics, bert=options.bert)
    results = {
        "experiment": options.experiment,
        "train": list(experiment.train),
        "test": list(experiment.test),
        "root": options.root,
        **described,
        "units": {name: len(part) for name, part in split._asdict().items()},
        "test_units_hash": _hash([neuron.key for neuron in split.test]),
        "test_units_hidden": len(split.test) - len(references),
        "constants": constants,
        **scores.record(),
        "settings": {
            "test_share": options.test_share,
            "validation_share": options.validation_share,
            "max_new_tokens": options.decoding.max_new_tokens,
            "bert": asdict(options.bert),
        },
        "seed": options.seed,
        "versions": tool_versions(),
    }
    tables = neuron_tables(options.experiment, scores)
    results["tables"] = [table.record() for table in tables]
    write_json(Path(options.output) / "neurons.json", results)
    for table in tables:
        print("\n" + table.text())
    for metric, reason in next(iter(scores.overall.values())).missing.items():
        print(f"\n{metric} is missing: {reason}")
    print(f"\nwritten: {options.output}/neurons.json, captions.json")
    return results


def _experiment(options: NeuronsOptions) -> Experiment:
    """By name, or within one source."""
    if "/" in options.experiment:
        return Experiment((options.experiment,), (options.experiment,))
    return named_experiment(options.experiment)


def _model_captions(
    options: NeuronsOptions, split: NeuronSplit
) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    """Extract, train and describe; captions by source, and what is recorded of the model."""
    backbone = load_backbone(options.backbone)
    weights = options.backbone.weights
    if weights not in ("pretrained", "random"):  # workers have working folders of their own
        weights = absolute(weights)
    config = replace(options.backbone, layers=backbone.layers, weights=weights)
    explained = ExplainedBackbone.of(backbone, config)
    del backbone
    every = extract_neurons([n for part in split for n in part], options, explained).shown()
    rows = {name: every.select([n.key for n in part]) for name, part in split._asdict().items()}
    if not all(part.keys for part in rows.values()):
        raise DataError("training, validation or test has no unit with a mask; see the data set.")
    device = own_device()
    lm = load_language_model(options.language_model, device=device)
    model = train_on_neurons(
        rows["train"], rows["validation"], explained, lm, options.translator, options.training
    )
    captions = model_captions(
        model, rows["test"], rows["train"], decoding=options.decoding, seed=options.seed
    )
    model.save_pretrained(Path(options.output) / "model")
    return captions, {
        "model": {"name": model.name, "version": model.version},
        "backbone": {**to_dict(options.backbone), "digest": explained.digest},
        "language_model": to_dict(options.language_model),
        "translator": to_dict(options.translator),
        "training": model.summary,
    }


def extract_neurons(
    units: Sequence[Neuron], options: NeuronsOptions, explained: ExplainedBackbone
) -> NeuronFeatures:
    """Features of units over the pool; chunks that are there already are read."""
    folder = Path(absolute(options.output)) / "features"
    claim_run(
        folder / "features.json",
        {
            "root": absolute(options.root),
            "backbone": explained.digest,
            "layers": {layer: list(shape) for layer, shape in explained.shapes.items()},
        },
    )
    work = _chunks(units, folder, options.chunk)
    missing = [chunk for path, chunk in work.items() if not path.is_file()]
    arguments = {
        "root": absolute(options.root),
        "backbone": explained.config,
        "batch_size": options.batch_size,
    }
    if missing:
        with tqdm(total=len(units), unit="unit", desc="neurons", mininterval=1) as bar:
            bar.update(len(units) - sum(len(json.loads(chunk)[3]) for chunk in missing))
            for record in over_pool(missing, NeuronWorker, arguments, options.pool):
                bar.update(int(record["units"]))
    return NeuronFeatures.concatenate([NeuronFeatures.load(path) for path in work])


def _chunks(units: Sequence[Neuron], folder: Path, size: int) -> dict[Path, str]:
    """File of each chunk of units of one layer → the chunk as JSON (Ray's columns hold no tuples).

    A file's name tells its units, so that another split finds its own.
    """
    layers: dict[tuple[str, str], list[Neuron]] = {}
    for unit in sorted(units, key=lambda n: (n.source, n.layer, n.unit)):
        layers.setdefault((unit.source, unit.layer), []).append(unit)
    result = {}
    for (source, layer), members in layers.items():
        for start in range(0, len(members), size):
            part = members[start : start + size]
            content = [[n.unit, list(n.descriptions)] for n in part]
            name = f"{source}/{layer}".replace("/", "-")
            path = folder / f"{name}-{_hash([source, layer, content])}.safetensors"
            result[path] = json.dumps([str(path), source, layer, content])
    return result


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def neuron_tables(experiment: str, scores: NeuronScores) -> list[ReportTable]:
    """Overall, against one reference less, and by layer of the described network."""
    first = next(iter(scores.overall.values()))
    columns = {head: name for head, name in COLUMNS.items() if name in first.scores}
    overall = tuple(
        (_label(name), *(found.scores.get(metric) for metric in columns.values()))
        for name, found in scores.overall.items()
    )
    wanted = {head: name for head, name in COLUMNS.items() if name in BY_UNIT and head in columns}
    left_out = tuple(
        (_label(name), *(found.get(metric) for metric in wanted.values()))
        for name, found in scores.left_out.items()
    )
    metric = "bert_score" if "bert_score" in first.scores else "cider"
    names = list(scores.overall)
    by_layer = tuple(
        (layer, scores.units[layer], *(found[name].get(metric) for name in names))
        for layer, found in scores.layers.items()
    )
    return [
        ReportTable(
            title="Descriptions of units",
            caption=f"{experiment}, {first.rows} units, all their descriptions",
            columns=("captions", *columns),
            rows=overall,
        ),
        ReportTable(
            title="Beside people",
            caption=f"each description against its unit's others, {scores.left_out_rows} rows",
            columns=("captions", *wanted),
            rows=left_out,
        ),
        ReportTable(
            title="By layer of the described network",
            caption="CIDEr" if metric == "cider" else "BERTScore",
            columns=("layer", "units", *map(_label, names)),
            rows=by_layer,
        ),
    ]


def _label(name: str) -> str:
    if name in (MODEL, HUMAN):
        return name
    kind = "bound" if name == HUMAN_NEAREST else "rival" if name == NEAREST_UNIT else "control"
    return f"{kind}: {name.replace('_', ' ')}"
