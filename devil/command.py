"""The command `devil`: explain a picture, audit many, list models.

    devil explain photo.jpg --query dog --layer layer4
    devil audit photos --server http://localhost:8000 --query dog --output runs/audit
    devil models --server http://localhost:8000

A picture is explained by a service or, without `--server`, by a model that is loaded here; answers
are the same. Audits and lists are a service's, which is reached by `devil.client`, with the API key
in the environment's `DEVIL_API_KEY`.
"""

import io
import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from devil.cli import exit_on_error, start_logging
from devil.client import Client, RetryConfig, ServedModel
from devil.client.audits import prepare
from devil.client.documents import ServedLayer
from devil.client.service import TIMEOUT_SECONDS
from devil.config import DecodingConfig
from devil.errors import ConfigError, DevilError, ServiceError
from devil.explanation import Explanation
from devil.report.table import ReportTable
from devil.report.text import explanation_text
from devil.storage import storage

if TYPE_CHECKING:
    from devil.model import DeViL

MODEL = "runs/demo/model"
INTERRUPTED = 130

Names = tyro.conf.UseAppendAction[tuple[str, ...]]
Points = tyro.conf.UseAppendAction[tuple[tuple[float, float], ...]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of each picture."""

    queries: Annotated[Names, tyro.conf.arg(name="query", metavar="TEXT")] = ()
    """A word or phrase to draw a heat map for; may be given several times."""
    layers: Annotated[Names, tyro.conf.arg(name="layer", metavar="NAME")] = ()
    """A layer, or `all` for all at once; may be given several times. By default each and `all`."""
    calibration: Literal["none", "pmi", "mean", "contrast"] = "pmi"
    """How the language model's own preferences are taken out of the maps."""
    prompt: str = ""
    """Text that queries are conditioned on, not scored."""
    smoothing: int = 1
    """Odd kernel of the average pooling before a location is read; 1 is none."""
    max_new_tokens: int = 50
    """Longest caption, in tokens."""
    model: Annotated[str | None, tyro.conf.arg(metavar="MODEL")] = None
    """Here: folder or hub id; by default runs/demo/model. With --server: a model's id."""
    timeout: float = TIMEOUT_SECONDS
    """Longest wait for an answer of the service, in seconds."""
    tries: int = 8
    """How often a request is sent to the service before it is given up."""

    def options(self) -> dict[str, Any]:
        """What the library and the service call alike."""
        return {
            "queries": self.queries,
            "layers": self.layers or None,
            "calibration": self.calibration,
            "prompt": self.prompt,
            "smoothing": self.smoothing,
        }


@dataclass(frozen=True, kw_only=True)
class Explain(Asked):
    """Explain one picture: what its layers say, and where each query is seen."""

    image: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PICTURE")]
    """The picture's file."""
    server: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """Ask the service at this address; without it, the model is loaded here."""
    grid: bool = False
    """Caption every location, too."""
    points: Annotated[Points, tyro.conf.arg(name="point", metavar="X Y")] = ()
    """Caption the locations at a point, given as fractions from the left and from the top."""
    words: int = 0
    """How many of the likeliest words of each captioned location."""
    json: bool = False
    """Print the explanation as JSON instead of a table."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the interactive page to this file."""
    png: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the figure to this file."""
    device: str = "cpu"
    """Where a model that is loaded here runs."""


@dataclass(frozen=True, kw_only=True)
class Audit(Asked):
    """Have a service explain many pictures; wait, and fetch the Parquet files and the report."""

    images: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PICTURES")] = None
    """Folder of pictures or archive here, which is sent."""
    server: Annotated[str, tyro.conf.arg(metavar="URL")]
    """The service's address."""
    output: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """Folder for the results."""
    on_server: bool = False
    """`images` is a folder or bucket that the service reads; nothing is sent."""
    title: str = "DeViL audit"
    """Title of the report."""
    dense: bool = True
    """Caption every location."""
    id: Annotated[str | None, tyro.conf.arg(metavar="ID")] = None
    """Instead of `images`: wait for an audit that was started before."""
    resume: bool = False
    """With --id: let it go on first, if it failed or was stopped."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the models of a service, or one that lies here, with their layers."""

    server: Annotated[str | None, tyro.conf.arg(metavar="URL")] = None
    """The service's address."""
    model: str = MODEL
    """Without --server: folder or hub id."""
    timeout: float = TIMEOUT_SECONDS
    """Longest wait for an answer of the service, in seconds."""
    tries: int = 8
    """How often a request is sent to the service before it is given up."""


Command = (
    Annotated[Explain, tyro.conf.subcommand("explain")]
    | Annotated[Audit, tyro.conf.subcommand("audit")]
    | Annotated[Models, tyro.conf.subcommand("models")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits 1 on an error of the user's, 130 when interrupted."""
    parsed = tyro.cli(
        Command,  # type: ignore[arg-type]
        prog="devil",
        description=__doc__ or "",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    start_logging(logging.WARNING)
    logging.getLogger("devil.client").setLevel(logging.INFO)  # why it waits
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack the shades
    run = {Explain: explain, Audit: audit, Models: models}[type(parsed)]
    try:
        exit_on_error(lambda: run(parsed))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def connected(options: Explain | Audit | Models) -> Client:
    """The client of a service."""
    assert options.server is not None
    retry = RetryConfig(tries=options.tries)
    return Client(options.server, timeout=options.timeout, retry=retry)


def loaded(name: str, **options: Any) -> "DeViL":
    """A model that is loaded here, without the bars of the libraries."""
    import transformers.utils.logging

    from devil.model import DeViL

    transformers.utils.logging.disable_progress_bar()
    return DeViL.from_pretrained(name, **options)


def explain(options: Explain) -> None:
    """Print an explanation, and write it to the files that were asked for."""
    explanation = explained(options)
    for path, write in ((options.html, explanation.to_html), (options.png, explanation.to_png)):
        if path is not None:
            with storage(path):
                write(path)
    if options.json:
        print(explanation.to_json())
    else:
        print(explanation_text(explanation, width=shutil.get_terminal_size((100, 24)).columns))


def explained(options: Explain) -> Explanation:
    """The explanation, from here or from the service."""
    asked = {**options.options(), "words": options.words, "points": options.points}
    if options.grid or not options.points:
        asked["dense"] = options.grid
    if options.server is not None:
        with connected(options) as client:
            return client.explain(
                options.image,
                model=options.model,
                max_new_tokens=options.max_new_tokens,
                keep=False,
                **asked,
            )
    model = loaded(options.model or MODEL, device=options.device)
    decoding = DecodingConfig(max_new_tokens=options.max_new_tokens)
    return model.explain(options.image, decoding=decoding, **asked)


def audit(options: Audit) -> None:
    """Start an audit, or find it again; wait, and fetch its results."""
    if (options.id is None) == (options.images is None):
        raise ConfigError("give either a folder or archive of pictures, or --id.")
    prepare(Path(options.output), options.id)
    with connected(options) as client:
        if options.id is not None:
            found = client.audits
            id = (found.resume if options.resume else found.status)(options.id).id
        else:
            id = started(client, options)
        again = f"devil audit --server {options.server} --output {options.output} --id {id}"
        try:
            ended = client.audits.wait(id)
            finished = ended.state == "finished"
            report = client.audits.results(id, options.output) if finished else None
        except (KeyboardInterrupt, DevilError):
            print(f"An audit goes on by itself. To wait for it again: {again}", file=sys.stderr)
            raise
        if report is None:
            raise ServiceError(
                f"audit {id} ended as {ended.state}: {ended.problem or 'no reason is given'}. "
                f"To let it go on: {again} --resume"
            )
    print(f"{ended.progress.explained} pictures explained, {ended.progress.failed} failed")
    for reason, count in ended.progress.failures.items():
        print(f"  {count} {reason}")
    print(report)


def started(client: Client, options: Audit) -> str:
    """Start an audit; returns its id, which is said at once."""
    assert options.images is not None
    remote = options.on_server or "://" in options.images
    places = {"images": options.images} if remote else {"upload": options.images}
    begun = client.audits.start(
        **places,
        **options.options(),
        model=options.model,
        title=options.title,
        dense=options.dense,
        max_new_tokens=options.max_new_tokens,
    )
    print(f"audit {begun.id} has started", file=sys.stderr)
    return begun.id


def models(options: Models) -> None:
    """Print a table of models."""
    if options.server is not None:
        with connected(options) as client:
            found, place = client.models(), options.server
    else:
        found, place = [described(options.model)], options.model
    rows = tuple(
        (m.id, m.version, m.backbone, m.language_model, ", ".join(map(_layer, m.layers)))
        for m in found
    )
    columns = ("model", "version", "backbone", "language model", "layers (rows × columns)")
    print(ReportTable(title="Models", caption=place, columns=columns, rows=rows).text())


def _layer(layer: ServedLayer) -> str:
    return f"{layer.name} {layer.grid[0]}×{layer.grid[1]}"


def described(name: str) -> ServedModel:
    """A model that lies here, as a service would describe it."""
    model = loaded(name, load_backbone=False)
    language_model = model.language_model.config.name
    return ServedModel(
        id=model.name,
        version=model.version,
        backbone=model.backbone_config.name,
        language_model=Path(language_model).name
        if Path(language_model).is_dir()
        else language_model,
        layers=tuple(
            ServedLayer(name=layer, channels=shape.channels, grid=(shape.height, shape.width))
            for layer, shape in model.shapes.items()
        ),
        scores=model.summary.get("scores") or {},
        default=True,
    )
