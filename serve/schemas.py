"""Requests and answers of the HTTP API. Answers' models describe; nothing is converted by them:
an explanation leaves as `devil.explanation.Explanation.to_json` wrote it.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


def _once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return names and tuple(dict.fromkeys(names))


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"{value} is even; give an odd number")
    return value


Name = Annotated[str, StringConstraints(max_length=200)]
Text = Annotated[str, StringConstraints(max_length=1000)]


class Options(BaseModel):
    """What is asked about a picture. Equal options are explained together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: Annotated[tuple[Name, ...] | None, AfterValidator(_once)] = Field(
        None,
        max_length=256,
        description="Names as `GET /v1/models` lists them, and `all` for all layers at once; "
        "left out: each layer and `all`.",
        examples=[["all"]],
    )
    queries: tuple[Text, ...] = Field(
        (),
        max_length=64,
        description="Words or phrases; each gets a saliency map per layer.",
        examples=[["a red circle", "dog"]],
    )
    dense: bool = Field(True, description="Write a caption for every location, too.")
    calibration: Literal["none", "pmi", "mean", "contrast"] = Field(
        "pmi",
        description="What is taken out of the queries' log-probabilities: `pmi`: the score for "
        "the layer's mean feature; `mean`: per token; `contrast`: the other queries.",
    )
    prompt: Text = Field("", description="Text that queries are conditioned on, not scored.")
    smoothing: Annotated[int, Field(ge=1, le=63), AfterValidator(_odd)] = Field(
        1, description="Odd kernel of the average pooling of maps; 1: none."
    )
    max_new_tokens: int = Field(50, ge=1, le=256, description="Longest caption, in tokens.")


class ExplainRequest(Options):
    """An explanation asked for in JSON."""

    image: str = Field(
        description="A JPEG, PNG, WebP, ... file in base64, without line breaks.",
        json_schema_extra={"contentEncoding": "base64"},
    )

    def options(self) -> Options:
        """The request without its picture."""
        return Options(**self.model_dump(exclude={"image"}))


class Refusal(NamedTuple):
    """Why a request gets no explanation; crosses from the explainer to the ingress."""

    status: int
    detail: str
    field: str | None = None


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class CaptionDocument(_Document):
    """A caption and how sure the language model is of it."""

    text: str
    log_probability: float = Field(description="Sum over the tokens, in nats.")
    tokens: int = Field(description="Number of tokens, the end of text included.")


class LayerDocument(_Document):
    """One layer's captions and saliency."""

    layer: str
    grid: tuple[int, int] = Field(description="Rows and columns.")
    caption: CaptionDocument | None = Field(description="Of the pooled layer.")
    captions: list[list[CaptionDocument]] | None = Field(
        description="One per location, [rows][columns]; null unless `dense`."
    )
    saliency: dict[str, list[list[float]]] = Field(description="Query → [rows][columns], in nats.")


class ExplanationDocument(_Document):
    """What each layer holds at each location, in words."""

    format_version: Literal[1]
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


class ModelList(_Document):
    """The models that answer."""

    models: list[ModelDescription]


class Health(_Document):
    """The explainer can answer: it has just done so (`ready`), or its queue is full (`busy`)."""

    status: Literal["ready", "busy"]


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    field: str | None = Field(None, description="Which field of the request is wrong, if one is.")
