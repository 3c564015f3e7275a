"""Ray's job server, which the dashboard runs: submit a command, ask how it goes, stop it.

A job is a process of its own on the head node: it goes on when the application is restarted, and
ends with the cluster. What the commands do is theirs.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as LateError
from typing import Any, Literal, NamedTuple, TypeVar

import ray
import ray.experimental.internal_kv
import ray.job_submission
import requests

KEY = "dashboard"
"""Under which a cluster keeps its dashboard's address; the name of the space is the same."""
SECONDS = 20.0
"""How long the job server may take."""
THREADS = 4

Answer = TypeVar("Answer")
logger = logging.getLogger("ray.serve")


class JobServerError(Exception):
    """There is no job server, or it does not answer; the message is for clients."""


class _NoServerError(ConnectionError):
    """The cluster has no job server, so no job runs on it."""


class Job(NamedTuple):
    """How a job goes."""

    state: Literal["queued", "running", "succeeded", "failed", "stopped"]
    exit_code: int | None = None
    """Of a job that failed; None: not the command failed, but what ran it."""


_STATES: dict[str, Literal["queued", "running", "succeeded", "failed", "stopped"]] = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


class _Client(ray.job_submission.JobSubmissionClient):
    """Ray's client, which by itself would wait for ever for a server that is silent."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, **{"timeout": SECONDS, **options})


class Jobs:
    """The job server of this cluster, or of the address given. Its methods block."""

    def __init__(self, address: str = "") -> None:
        self.address = address
        self._client: _Client | None = None
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="jobs")

    def check(self) -> None:
        """Make sure that there is a job server.

        Raises:
            JobServerError: there is none.
        """
        self._ask(lambda client: client.get_version())

    def submit(self, name: str, command: str, environment: dict[str, str]) -> None:
        """Start a job, unless one of this name was started.

        Raises:
            JobServerError: it cannot be.
        """
        runtime_env: dict[str, Any] = {"env_vars": environment}
        if ray.is_initialized():
            # Code that the application was deployed with must outlive the application.
            deployed = ray.get_runtime_context().runtime_env.get("working_dir")
            if deployed and "://" in deployed:
                runtime_env["working_dir"] = deployed
        self._ask(
            lambda client: client.submit_job(
                entrypoint=command, submission_id=name, runtime_env=runtime_env
            ),
            allowed="already exists",
        )

    def find(self, name: str) -> Job | None:
        """How a job goes; None: this cluster knows of none, or runs without a job server.

        Raises:
            JobServerError: it cannot be asked.
        """
        try:
            details = self._ask(lambda client: client.get_job_info(name), allowed="status code 404")
        except JobServerError as error:
            if isinstance(error.__cause__, _NoServerError):
                return None
            raise
        if details is None:
            return None
        return Job(_STATES[str(details.status.value)], details.driver_exit_code)

    def stop(self, name: str) -> None:
        """Ask a job to stop, which takes a moment; none of that name is stopped already.

        Raises:
            JobServerError: it cannot be asked.
        """
        self._ask(lambda client: client.stop_job(name), allowed="status code 404")

    def _ask(self, question: Any, allowed: str | None = None) -> Any:
        """An answer; None where the server refuses with an `allowed` message."""
        future = self._pool.submit(self._call, question)
        try:
            return future.result(SECONDS)
        except LateError:
            future.cancel()
            raise JobServerError(f"Ray's job server did not answer in {SECONDS:g} s.") from None
        except RuntimeError as error:  # what the client makes of every refusal
            if allowed is not None and allowed in str(error):
                return None
            logger.error("Ray's job server refuses: %s", error)
            raise JobServerError("Ray's job server refused; its log has the reason.") from error
        except (ConnectionError, OSError, requests.RequestException) as error:
            self._client = None
            logger.error("Ray's job server cannot be reached: %s", error)
            raise JobServerError("Ray's job server cannot be reached.") from error

    def _call(self, question: Any) -> Any:
        if self._client is None:
            address = self.address or find_dashboard()
            if address is None:
                raise _NoServerError("this Ray runs without a dashboard")
            self._client = _Client(address)
        return question(self._client)


def find_dashboard() -> str | None:
    """The dashboard of the cluster that this process belongs to; None: it runs without."""
    if not ray.is_initialized():
        return None
    found = ray.experimental.internal_kv._internal_kv_get(KEY, namespace=KEY)
    return f"http://{found.decode()}" if found else None
