"""The routes of audits: make, list, look at, fetch from, resume and delete them.

Handlers read requests and say no where they must; folders and jobs are left to `audits`, and
whatever blocks runs in a thread. What was running when the cluster went away is resumed when the
application starts.
"""

import asyncio
import functools
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from pydantic import ValidationError

from serve import audit_folder, metrics
from serve.audit_body import AuditBody, read_audit_body
from serve.audit_maker import AuditMaker
from serve.audit_openapi import LIST_PARAMETERS, described, request_body
from serve.audit_schemas import AuditDocument, AuditList, ListQuery
from serve.audits import Audits, UnknownAuditError
from serve.jobs import Jobs, JobServerError
from serve.problems import ProblemError, invalid
from serve.sending import StateFile
from serve.settings import Settings

STOP_SECONDS = 30.0
"""How long a deletion waits for the job to stop; Ray kills it after three."""
RESUME_SECONDS = 5.0
RESUME_TRIES = 60
REPORT_SECONDS = 10.0
"""As often as Ray hands figures on."""
POLICY = re.compile(r'http-equiv="Content-Security-Policy" content="([\w \'\-:;+/=]+)"')
POLICY_BYTES = 2000
"""The report's policy stands in its first lines."""
CLOSED = "default-src 'none'"
SANDBOX = "frame-ancestors 'none'; sandbox allow-scripts"
"""The report's script may draw; it has no origin, so it can ask nothing of this server."""
PARQUET = "application/vnd.apache.parquet"

THREADS = ThreadPoolExecutor(16, "audits")
"""Of audits alone: explanations do not wait for a job server, or for an archive's unpacking."""

Result = TypeVar("Result")
logger = logging.getLogger("ray.serve")


class Auditing:
    """Handlers of the routes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.audits = Audits(settings.state, Jobs(settings.audit_dashboard))
        self._maker = AuditMaker(settings, self.audits)
        self._uploads = 0
        self._starting = 0
        self._looking = asyncio.Lock()
        self._changing: set[str] = set()
        self._lock = threading.Lock()

    async def create(self, request: Request, response: Response) -> AuditDocument:
        """Answer `POST /v1/audits`."""
        await _thread(self.audits.jobs.check)  # before a long upload
        async with self._room():
            pass
        if self._uploads >= self.settings.max_uploads:
            raise ProblemError(
                429, f"{self._uploads} uploads are coming in, as many as allowed; try again later."
            )
        self._uploads += 1
        try:
            body = await self._body(request)
            async with self._room():  # an upload takes its time
                name = await self._make(body)
        finally:
            self._uploads -= 1
        response.headers["Location"] = f"/v1/audits/{name}"
        return await self._begun(name)

    async def _begun(self, name: str) -> AuditDocument:
        """What is answered once the job runs: no error, which would have it started twice."""
        return await _thread(lambda: self.audits.document(name, begun=True))

    @asynccontextmanager
    async def _room(self) -> AsyncIterator[None]:
        """Keep the place of an audit that is started inside, if there is one for it."""
        async with self._looking:  # so that what begins to start meanwhile is not missed
            active = self._starting + await _thread(self.audits.active)
            if active >= self.settings.max_audits:
                raise ProblemError(
                    429, f"{active} audits run or wait, as many as allowed; try again later."
                )
            self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1

    async def _body(self, request: Request) -> AuditBody:
        seconds = self.settings.upload_seconds
        try:
            async with asyncio.timeout(seconds):
                return await read_audit_body(request, self.settings.max_archive_bytes)
        except TimeoutError:
            raise ProblemError(408, f"The body did not arrive within {seconds:g} s.") from None
        except OSError:
            logger.exception("an upload cannot be kept")
            raise ProblemError(503, "The server has no room for the archive now.") from None

    async def _make(self, body: AuditBody) -> str:
        try:
            return await _thread(self._maker, body)
        finally:
            if body.archive is not None:
                body.archive.close()

    async def show_all(self, request: Request) -> AuditList:
        """Answer `GET /v1/audits`."""
        try:
            query = ListQuery.model_validate(dict(request.query_params))
        except ValidationError as error:
            raise invalid(error) from None
        return AuditList(audits=await _thread(self._list, query))

    def _list(self, query: ListQuery) -> list[AuditDocument]:
        found: list[AuditDocument] = []
        for name in self.audits.names(query.before):
            if len(found) == query.limit:
                break
            try:
                found.append(self.audits.document(name, results=False))
            except (UnknownAuditError, FileNotFoundError):  # removed this moment
                continue
            except audit_folder.DAMAGED:
                logger.exception("audit %s is damaged", name)
        return found

    async def show(self, audit: str) -> AuditDocument:
        """Answer `GET /v1/audits/{audit}`."""
        return await _thread(self.audits.document, audit)

    async def file(self, audit: str, name: str) -> Response:
        """Answer `GET /v1/audits/{audit}/files/{name}`."""
        found = await _thread(lambda: self.audits.folder(audit).result(name))
        missing = ProblemError(404, "The audit has no such file; its `results` list them.", "name")
        if found is None:
            raise missing
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        if name != audit_folder.REPORT:
            media, filename = PARQUET, found.name
            return StateFile(found, missing, media_type=media, headers=headers, filename=filename)
        headers["Content-Security-Policy"] = await _thread(_policy, found)
        return StateFile(found, missing, media_type="text/html; charset=utf-8", headers=headers)

    async def resume(self, audit: str, response: Response) -> AuditDocument:
        """Answer `POST /v1/audits/{audit}/resume`."""
        with self._alone(audit):
            state = (await _thread(self.audits.state, audit)).state
            if state not in ("stopped", "failed"):
                raise ProblemError(409, f"The audit is {state}; only stopped or failed ones go on.")
            async with self._room():
                await _thread(self.audits.start, audit)
        response.headers["Location"] = f"/v1/audits/{audit}"
        return await self._begun(audit)

    async def delete(self, audit: str) -> Response:
        """Answer `DELETE /v1/audits/{audit}`."""
        with self._alone(audit):
            if not await _thread(self.audits.delete, audit, STOP_SECONDS):
                raise ProblemError(503, "The audit's job has not stopped yet; try again.")
        return Response(status_code=204)

    @contextmanager
    def _alone(self, audit: str) -> Iterator[None]:
        with self._lock:  # requests are in the loop's thread, what goes on is in another
            if audit in self._changing:
                raise ProblemError(409, "The audit is being resumed or deleted already.")
            self._changing.add(audit)
        try:
            yield
        finally:
            self._changing.discard(audit)

    async def go_on(self) -> None:
        """Finish deletions, and resume what was running when the cluster went away."""
        for _ in range(RESUME_TRIES):
            try:
                await _thread(self._go_on_now)
                return
            except ProblemError:  # the job server may come up after the application
                await asyncio.sleep(RESUME_SECONDS)
            except Exception:
                logger.exception("audits of an earlier cluster cannot be looked at")
                return
        logger.warning("audits of an earlier cluster are not resumed: there is no job server")

    async def report(self) -> None:
        """Keep the figure of audits by state up to date, and remove what was left half done."""
        while True:
            try:
                await _thread(self.audits.sweep)
                metrics.audited(await _thread(self.audits.counts))
            except ProblemError as problem:
                logger.debug("audits are not counted: %s", problem)
            except Exception:
                logger.exception("audits cannot be swept or counted")
            await asyncio.sleep(REPORT_SECONDS)

    def _go_on_now(self) -> None:
        if not any(self.audits.names()):
            return
        self.audits.jobs.check()  # only a server that answers can say that a job is gone
        for name in self.audits.names():
            try:
                with self._alone(name):
                    self._go_on_with(name)
            except (UnknownAuditError, FileNotFoundError):  # removed this moment
                continue
            except ProblemError:  # a request does what was to be done
                continue
            except JobServerError:
                raise
            except Exception:  # the others go on all the same
                logger.exception("audit %s cannot go on", name)

    def _go_on_with(self, name: str) -> None:
        if self.audits.folder(name).cancelled:
            self.audits.delete(name, STOP_SECONDS)
        elif self.settings.resume_audits and self.audits.is_lost(name):
            logger.info("audit %s goes on", name)
            self.audits.start(name, by_itself=True)


def _policy(report: Path) -> str:
    """The report's own content security policy, and what a page cannot say of itself."""
    with open(report, "rb") as file:
        found = POLICY.search(file.read(POLICY_BYTES).decode("utf-8", "replace"))
    return f"{found[1] if found else CLOSED}; {SANDBOX}"


async def _thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run what blocks.

    Raises:
        ProblemError: 404, there is no such audit; 503, no job server answers.
    """
    try:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(THREADS, functools.partial(function, *arguments))
    except (UnknownAuditError, FileNotFoundError):
        raise ProblemError(404, "There is no such audit.") from None
    except JobServerError as error:
        raise ProblemError(503, str(error)) from None


def add_audit_routes(api: FastAPI, settings: Settings) -> Auditing:
    """Add the routes, and go on with earlier audits when `api` starts."""
    auditing = Auditing(settings)
    described(api, "POST", "", auditing.create, "Begin an audit", 202, openapi=request_body())
    described(api, "GET", "", auditing.show_all, "The audits", 200, openapi=LIST_PARAMETERS)
    described(api, "GET", "/{audit}", auditing.show, "An audit, and how it goes", 200)
    described(api, "POST", "/{audit}/resume", auditing.resume, "Go on with an audit", 202)
    described(api, "DELETE", "/{audit}", auditing.delete, "Stop and delete an audit", 204)
    described(api, "GET", "/{audit}/files/{name:path}", auditing.file, "A result's file", 200)
    outer = api.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[Any]:
        tasks = [asyncio.create_task(work) for work in (auditing.go_on(), auditing.report())]
        async with outer(app) as state:
            yield state
        for task in tasks:
            task.cancel()

    api.router.lifespan_context = lifespan
    return auditing
