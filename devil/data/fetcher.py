"""Pictures from the web: many at once, few from one host, each within limits.

Requests run in an event loop on a thread of their own, so that pictures arrive while the caller
works. Names are resolved, checked, and connected to by the address that was checked, for each
redirect anew (`devil.data.web_address`); no proxy, cookie or password is used.
"""

import asyncio
import datetime
import functools
import random
import socket
import ssl
import threading
from collections import defaultdict, deque
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any

import httpx

from devil.config import FetchConfig
from devil.data.web_address import SHOWN, machine_addresses, parsed_address
from devil.errors import AddressError, FetchError, SizeError, StatusError, StorageError

HEADERS = {
    "User-Agent": "Mozilla/5.0 (compatible; DeViL; fetches pictures that a list names)",
    "Accept": "image/*,*/*;q=0.8",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5
BUSY = 429
BACKOFF_SECONDS = 0.5
"""Wait before the first retry; it doubles."""
LONGEST_WAIT = 30.0
"""A server that asks for more (Retry-After) is not waited for."""
WINDOW = 4
"""Addresses ahead of the caller, in multiples of the requests at once."""
SILENT_HOSTS = 50
"""So many hosts in a row without an answer: the fault is here."""


class _Transient(Exception):
    """What may pass: the error, and the seconds to wait that the server names."""

    def __init__(self, error: FetchError, wait: float | None = None) -> None:
        super().__init__(error)
        self.error = error
        self.wait = wait


class Fetcher:
    """Fetches while its `with` block is entered."""

    def __init__(self, config: FetchConfig) -> None:
        self.config = config

    def __enter__(self) -> "Fetcher":
        config = self.config
        self.loop = asyncio.new_event_loop()
        self.resolvers = ThreadPoolExecutor(config.concurrency)
        self.loop.set_default_executor(self.resolvers)
        self.slots = asyncio.Semaphore(config.concurrency)
        self.hosts = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(config.per_host))
        # Connections are not kept: they are known by their machine, and many hosts share one.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.transport = httpx.AsyncHTTPTransport(
            verify=certificates(), trust_env=False, limits=limits
        )
        self.timeout = httpx.Timeout(config.timeout_seconds).as_dict()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._start(self._close()).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.resolvers.shutdown(wait=False, cancel_futures=True)
        self.loop.close()

    def _start(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    async def _close(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.transport.aclose()

    def fetched(self, addresses: Iterable[str]) -> Iterator[bytes | FetchError]:
        """What each address gives, or why nothing, in their order.

        Raises:
            StorageError: `SILENT_HOSTS` hosts in a row gave no answer.
        """
        left = iter(addresses)
        pending: deque[tuple[str, Future[bytes | FetchError]]] = deque()
        silent: set[str] = set()
        while True:
            for address in islice(left, WINDOW * self.config.concurrency - len(pending)):
                pending.append((address, self._start(self._fetch(address))))
            if not pending:
                return
            address, future = pending.popleft()
            found = future.result()
            if type(found) is FetchError:
                silent.add(address.split("/", 3)[2])
            elif not isinstance(found, AddressError):
                silent.clear()
            if len(silent) >= SILENT_HOSTS:
                raise StorageError(
                    f"{len(silent)} hosts in a row gave no answer, the last with: {found}; look "
                    "at the network, and start again: what is finished stays."
                )
            yield found

    async def _fetch(self, address: str) -> bytes | FetchError:
        try:
            url = parsed_address(address)
            for attempt in range(self.config.retries):
                try:
                    return await self._followed(url, attempt)
                except _Transient as error:
                    wait = BACKOFF_SECONDS * 2**attempt * random.uniform(0.5, 1.5)
                    wait = max(wait, error.wait or 0)
                    if wait > LONGEST_WAIT:
                        return error.error
                    await asyncio.sleep(wait)
            return await self._followed(url, self.config.retries)
        except _Transient as error:
            return error.error
        except FetchError as error:
            return error
        except Exception as error:  # whatever a row holds must not end the shard
            return FetchError(f"{address[:SHOWN]}: {type(error).__name__} {error}")

    async def _followed(self, url: httpx.URL, attempt: int) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._limited(url, attempt)
            if isinstance(found, bytes):
                return found
            url = found
        raise StatusError(f"more than {MAX_REDIRECTS} redirects, the last to {_shown(url)}")

    async def _limited(self, url: httpx.URL, attempt: int) -> bytes | httpx.URL:
        """One request within the limits; waiting for others to end is not counted."""
        seconds = self.config.total_seconds
        async with self.hosts[url.host], self.slots:
            try:
                async with asyncio.timeout(seconds):
                    return await self._requested(url, attempt)
            except TimeoutError as error:
                raise FetchError(f"{_shown(url)} took more than {seconds} seconds") from error
            except socket.gaierror as error:
                unknown = FetchError(f"the host {url.host} is not found ({error})")
                passes = error.errno == socket.EAI_AGAIN
                raise (_Transient(unknown) if passes else unknown) from error
            except httpx.RequestError as error:
                reason = f"{_shown(url)}: {type(error).__name__} {error}".rstrip()
                raise _Transient(FetchError(reason)) from error

    async def _requested(self, url: httpx.URL, attempt: int) -> bytes | httpx.URL:
        """The body, or where a redirect leads."""
        machines = await machine_addresses(url, allow_private=self.config.allow_private)
        # The request goes to the machine; host and certificate are those of the name.
        request = httpx.Request(
            "GET",
            url.copy_with(host=machines[attempt % len(machines)]),
            headers={"Host": url.netloc.decode("ascii"), **HEADERS},
            extensions={"timeout": self.timeout, "sni_hostname": url.raw_host.decode("ascii")},
        )
        response = await self.transport.handle_async_request(request)
        try:
            return await self._body(url, response)
        finally:
            await response.aclose()

    async def _body(self, url: httpx.URL, response: httpx.Response) -> bytes | httpx.URL:
        status, headers = response.status_code, response.headers
        if status in REDIRECTS and "location" in headers:
            return _joined(url, headers["location"])
        if status != 200:
            error = StatusError(f"{status} {response.reason_phrase} from {_shown(url)}")
            if status == BUSY or status >= 500:
                raise _Transient(error, retry_after(headers.get("retry-after", "")))
            raise error
        encoding = headers.get("content-encoding") or "identity"
        if encoding.lower() != "identity":  # unpacked, it could be of any size
            raise StatusError(f"{_shown(url)} is encoded by {encoding[:SHOWN]}; allowed: identity")
        most, length = self.config.max_bytes, headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise SizeError(f"{_shown(url)} has {int(length):,} bytes; allowed: {most:,}")
        content = bytearray()
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > most:
                raise SizeError(f"{_shown(url)} has over {most:,} bytes; allowed: {most:,}")
        return bytes(content)


@functools.cache
def certificates() -> ssl.SSLContext:
    """What servers' certificates are checked by; reading them takes longer than a request."""
    return httpx.create_ssl_context(trust_env=False)


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        return parsed_address(str(url.join(location)))
    except (httpx.InvalidURL, ValueError) as error:
        if isinstance(error, AddressError):
            raise
        raise AddressError(f"redirect to {location[:SHOWN]!r}, no web address") from error


def _shown(url: httpx.URL) -> str:
    return str(url)[:SHOWN]


def retry_after(value: str) -> float | None:
    """Seconds that a Retry-After header asks for, as seconds or as a date; None: nothing."""
    if value.isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, (moment - datetime.datetime.now(datetime.UTC)).total_seconds())
