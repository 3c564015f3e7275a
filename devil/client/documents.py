"""What the service tells of models, audits and single pictures, as plain values.

Read leniently: what a later service adds to its documents is passed over.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from devil.client.calls import Sent, attached
from devil.client.retries import problem_error
from devil.errors import DevilError, ServiceError
from devil.explanation import Explanation

FINAL = ("finished", "failed", "stopped", "cancelled")
"""States that an audit does not leave by itself."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one picture of several."""

    index: int
    """Its place among those that were given."""
    explanation: Explanation | None = None
    error: DevilError | None = None
    """Why there is no explanation."""

    def get(self) -> Explanation:
        """The explanation.

        Raises:
            DevilError: there is none; the error says why.
        """
        if self.error is not None:
            raise self.error
        assert self.explanation is not None
        return self.explanation


@dataclass(frozen=True, kw_only=True)
class ServedLayer:
    """A layer that can be asked for."""

    name: str
    channels: int
    grid: tuple[int, int]
    """Rows and columns."""


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model that answers."""

    id: str
    version: str
    """Digest of its translator's weights."""
    backbone: str
    language_model: str
    layers: tuple[ServedLayer, ...]
    scores: Mapping[str, Any] = field(default_factory=dict)
    """As measured after its training."""
    default: bool = False
    """It answers where none is named."""


@dataclass(frozen=True, kw_only=True)
class AuditProgress:
    """Pictures of an audit by what became of them."""

    pictures: int | None = None
    """Of all; None: not known yet."""
    explained: int = 0
    failed: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)
    """By reason."""


@dataclass(frozen=True, kw_only=True)
class AuditResults:
    """Where the results of an audit lie, as URIs of the service."""

    report: str | None = None
    parts: tuple[str, ...] = ()
    """Parquet files of explanations."""
    errors: tuple[str, ...] = ()
    """Parquet files of the pictures that could not be explained."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """An audit as it stands."""

    id: str
    state: str
    """`queued`, `running`, `finished`, `failed`, `stopped` or `cancelled`."""
    progress: AuditProgress
    results: AuditResults
    created: str | None = None
    title: str | None = None
    model: str | None = None
    version: str | None = None
    images: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    """Why it failed."""

    @property
    def ended(self) -> bool:
        """It does not go on by itself."""
        return self.state in FINAL


def read_model(document: Any) -> ServedModel:
    """A model of its document; raises `ServiceError` where it is none."""
    return _read("model", document, _model)


def read_models(document: Any) -> list[ServedModel]:
    """The models of a list; raises `ServiceError` where it is none."""
    return _read("list of models", document, lambda d: [_model(m) for m in d["models"]])


def read_audit(document: Any) -> Audit:
    """An audit of its document; raises `ServiceError` where it is none."""
    return _read("audit", document, _audit)


def read_audits(document: Any) -> list[Audit]:
    """The audits of a list; raises `ServiceError` where it is none."""
    return _read("list of audits", document, lambda d: [_audit(a) for a in d["audits"]])


def read_outcome(
    line: Any, waiting: Mapping[int, Sent], order: list[int], request_id: str | None
) -> Outcome:
    """What a line of an answer says of one picture.

    Args:
        line: the object on it.
        waiting: the pictures that no line was for yet, by their places among all.
        order: these places, in the order in which the pictures were sent.
        request_id: of the request.

    Raises:
        ServiceError: it says nothing of a picture that was sent.
    """

    def read(values: Any) -> Outcome:
        index = dict(enumerate(order))[values["index"]]
        picture = waiting[index]
        if values.get("problem") is not None:
            return Outcome(index=index, error=problem_error(values["problem"], request_id))
        found = attached(values["explanation"], picture, values.get("id"))
        return Outcome(index=index, explanation=found)

    return _read("line for a picture", line, read)


def _read(what: str, document: Any, read: Any) -> Any:
    try:
        return read(document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ServiceError(
            f"the service gave no {what} that can be read ({type(error).__name__}: {error}); look "
            "at the address, and whether client and service are of one version."
        ) from error


def _model(document: Any) -> ServedModel:
    layers = tuple(
        ServedLayer(name=layer["name"], channels=layer["channels"], grid=tuple(layer["grid"]))
        for layer in document["layers"]
    )
    names = ("id", "version", "backbone", "language_model")
    return ServedModel(
        **{name: str(document[name]) for name in names},
        layers=layers,
        scores=document.get("scores") or {},
        default=bool(document.get("default")),
    )


def _audit(document: Any) -> Audit:
    progress, results = document.get("progress") or {}, document.get("results") or {}
    texts = ("created", "title", "model", "version", "images", "problem")
    return Audit(
        id=str(document["id"]),
        state=str(document["state"]),
        progress=AuditProgress(
            pictures=progress.get("pictures"),
            explained=progress.get("explained") or 0,
            failed=progress.get("failed") or 0,
            failures=progress.get("failures") or {},
        ),
        results=AuditResults(
            report=results.get("report"),
            parts=tuple(results.get("parts") or ()),
            errors=tuple(results.get("errors") or ()),
        ),
        options=document.get("options") or {},
        **{name: document.get(name) for name in texts},
    )
