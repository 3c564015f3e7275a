"""Requests and answers of the HTTP API. Answers' models describe; nothing is converted by them:
an explanation leaves as `devil.explanation.Explanation.to_json` wrote it.
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from devil.question import Question


def _once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return names and tuple(dict.fromkeys(names))


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"{value} is even; give an odd number")
    return value


def _pair(value: Any) -> Any:
    """A point of a form: `0.5,0.25`."""
    return tuple(value.split(",")) if isinstance(value, str) else value


Name = Annotated[str, StringConstraints(max_length=200)]
Text = Annotated[str, StringConstraints(max_length=1000)]
Queries = tuple[Text, ...]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Point = Annotated[tuple[Fraction, Fraction], BeforeValidator(_pair)]


class _Asked(BaseModel):
    """What all requests have."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: Name | None = Field(
        None, description="Id of a model, as `GET /v1/models` lists them; left out: the first."
    )
    layers: Annotated[tuple[Name, ...] | None, AfterValidator(_once)] = Field(
        None,
        max_length=256,
        description="Names as `GET /v1/models` lists them, and `all` for all layers at once; "
        "left out: each layer and `all`.",
        examples=[["all"]],
    )
    calibration: Literal["none", "pmi", "mean", "contrast"] = Field(
        "pmi",
        description="What is taken out of the queries' log-probabilities: `pmi`: the score for "
        "the layer's mean feature; `mean`: per token; `contrast`: the other queries. Words know "
        "`pmi` alone, and are told as they are otherwise.",
    )
    prompt: Text = Field("", description="Text that queries and words are conditioned on.")
    smoothing: Annotated[int, Field(ge=1, le=63), AfterValidator(_odd)] = Field(
        1,
        description="Odd kernel of the average pooling before a location is read; 1: none.",
    )
    keep: bool = Field(
        True, description="Keep the explanation for `GET /v1/explanations/{id}`, with its picture."
    )


class CaptionOptions(_Asked):
    """What is asked of `POST /v1/caption`."""

    dense: bool | None = Field(
        None, description="Tell of every location; left out: unless points are given."
    )
    points: tuple[Point, ...] = Field(
        (),
        max_length=1000,
        description="Tell of the locations that cover these points: [x, y] as fractions of the "
        "picture's width and height from its upper left corner; in a form `0.5,0.25`, repeated.",
        examples=[[[0.5, 0.25]]],
    )
    words: int = Field(0, ge=0, le=50, description="Likeliest words told of each such location.")
    max_new_tokens: int = Field(50, ge=1, le=256, description="Longest caption, in tokens.")

    def question(self) -> Question:
        """What the library is asked."""
        return Question(
            layers=self.layers,
            dense=self.dense,
            points=self.points,
            words=self.words,
            calibration=self.calibration,
            prompt=self.prompt,
            smoothing=self.smoothing,
        )


class ExplainOptions(CaptionOptions):
    """What is asked of `POST /v1/explain`."""

    queries: Queries = Field(
        (),
        max_length=64,
        description="Words or phrases; each gets a saliency map per layer.",
        examples=[["a red circle", "dog"]],
    )

    def question(self) -> Question:
        """What the library is asked."""
        return replace(super().question(), queries=self.queries)


class SaliencyOptions(_Asked):
    """What is asked of `POST /v1/saliency`: maps without captions."""

    queries: Queries = Field(
        min_length=1,
        max_length=64,
        description="Words or phrases; each gets a saliency map per layer.",
        examples=[["a red circle", "dog"]],
    )
    max_new_tokens: ClassVar[int] = 1

    def question(self) -> Question:
        """What the library is asked."""
        return Question(
            layers=self.layers,
            queries=self.queries,
            captions=False,
            dense=False,
            calibration=self.calibration,
            prompt=self.prompt,
            smoothing=self.smoothing,
        )


Options = CaptionOptions | ExplainOptions | SaliencyOptions
Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


class _Pictures(BaseModel):
    """Pictures in JSON: one, or several."""

    image: Base64 | None = Field(
        None, description="A JPEG, PNG, WebP, ... file in base64, without line breaks."
    )
    images: tuple[Base64, ...] | None = Field(
        None, min_length=1, description="Several of them; the answer is NDJSON."
    )


class ExplainRequest(ExplainOptions, _Pictures):
    """An explanation asked for in JSON."""


class CaptionRequest(CaptionOptions, _Pictures):
    """Captions asked for in JSON."""


class SaliencyRequest(SaliencyOptions, _Pictures):
    """Maps asked for in JSON."""


class Refusal(NamedTuple):
    """Why a request gets no explanation; crosses from the explainer to the ingress."""

    status: int
    detail: str
    field: str | None = None
    retry_after: int | None = None
    """Seconds to wait; None: where the status asks for it, a default."""


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class CaptionDocument(_Document):
    """A caption and how sure the language model is of it."""

    text: str
    log_probability: float = Field(description="Sum over the tokens, in nats.")
    tokens: int = Field(description="Number of tokens, the end of text included.")


class WordDocument(_Document):
    """A word at a location."""

    word: str
    score: float = Field(
        description="In nats; with `pmi` how far it is above that for the layer's mean feature."
    )


class LayerDocument(_Document):
    """One layer's captions and saliency."""

    layer: str
    grid: tuple[int, int] = Field(description="Rows and columns.")
    caption: CaptionDocument | None = Field(description="Of the pooled layer.")
    captions: list[list[CaptionDocument | None]] | None = Field(
        description="One per location, [rows][columns]; null where none was asked for."
    )
    saliency: dict[str, list[list[float]]] = Field(description="Query → [rows][columns], in nats.")
    words: list[list[list[WordDocument] | None]] | None = Field(
        description="Likeliest words per location, best first; null where none were asked for."
    )


class ExplanationDocument(_Document):
    """What each layer holds at each location, in words."""

    format_version: Literal[2]
    source: str | None
    image_size: tuple[int, int] = Field(description="Width and height, in pixels.")
    region: tuple[float, float, float, float] = Field(
        description="Left, top, right, bottom of the part that the grids cover, in pixels."
    )
    model: str
    version: str
    calibration: str
    queries: list[str]
    layers: list[LayerDocument]


class LayerDescription(_Document):
    """A layer that can be asked for."""

    name: str
    channels: int
    grid: tuple[int, int] = Field(description="Rows and columns.")


class ModelDescription(_Document):
    """A model that answers."""

    id: str
    version: str = Field(description="Digest of the translator's weights.")
    backbone: str
    language_model: str
    layers: list[LayerDescription]
    scores: dict[str, Any] = Field(description="As measured after its training.")
    default: bool = Field(description="Whether it answers requests that name no model.")


class ModelList(_Document):
    """The models that answer."""

    models: list[ModelDescription]


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = Field(None, description="Which field of the request is wrong, if one is.")


class Line(_Document):
    """One line of an answer for several pictures; one of `explanation` and `problem` is there."""

    index: int = Field(description="Which of the pictures, from 0.")
    id: str | None = Field(None, description="Of the kept explanation.")
    explanation: ExplanationDocument | None = None
    problem: Problem | None = None


class Health(_Document):
    """A blank picture was explained just now (`ready`), or must wait for others' (`busy`)."""

    status: Literal["ready", "busy"]
