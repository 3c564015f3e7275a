"""What can be asked of the service about pictures and models, written once.

`AsyncClient` runs it in an event loop; `devil.client.blocking` has the same without one, and the
documentation of each method. Audits are in `audits`.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

import httpx

from devil.client.audits import AsyncAudits
from devil.client.calls import (
    Picture,
    Sent,
    attached,
    get,
    picture_call,
    pictures_call,
    read_explanation,
    read_picture,
)
from devil.client.connection import Connection, http_arguments, lines, told, whole
from devil.client.documents import Outcome, ServedModel, read_model, read_models, read_outcome
from devil.client.options import (
    CaptionOptions,
    ExplainOptions,
    SaliencyOptions,
    form_fields,
    json_fields,
)
from devil.client.retries import PASSING, Failed, RetryConfig, Tries
from devil.client.transports import Answer, AsyncTransport
from devil.errors import ConfigError, ImageError, ServiceError
from devil.explanation import Explanation

TIMEOUT_SECONDS = 150.0
"""Longer than the service takes before it gives up by itself."""
TOO_LARGE = 413
GROUP = 16
"""Pictures of one request."""
GROUP_BYTES = 16_000_000
"""Of the pictures of one request, if there are more than one."""


class Service:
    """Pictures and models, over any transport."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._work = connection.transport.work
        self.audits = AsyncAudits(connection)

    async def explain(self, image: Picture, **options: Unpack[ExplainOptions]) -> Explanation:
        """See `Client.explain`."""
        return await self._picture("explain", image, json_fields(ExplainOptions, options))

    async def caption(self, image: Picture, **options: Unpack[CaptionOptions]) -> Explanation:
        """See `Client.caption`."""
        return await self._picture("caption", image, json_fields(CaptionOptions, options))

    async def saliency(
        self, image: Picture, queries: Iterable[str] | str, **options: Unpack[SaliencyOptions]
    ) -> Explanation:
        """See `Client.saliency`."""
        fields = json_fields(SaliencyOptions, options)
        fields["queries"] = [queries] if isinstance(queries, str) else list(queries)
        return await self._picture("saliency", image, fields)

    async def _picture(self, route: str, image: Picture, fields: Mapping[str, Any]) -> Explanation:
        picture = await self._work(read_picture, image)
        call = picture_call(f"/v1/{route}", [picture.content], form_fields(fields))

        async def read(answer: Answer) -> Explanation:
            content = await whole(answer)
            return await self._work(read_explanation, content, answer.headers, picture)

        found = await self._connection.ask(call, read)
        assert found is not None
        return found

    async def explain_many(
        self, images: Iterable[Picture], *, group: int = GROUP, **options: Unpack[ExplainOptions]
    ) -> AsyncGenerator[Outcome, None]:
        """See `Client.explain_many`."""
        if group < 1:
            raise ConfigError(f"group is {group}; allowed: at least 1.")
        form = form_fields(json_fields(ExplainOptions, options))
        async with aclosing(self._groups(images, group)) as groups:
            async for several in groups:
                async with aclosing(self._explained(several, form)) as outcomes:
                    async for outcome in outcomes:
                        yield outcome

    async def _groups(
        self, images: Iterable[Picture], most: int
    ) -> AsyncGenerator[dict[int, Sent | ImageError], None]:
        """Pictures by their places, as many as one request takes; or why one cannot be sent."""
        group: dict[int, Sent | ImageError] = {}
        size = 0
        for index, image in enumerate(images):
            try:
                found = await self._work(read_picture, image)
                length = len(found.content)
            except ImageError as error:
                found, length = error, 0
            if group and (len(group) == most or size + length > GROUP_BYTES):
                yield group
                group, size = {}, 0
            group[index] = found
            size += length
        if group:
            yield group

    async def _explained(
        self, group: Mapping[int, Sent | ImageError], form: Mapping[str, list[str]]
    ) -> AsyncGenerator[Outcome, None]:
        """What became of a group's pictures; those without an answer are asked for again."""
        for index, found in group.items():
            if isinstance(found, ImageError):
                yield Outcome(index=index, error=found)
        waiting = {i: found for i, found in group.items() if isinstance(found, Sent)}
        tries = Tries(self._connection.retry)
        while waiting:
            call = pictures_call([picture.content for picture in waiting.values()], form)
            order, postponed = list(waiting), dict[int, Outcome]()
            try:
                async with self._connection.answered(call) as answer:
                    request_id = answer.headers.get("x-request-id")
                    async for line in lines(answer):
                        outcome = read_outcome(line, waiting, order, request_id)
                        if _passes(outcome):
                            postponed[outcome.index] = outcome
                            continue
                        del waiting[outcome.index]
                        tries = Tries(self._connection.retry)  # it goes on
                        yield outcome
                wait = tries.wait_after(_incomplete(), call) if waiting else 0.0
            except Failed as failed:
                if failed.error.status == TOO_LARGE and len(waiting) == 1:
                    yield Outcome(index=order[0], error=failed.error)
                    return
                wait = tries.wait_after(failed, call)
                told(failed, wait)
            except ServiceError:
                if postponed.keys() != waiting.keys():
                    raise
                for outcome in postponed.values():
                    yield outcome
                return
            await self._connection.transport.sleep(wait)

    async def models(self) -> list[ServedModel]:
        """See `Client.models`."""
        return await self._connection.document(get("models"), read_models)

    async def model(self, id: str) -> ServedModel:
        """See `Client.model`."""
        return await self._connection.document(get("models", id), read_model)

    async def explanation(self, id: str) -> Explanation:
        """See `Client.explanation`."""
        call = get("explanations", id)
        return await self._connection.document(call, lambda found: attached(found, None, id))

    async def explanation_png(self, id: str, path: str | PathLike[str]) -> Path:
        """See `Client.explanation_png`."""
        return await self._file(id, "png", "image/png", path)

    async def explanation_html(self, id: str, path: str | PathLike[str]) -> Path:
        """See `Client.explanation_html`."""
        return await self._file(id, "html", "text/html", path)

    async def _file(self, id: str, kind: str, accept: str, path: str | PathLike[str]) -> Path:
        call = replace(get("explanations", id, kind=f".{kind}"), accept=accept)
        return await self._connection.download(call, path)

    async def close(self) -> None:
        """See `Client.close`."""
        await self._connection.transport.close()


def _passes(outcome: Outcome) -> bool:
    return isinstance(outcome.error, ServiceError) and outcome.error.status in PASSING


def _incomplete() -> Failed:
    error = ServiceError("the service did not answer for all pictures; ask for the rest again.")
    return Failed(error, passes=True, begun=True)


class AsyncClient(Service):
    """A client of the service for an event loop; every method is to be awaited.

    `explain_many` is an asynchronous generator; see `Client` for all else.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        timeout: float = TIMEOUT_SECONDS,
        retry: RetryConfig | None = None,
    ) -> None:
        """See `Client`."""
        http = httpx.AsyncClient(**http_arguments(address, key, timeout))
        super().__init__(Connection(address, key, retry or RetryConfig(), AsyncTransport(http)))

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
