"""What a source gives for one row: a captioned picture, or why there is none."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One captioned picture, still encoded."""

    key: str
    source: str
    """Address of the file that it was read from."""
    image: bytes | None
    """None where the source has captions but no picture under this key."""
    captions: tuple[str, ...]
    """Without empty ones; may have none."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What else the source says of it."""


class Failure(NamedTuple):
    """A row that cannot be used, or damage to a whole file (then without a key)."""

    key: str
    source: str
    stage: str
    """Where it failed: `read`, `fetch`, `key`, `decode`, `caption` or `backbone`."""
    error: str
    """The error's class."""
    message: str

    @classmethod
    def of(cls, key: str, source: str, stage: str, error: Exception) -> "Failure":
        """From an error; what cannot be written as UTF-8 is escaped."""
        texts = (key, source, stage, type(error).__name__, str(error))
        return cls(*map(unicode_text, texts))


def unicode_text(text: str) -> str:
    """Text that can be written as UTF-8: lone surrogates (JSON and tars can hold them) escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def texts(captions: Iterable[Any]) -> tuple[str, ...]:
    """Those that are texts and not empty, without blanks around them."""
    return tuple(unicode_text(c.strip()) for c in captions if isinstance(c, str) and c.strip())
