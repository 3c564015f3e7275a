"""The exception tree: everything a user can cause is a `DevilError`, and most are `ValueError` too.

A message names what was wrong, the value, what is allowed, and the way out. Each class can be
made of the message alone, so that every error survives pickling between processes.
"""

import math


class DevilError(Exception):
    """Base of all errors that DeViL raises on purpose."""


class ConfigError(DevilError, ValueError):
    """A configuration value is out of range or contradicts another."""


class DataError(DevilError, ValueError):
    """Input data is malformed: a shard, a caption, a serialised explanation."""


class ImageError(DataError):
    """A picture cannot be decoded, or its size is outside the accepted range."""


class CaptionError(DataError):
    """A caption is empty or longer than the language model's context allows."""


class FetchError(DataError):
    """A picture cannot be fetched: no answer, or one that breaks off."""


class AddressError(FetchError):
    """An address is none of the web, or leads to a machine that is not public."""


class StatusError(FetchError):
    """A server answers that it has no picture, or gives none."""


class SizeError(FetchError):
    """An answer is larger than pictures may be."""


class QueryError(DevilError, ValueError):
    """A saliency query has no tokens, or does not fit the request."""


class BackboneError(DevilError, ValueError):
    """A backbone or its weights cannot be loaded, or are not those that are expected."""


class LayerError(BackboneError):
    """A layer name does not exist, or the layer's output is no feature map."""


class LanguageModelError(DevilError, ValueError):
    """A language model cannot be loaded or lacks what the method needs."""


class ModelFolderError(DevilError, ValueError):
    """A model folder is incomplete, corrupt, or of another format."""


class LockError(DevilError, RuntimeError):
    """Another process holds a lock, or has taken over the one that was held here."""


class GateError(DevilError, ValueError):
    """A new model is not good enough to be released."""


class FeatureStoreError(DevilError, ValueError):
    """A feature store is incomplete, corrupt, or was written under another configuration."""


class StorageError(DevilError, RuntimeError):
    """A folder or bucket cannot be reached, read or written; nothing is wrong with the data."""


class ServiceError(DevilError, RuntimeError):
    """The service refuses or fails, cannot be reached, or answers what no such service does.

    Attributes:
        status: of its answer; None where there was none.
        detail: what its problem document says.
        field: of the request, that is to blame, if one is.
        request_id: by which its log names the request.
        retry_after: seconds after which it asked to be tried again.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        detail: str = "",
        field: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail
        self.field = field
        self.request_id = request_id
        self.retry_after = retry_after


class LossError(DevilError, ArithmeticError):
    """The training loss, or its gradient, is not finite."""

    def __init__(self, message: str, loss: float = math.nan) -> None:
        super().__init__(message)
        self.loss = loss


class MissingToolError(DevilError, RuntimeError):
    """An optional tool or package is not there; the message says how to get it."""
