"""When a request that failed is sent again, and how long to wait before.

A refusal (429, 503) is followed by what Retry-After says, or by a back-off that doubles and is
drawn anew each time, so that clients that failed together do not come back together. A request
that must not be done twice is only repeated where the service cannot have begun it.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from devil.client.calls import Call, read_json
from devil.data.fetcher import retry_after
from devil.errors import ConfigError, ServiceError

REFUSALS = (429, 503)
PASSING = (502, 503, 504, 429)
"""Statuses after which the same request can succeed later; 502 and 504 are gateways'."""
NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Nothing of the request has left."""
SHOWN = 2000
"""Characters of a detail in a message."""


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """How often, and for how long, a request is tried."""

    tries: int = 8
    """In all; 1: none is repeated."""
    total_seconds: float = 300.0
    """No try begins later than this after the first one."""
    first_wait_seconds: float = 0.5
    """Before the second try, where the service names no time; doubles from try to try."""
    longest_wait_seconds: float = 30.0
    """Where the doubling ends."""

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ConfigError(f"tries is {self.tries}; allowed: at least 1.")
        for name in ("total_seconds", "first_wait_seconds", "longest_wait_seconds"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 0 or more.")


class Failed(Exception):
    """A try that failed: what to tell, and what may be done about it."""

    def __init__(self, error: ServiceError, *, passes: bool, begun: bool) -> None:
        super().__init__(error)
        self.error = error
        self.passes = passes
        """The same request can succeed later."""
        self.begun = begun
        """The service may have done something about it."""


class Tries:
    """The tries of one request."""

    def __init__(self, config: RetryConfig) -> None:
        self.config = config
        self.made = 0
        self.started = time.monotonic()

    def wait_after(self, failed: Failed, call: Call) -> float:
        """Seconds to wait before the next try.

        Raises:
            ServiceError: there is to be none.
        """
        self.made += 1
        allowed = failed.passes and (call.repeatable or not failed.begun)
        if not allowed or self.made >= self.config.tries:
            raise failed.error from failed
        wait = self._wait(failed.error.retry_after)
        if time.monotonic() + wait > self.started + self.config.total_seconds:
            raise failed.error from failed
        return wait

    def _wait(self, asked: float | None) -> float:
        config = self.config
        doubled = config.first_wait_seconds * 2.0 ** min(self.made - 1, 60)
        drawn = random.uniform(0.5, 1.0) * min(doubled, config.longest_wait_seconds)
        # Somewhat later than asked: all that were refused have been told the same.
        return drawn if asked is None else asked + random.uniform(0, min(drawn, asked / 4))


def refused(call: Call, status: int, headers: Mapping[str, str], content: bytes) -> Failed:
    """What an answer says that is no success."""
    problem = _problem(headers, content)
    detail = str(problem.get("detail") or problem.get("title") or "")[:SHOWN]
    if 300 <= status < 400:
        detail = f"it leads to {headers.get('location', 'nowhere')!r:.200}; give that address"
    wait = retry_after(headers.get("retry-after", ""))
    error = service_error(
        detail or httpx.codes.get_reason_phrase(status) or "no reason given",
        status=status,
        place=f"{call.method} {call.path}",
        field=problem.get("field"),
        request_id=headers.get("x-request-id"),
        wait=wait if status in PASSING else None,
    )
    # A gateway's 503 says nothing of what lies behind it; the service's own names a time.
    begun = status not in REFUSALS or (status == 503 and wait is None)
    return Failed(error, passes=status in PASSING, begun=begun)


def problem_error(problem: Any, request_id: str | None) -> ServiceError:
    """The error that a problem document tells of, which stands in an answer for one picture."""
    values = problem if isinstance(problem, dict) else {}
    status = values.get("status")
    return service_error(
        str(values.get("detail") or values.get("title") or "no reason given")[:SHOWN],
        status=status if isinstance(status, int) else None,
        place="one picture",
        field=values.get("field"),
        request_id=request_id,
        wait=None,
    )


def service_error(
    detail: str,
    *,
    status: int | None,
    place: str,
    field: Any,
    request_id: str | None,
    wait: float | None,
) -> ServiceError:
    """An error whose message names the status, the request and its id."""
    named = f"{status} for {place}" + (f", request {request_id}" if request_id else "")
    return ServiceError(
        f"{detail.rstrip('. ')} ({named}).",
        status=status,
        detail=detail,
        field=field if isinstance(field, str) else None,
        request_id=request_id,
        retry_after=wait,
    )


def unreachable(error: httpx.RequestError, address: str) -> Failed:
    """What an error of the connection says; one that took too long would do so again."""
    reason = f"{type(error).__name__} {error}".strip()
    late = isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout)
    way_out = "give a longer timeout" if late else "look at the address and the network"
    told = ServiceError(f"no answer from {address} ({reason}); {way_out}.")
    passes = isinstance(error, httpx.TransportError) and not late
    passes = passes and not isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
    return Failed(told, passes=passes, begun=not isinstance(error, NOT_SENT))


def _problem(headers: Mapping[str, str], content: bytes) -> dict[str, Any]:
    if "json" not in headers.get("content-type", ""):
        return {}
    try:
        found = read_json(content)
    except ServiceError:
        return {}
    return found if isinstance(found, dict) else {}
