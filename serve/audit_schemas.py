"""Requests and answers of the routes for audits."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

State = Literal["queued", "running", "finished", "failed", "stopped", "cancelled"]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=1000)]
MAX_QUERIES = 64
TITLE = "DeViL audit"


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _said(queries: tuple[str, ...]) -> tuple[str, ...]:
    if not all(query.strip() for query in queries):
        raise ValueError("a query is blank; give words, or leave it out")
    return _once(queries)


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"{value} is even; give an odd number")
    return value


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class AuditOptions(_Strict):
    """What is asked of each picture."""

    layers: Annotated[tuple[Name, ...], AfterValidator(_once)] = Field(
        (),
        max_length=256,
        description="Names as `GET /v1/models` lists them, and `all` for all layers at once; "
        "left out: each layer and `all`.",
        examples=[["layer4", "all"]],
    )
    queries: Annotated[tuple[Text, ...], AfterValidator(_said)] = Field(
        (),
        max_length=MAX_QUERIES,
        description="Words or phrases; each gets a saliency map per layer.",
        examples=[["dog", "a red circle"]],
    )
    dense: bool = Field(True, description="Write a caption for every location, too.")
    calibration: Literal["none", "pmi", "mean", "contrast"] = Field(
        "pmi",
        description="What is taken out of the queries' log-probabilities; `contrast` needs two.",
    )
    prompt: Text = Field("", description="Text that queries are conditioned on, not scored.")
    smoothing: Annotated[int, Field(ge=1, le=63), AfterValidator(_odd)] = Field(
        1,
        description="Odd kernel of the average pooling before a location is read; 1: none.",
    )
    max_new_tokens: int = Field(50, ge=1, le=256, description="Longest caption, in tokens.")


class AuditFields(AuditOptions):
    """What is asked, of which model."""

    title: Text = Field(TITLE, min_length=1, description="Title of the report.")
    model: Name | None = Field(
        None, description="Id as `GET /v1/models` lists it; left out: the default."
    )

    def options(self) -> AuditOptions:
        """The fields without title and model."""
        return AuditOptions(**self.model_dump(include=set(AuditOptions.model_fields)))


class AuditRequest(AuditFields):
    """An audit of pictures that the server can reach."""

    images: Annotated[str, StringConstraints(min_length=1, max_length=2000)] = Field(
        description="Absolute path or bucket address of a folder of pictures, of webdataset "
        "shards, or of one of either; under a root that the operator allows."
    )


class Progress(_Strict):
    """How many pictures are accounted for. The counts grow as parts of the work are finished."""

    pictures: int | None = Field(None, description="All that there are; null: not known yet.")
    explained: int
    failed: int = Field(description="Pictures that cannot be read or decoded; see `errors`.")
    failures: dict[str, int] = Field(description="`failed` by stage and reason.")
    ignored: int | None = Field(
        None, description="Files of the uploaded archive that are no pictures by their names."
    )


class Results(_Strict):
    """Where the files are; each can be fetched as soon as it is listed."""

    report: str | None = Field(None, description="HTML of the first pictures; null: not finished.")
    parts: list[str] = Field(description="Parquet, a row for each picture and layer.")
    errors: list[str] = Field(description="Parquet, a row for each picture that failed.")


class AuditDocument(_Strict):
    """An audit and how it goes."""

    id: str
    state: State = Field(
        description="`stopped`: not running and not at its end, for the cluster was restarted or "
        "the job stopped from outside; `resume` goes on. `cancelled`: being deleted."
    )
    created: str = Field(description="Time in UTC, ISO 8601.")
    title: str
    model: str
    version: str = Field(description="Of the model: fixed when the audit was made.")
    images: str | None = Field(None, description="As asked for; null: an uploaded archive.")
    options: AuditOptions
    progress: Progress
    results: Results | None = Field(None, description="null in the list of audits.")
    problem: str | None = Field(None, description="Why it failed.")


class AuditList(_Strict):
    """Audits, the newest first."""

    audits: list[AuditDocument]


class ListQuery(_Strict):
    """Which audits are listed."""

    limit: int = Field(20, ge=1, le=100, description="At most so many.")
    before: str | None = Field(
        None, max_length=64, description="Only audits older than the one with this id."
    )


ID = "20261128T171508123456-1a2b3c4d"
EXAMPLE: dict[str, Any] = {
    "id": ID,
    "state": "running",
    "created": "2026-11-28T17:15:08.123456+00:00",
    "title": "Photos of May",
    "model": "model",
    "version": "9f86d081884c7d65",
    "images": "/data/photos/may",
    "options": AuditOptions.model_validate({"queries": ("dog",)}).model_dump(mode="json"),
    "progress": {
        "pictures": 2000,
        "explained": 1180,
        "failed": 12,
        "failures": {"decode ImageError": 12},
        "ignored": None,
    },
    "results": {
        "report": None,
        "parts": [f"/v1/audits/{ID}/files/part-00000.parquet"],
        "errors": [f"/v1/audits/{ID}/files/errors/part-00000.parquet"],
    },
    "problem": None,
}
"""An audit that runs."""
