"""The client for plain programs: each call returns when it is answered.

It runs the coroutines of `devil.client.service` over a transport that blocks; threads may share it.
"""

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Unpack

import httpx

from devil.client.audits import POLL_SECONDS, AsyncAudits
from devil.client.calls import Picture
from devil.client.connection import Connection, http_arguments
from devil.client.documents import Audit, Outcome, ServedModel
from devil.client.options import AuditOptions, CaptionOptions, ExplainOptions, SaliencyOptions
from devil.client.retries import RetryConfig
from devil.client.service import GROUP, TIMEOUT_SECONDS, Service
from devil.client.transports import BlockingTransport, each_finished, finish
from devil.explanation import Explanation


class Client:
    """A client of the service.

    What the service refuses for good, and what could not be had after all tries, is raised as
    `devil.errors.ServiceError`. Options are those of `devil.DeViL.explain`, see
    `devil.client.options`.

    Attributes:
        audits: those of many pictures.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        retry: RetryConfig | None = None,
    ) -> None:
        """Nothing is asked yet.

        Args:
            address: such as `http://localhost:8000`.
            key: API key; None: the environment's `DEVIL_API_KEY`, if there is one.
            timeout: longest wait for an answer, and for its next piece, in seconds.
            retry: how often and how long requests are repeated.

        Raises:
            ConfigError: one of these cannot be used.
        """
        http = httpx.Client(**http_arguments(address, key, timeout))
        connection = Connection(address, key, retry or RetryConfig(), BlockingTransport(http))
        self._service = Service(connection)
        self.audits = Audits(self._service.audits)

    def explain(self, image: Picture, **options: Unpack[ExplainOptions]) -> Explanation:
        """Explain one picture.

        Args:
            image: a path, the bytes of a file, or a picture.
            options: see `devil.client.options.ExplainOptions`.

        Returns:
            What `DeViL.explain` returns, with the picture, and with its `id` if it is kept.

        Raises:
            ImageError: the picture cannot be read.
            ServiceError: the request is refused, or failed; `field` says what is to blame.
        """
        return finish(self._service.explain(image, **options))

    def caption(self, image: Picture, **options: Unpack[CaptionOptions]) -> Explanation:
        """Caption one picture, without maps; arguments and errors as `explain`."""
        return finish(self._service.caption(image, **options))

    def saliency(
        self, image: Picture, queries: Iterable[str] | str, **options: Unpack[SaliencyOptions]
    ) -> Explanation:
        """A map for each query, without captions; arguments and errors as `explain`."""
        return finish(self._service.saliency(image, queries, **options))

    def explain_many(
        self, images: Iterable[Picture], *, group: int = GROUP, **options: Unpack[ExplainOptions]
    ) -> Iterator[Outcome]:
        """Explain many pictures, each handed over as it is done.

        Args:
            images: paths, bytes or pictures; taken one group after the other.
            group: pictures of one request, at most.
            options: as for `explain`, the same for all.

        Yields:
            What became of each picture, in the order in which the service is done with them: an
            explanation, or the error of this one picture.

        Raises:
            ServiceError: a whole request is refused, or failed.
        """
        return each_finished(self._service.explain_many(images, group=group, **options))

    def models(self) -> list[ServedModel]:
        """The models that answer."""
        return finish(self._service.models())

    def model(self, id: str) -> ServedModel:
        """One of them."""
        return finish(self._service.model(id))

    def explanation(self, id: str) -> Explanation:
        """An explanation that the service keeps, without its picture."""
        return finish(self._service.explanation(id))

    def explanation_png(self, id: str, path: str | PathLike[str]) -> Path:
        """Write the figure of one that the service keeps; returns the file's path.

        Raises:
            StorageError: the file cannot be written.
        """
        return finish(self._service.explanation_png(id, path))

    def explanation_html(self, id: str, path: str | PathLike[str]) -> Path:
        """Write the page of one that the service keeps; as `explanation_png`."""
        return finish(self._service.explanation_html(id, path))

    def close(self) -> None:
        """Let go of the connections; so does the end of a `with` block."""
        finish(self._service.close())

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Audits:
    """Audits of many pictures by the service."""

    def __init__(self, audits: AsyncAudits) -> None:
        self._audits = audits

    def start(
        self,
        images: str | None = None,
        *,
        upload: str | PathLike[str] | None = None,
        **options: Unpack[AuditOptions],
    ) -> Audit:
        """Start an audit.

        It is not started twice: where an answer got lost, `list` says whether it runs.

        Args:
            images: folder or bucket that the service may read, as it knows it.
            upload: instead: a folder of pictures here, or an archive (.zip, .tar), which is sent.
            options: see `devil.client.options.AuditOptions`.

        Raises:
            ConfigError, DataError: there is nothing to send.
            ServiceError: it is refused, or was not answered.
        """
        return finish(self._audits.start(images, upload=upload, **options))

    def list(self, *, limit: int | None = None, before: str | None = None) -> list[Audit]:
        """Audits, the newest first: at most `limit`, those older than the one with id `before`."""
        return finish(self._audits.list(limit=limit, before=before))

    def status(self, id: str) -> Audit:
        """An audit as it stands."""
        return finish(self._audits.status(id))

    def wait(self, id: str, *, bar: bool = True, poll_seconds: float = POLL_SECONDS) -> Audit:
        """An audit when it has ended, well or not.

        One that is stopped may go on by itself when its service has started again, so it is waited
        for a minute longer. A service that does not answer is asked again for ten minutes.

        Args:
            id: of the audit.
            bar: show a progress bar.
            poll_seconds: how often the service is asked.

        Raises:
            ServiceError: there is no such audit, or no answer in all that time.
        """
        return finish(self._audits.wait(id, bar=bar, poll_seconds=poll_seconds))

    def results(self, id: str, folder: str | PathLike[str]) -> Path:
        """Fetch the Parquet files and the report of a finished audit.

        Each file is there whole or not at all, and the report comes last. Given again, it goes on.

        Returns:
            The report's path.

        Raises:
            ServiceError: the audit is not finished.
            DataError: the folder holds something else.
            StorageError: the folder cannot be used.
        """
        return finish(self._audits.results(id, folder))

    def resume(self, id: str) -> Audit:
        """Let an audit that failed or was stopped go on."""
        return finish(self._audits.resume(id))

    def delete(self, id: str) -> None:
        """Stop an audit and remove its files."""
        finish(self._audits.delete(id))
