"""What the job server's answers mean, with Ray's client replaced."""

from types import SimpleNamespace
from typing import Any

import pytest

from serve import jobs
from serve.jobs import Job, Jobs, JobServerError


class Client:
    """Ray's client of a server that answers as told, by the name of what is asked."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def answer(*_: Any, **fields: Any) -> Any:
            self.asked.append((name, fields))
            found = self.answers[name]
            if isinstance(found, Exception):
                raise found
            return found

        return answer


def asking(**answers: Any) -> tuple[Jobs, Client]:
    found, client = Jobs("http://127.0.0.1:9"), Client(**answers)
    found._client = client  # type: ignore[assignment]
    return found, client


def details(status: str, code: int | None = None) -> Any:
    return SimpleNamespace(status=SimpleNamespace(value=status), driver_exit_code=code)


def test_a_job_is_started_once() -> None:
    found, client = asking(submit_job=RuntimeError("Job with submission_id x already exists"))
    found.submit("x", "exec true", {"A": "b"})
    assert client.asked == [
        (
            "submit_job",
            {
                "entrypoint": "exec true",
                "submission_id": "x",
                "runtime_env": {"env_vars": {"A": "b"}},
            },
        )
    ]
    found, _ = asking(submit_job=RuntimeError("no room"))
    with pytest.raises(JobServerError, match="refused"):
        found.submit("x", "exec true", {})


def test_the_code_that_was_deployed_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of Ray's outlives the application; a folder of one machine is not there."""
    for deployed, carried in (("gcs://_ray_pkg_1.zip", True), ("/home/me", False), (None, False)):
        context = SimpleNamespace(runtime_env={"working_dir": deployed})
        monkeypatch.setattr(jobs.ray, "is_initialized", lambda: True)
        monkeypatch.setattr(jobs.ray, "get_runtime_context", lambda context=context: context)
        found, client = asking(submit_job="x")
        found.submit("x", "exec true", {})
        ((_, fields),) = client.asked
        assert ("working_dir" in fields["runtime_env"]) == carried
        assert fields["runtime_env"].get("working_dir", deployed) == deployed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (details("PENDING"), Job("queued")),
        (details("RUNNING"), Job("running")),
        (details("SUCCEEDED", 0), Job("succeeded", 0)),
        (details("FAILED", 137), Job("failed", 137)),
        (details("STOPPED"), Job("stopped")),
        (RuntimeError("Request failed with status code 404: no such job"), None),
    ],
)
def test_how_a_job_goes(answer: Any, expected: Job | None) -> None:
    found, _ = asking(get_job_info=answer)
    assert found.find("x") == expected


def test_a_job_that_is_gone_is_stopped_already() -> None:
    found, _ = asking(stop_job=RuntimeError("Request failed with status code 404: no such job"))
    found.stop("x")
    found, _ = asking(stop_job=RuntimeError("status code 500"))
    with pytest.raises(JobServerError):
        found.stop("x")


def test_a_cluster_without_a_dashboard_knows_of_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "find_dashboard", lambda: None)
    found = Jobs()
    assert found.find("x") is None
    with pytest.raises(JobServerError, match="cannot be reached"):
        found.check()
