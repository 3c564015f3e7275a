"""A job server for tests: it takes jobs, runs none, and answers as it is told."""

from serve.jobs import Job, Jobs, JobServerError

NOBODY = "http://127.0.0.1:9"
"""Where no job server is."""


class Server(Jobs):
    """A job server that answers, or takes a job and does not say so."""

    def __init__(self) -> None:
        super().__init__(NOBODY)
        self.silent = False
        self.stubborn = False
        """Jobs do not stop."""
        self.asked: list[str] = []
        self.known: dict[str, Job] = {}

    def check(self) -> None:
        """It is there."""

    def submit(self, name: str, command: str, environment: dict[str, str]) -> None:
        """Take a job."""
        self.asked.append(name)
        if self.silent:
            raise JobServerError("late")
        self.known[name] = Job("running")

    def find(self, name: str) -> Job | None:
        """How a job goes."""
        return self.known.get(name)

    def stop(self, name: str) -> None:
        """Stop it, unless jobs are stubborn."""
        if not self.stubborn:
            self.known[name] = Job("stopped")
