"""What is asked about a picture, and the fields of a form or of JSON that say so.

Names and defaults are the service's, which checks the values; they mean what they mean in
`devil.DeViL.explain`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypedDict

from devil.errors import DataError, LayerError


class ReadingOptions(TypedDict, total=False):
    """What every request can say."""

    model: str | None
    """Id as `models()` lists them; None: the service's first."""
    layers: Sequence[str] | str | None
    """Names, and `all` for all at once; None: each layer and `all`."""
    calibration: Literal["none", "pmi", "mean", "contrast"]
    """What is taken out of the queries' log-probabilities, and out of those of words."""
    prompt: str
    """Text that queries and words are conditioned on, not scored."""
    smoothing: int
    """Odd kernel of the average pooling before a location is read; 1 is none."""


class SaliencyOptions(ReadingOptions, total=False):
    """What can be asked of maps."""

    keep: bool
    """Let the service keep the explanation under its `id`, as it does by default."""


class CaptionOptions(SaliencyOptions, total=False):
    """What can be asked of captions."""

    dense: bool | None
    """Tell of every location; by default where no points are given."""
    points: Sequence[tuple[float, float]]
    """Tell of the locations that cover these: (x, y) as fractions from the left and the top."""
    words: int
    """How many of the likeliest words of each such location, besides its caption."""
    max_new_tokens: int
    """Longest caption, in tokens."""


class ExplainOptions(CaptionOptions, total=False):
    """What can be asked of an explanation."""

    queries: Sequence[str] | str
    """Words or phrases; each gets a map per layer."""


class AuditOptions(ReadingOptions, total=False):
    """What can be asked of an audit."""

    queries: Sequence[str] | str
    """Words or phrases; each gets a map per layer."""
    dense: bool
    """Write a caption for every location."""
    max_new_tokens: int
    """Longest caption, in tokens."""
    title: str
    """Of the report."""


LISTS = ("layers", "queries")
"""May be given as one text."""


def json_fields(allowed: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the fields of a JSON object; what is None is left out.

    Args:
        allowed: one of the classes above.
        options: by name.

    Raises:
        TypeError: there is no such option.
        LayerError: an empty list of layers.
    """
    unknown = sorted(options.keys() - allowed.__annotations__.keys())
    if unknown:
        raise TypeError(f"no such option: {unknown}; there are {sorted(allowed.__annotations__)}")
    fields = {name: value for name, value in options.items() if value is not None}
    for name in LISTS:
        if name in fields:
            value = fields[name]
            fields[name] = [value] if isinstance(value, str) else list(value)
    if fields.get("layers") == []:
        raise LayerError("layers is empty; name some, or leave it out for all of them.")
    return fields


def form_fields(fields: Mapping[str, Any]) -> dict[str, list[str]]:
    """The fields of a JSON object as those of a form, where lists are names given repeatedly.

    Raises:
        DataError: a text is not Unicode.
    """
    return {name: list(_texts(name, value)) for name, value in fields.items()}


def _texts(name: str, value: Any) -> Iterable[str]:
    for item in value if isinstance(value, list | tuple) else [value]:
        if isinstance(item, bool):
            text = "true" if item else "false"
        elif isinstance(item, list | tuple):  # a point
            text = ",".join(repr(float(number)) for number in item)
        else:
            text = str(item)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{name}: {text!r} is not Unicode text ({error.reason}).") from error
        yield text
