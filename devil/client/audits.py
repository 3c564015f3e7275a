"""Audits of many pictures by the service: start, watch, fetch the results, go on, remove.

Written once for both clients; `devil.client.blocking.Audits` has the documentation of each method.
"""

import json
import logging
import re
import time
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Unpack
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from devil.client.calls import Call, File, address, get
from devil.client.connection import Connection, whole
from devil.client.documents import Audit, read_audit, read_audits
from devil.client.options import AuditOptions, form_fields, json_fields
from devil.client.retries import PASSING
from devil.client.uploads import open_upload
from devil.errors import ConfigError, DataError, ServiceError
from devil.files import write_json
from devil.storage import storage

POLL_SECONDS = 2.0
STOPPED = "stopped"
RESTART_SECONDS = 60.0
"""An audit is stopped while its service starts again, and goes on by itself soon after."""
AWAY_SECONDS = 600.0
"""As long `wait` goes on asking a service that does not answer, as while it starts again."""
GONE = "There is no such audit."
"""What the service says of an audit that it does not have."""
RECORD = "served_audit.json"
"""In the folder of the results: whose they are."""
FILE_NAME = re.compile(r"(errors/)?part-[^/\\\x00-\x1f]+\.parquet|index\.html")

logger = logging.getLogger(__name__)


class AsyncAudits:
    """The service's audits."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def start(
        self,
        images: str | None = None,
        *,
        upload: str | PathLike[str] | None = None,
        **options: Unpack[AuditOptions],
    ) -> Audit:
        """See `Audits.start`."""
        fields = json_fields(AuditOptions, options)
        call = Call(method="POST", path=address("audits"), repeatable=False)
        if (images is None) == (upload is None):
            raise ConfigError(
                "give either `images`, an address that the service reads, or `upload`, a folder "
                "or an archive here."
            )
        if upload is None:
            call = replace(call, json={"images": images, **fields})
            return await self._connection.document(call, read_audit)
        archive = await self._connection.transport.work(open_upload, upload)
        with archive.content as content:
            files = (("archive", File(archive.name, content)),)
            call = replace(call, form=form_fields(fields), files=files)
            return await self._connection.document(call, read_audit)

    async def list(self, *, limit: int | None = None, before: str | None = None) -> list[Audit]:
        """See `Audits.list`."""
        asked = {"limit": limit, "before": before}
        query = {name: value for name, value in asked.items() if value is not None}
        return await self._connection.document(get("audits", query=query), read_audits)

    async def status(self, id: str) -> Audit:
        """See `Audits.status`."""
        return await self._connection.document(get("audits", id), read_audit)

    async def wait(self, id: str, *, bar: bool = True, poll_seconds: float = POLL_SECONDS) -> Audit:
        """See `Audits.wait`."""
        stopped, heard = 0, time.monotonic()
        with ProgressBar(id, shown=bar) as progress:
            while True:
                try:
                    audit = await self.status(id)
                    heard = time.monotonic()
                    progress.show(audit)
                    stopped = stopped + 1 if audit.state == STOPPED else 0
                    if audit.ended and (not stopped or stopped * poll_seconds > RESTART_SECONDS):
                        return audit
                except ServiceError as error:
                    if not is_away(error) or time.monotonic() - heard > AWAY_SECONDS:
                        raise
                    logger.warning("%s Audits go on meanwhile; asking again.", error)
                await self._connection.transport.sleep(poll_seconds)

    async def results(self, id: str, folder: str | PathLike[str]) -> Path:
        """See `Audits.results`."""
        audit = await self.status(id)
        if audit.state != "finished" or audit.results.report is None:
            reason = f": {audit.problem}" if audit.problem else ""
            raise ServiceError(
                f"audit {id} is {audit.state}{reason}; results are there when it is finished."
            )
        folder = Path(folder)
        claim(folder, audit)
        for uri in (*audit.results.parts, *audit.results.errors):
            name = file_name(uri)
            if not (folder / name).exists():
                await self._fetch(id, name, folder)
        return await self._fetch(id, file_name(audit.results.report), folder)

    async def _fetch(self, id: str, name: str, folder: Path) -> Path:
        call = replace(get("audits", id, "files", *name.split("/")), accept="*/*")
        return await self._connection.download(call, folder / name)

    async def resume(self, id: str) -> Audit:
        """See `Audits.resume`."""
        call = Call(method="POST", path=address("audits", id, "resume"), repeatable=False)
        await self._connection.ask(call, whole)
        return await self.status(id)

    async def delete(self, id: str) -> None:
        """See `Audits.delete`."""
        call = Call(method="DELETE", path=address("audits", id), gone=GONE)
        await self._connection.ask(call, whole)


class ProgressBar:
    """A bar of the pictures of an audit."""

    def __init__(self, id: str, *, shown: bool) -> None:
        self._bar = tqdm(desc=f"audit {id}", unit="picture", disable=not shown)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, audit: Audit) -> None:
        """Bring the bar to where the audit is."""
        progress = audit.progress
        self._bar.total = progress.pictures
        self._bar.n = progress.explained + progress.failed
        self._bar.set_postfix_str(f"{audit.state}, {progress.failed} failed", refresh=False)
        self._bar.refresh()


def is_away(error: ServiceError) -> bool:
    """Whether the service did not answer, but nothing, or what stands before it."""
    if error.status == 404:
        return error.detail != GONE
    return error.status is None or error.status in PASSING


def claim(folder: Path, audit: Audit) -> None:
    """Make a folder that of an audit's results, and write down what the audit is.

    Raises:
        DataError: it holds something else.
        StorageError: it cannot be used.
    """
    prepare(folder, audit.id)
    with storage(str(folder)):
        write_json(folder / RECORD, asdict(audit))


def prepare(folder: Path, id: str | None) -> None:
    """Make a folder for the results of an audit, or of one that is yet to be started.

    Raises:
        DataError: it holds something else.
        StorageError: it cannot be used.
    """
    whose = "a new audit" if id is None else f"audit {id}"
    with storage(str(folder)):
        (folder / "errors").mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if path.name != "errors"]
        if others and (id is None or _id_in(folder / RECORD) != id):
            raise DataError(
                f"{folder} holds something else than the results of {whose} "
                f"({', '.join(sorted(others)[:3])}); choose another folder."
            )


def _id_in(record: Path) -> str | None:
    try:
        return json.loads(record.read_text())["id"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def file_name(uri: str) -> str:
    """A result's name in its audit, which is also its path in the folder of the results.

    Raises:
        ServiceError: it would lead elsewhere.
    """
    name = unquote(urlsplit(uri).path.rpartition("/files/")[2])
    if not FILE_NAME.fullmatch(name):
        raise ServiceError(f"the service named {uri!r} as a result, which is no file of an audit.")
    return name
