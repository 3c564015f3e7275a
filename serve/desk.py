"""The desk: pictures of concurrent requests share the model's batches, location by location.

Each turn reads so many rows of open drafts (`devil.draft`), fewer if many tokens run behind each.
Rows that ask the same queries can be read together; among those, every request gets an equal share
of a turn, and what a small one leaves goes to the others. So fifty small requests do not wait for a
big one, nor it for them. Who would wait for too long is refused at once (`serve.admission`).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from PIL import Image

from devil.config import DecodingConfig
from devil.decoding import check_length
from devil.draft import Asked, Draft, Rows, prepare
from devil.explanation import Explanation
from devil.model import DeViL
from devil.picture_features import image_features, of_picture
from devil.question import Question
from devil.reading import read_rows
from devil.types import ALL_LAYERS
from serve import metrics
from serve.admission import Pace, load_ahead

PICTURES_AT_ONCE = 8
"""Pictures that pass the backbone between two turns, at most."""
OPEN_AT_ONCE = 2 * PICTURES_AT_ONCE
"""Decoded pictures that wait for the backbone, at most: each may have 100 million pixels."""
STRETCH = 1.25
"""A turn takes so many times its rows if nothing is left over then: few rows are read slowly."""
ROW_TOKENS = 64
"""A row behind whose prefix more tokens run, of captions and queries, counts as several."""


@dataclass(eq=False, kw_only=True)
class Job:
    """A picture that is waiting or being read."""

    model: DeViL
    asked: Asked
    longest: int
    owner: str
    rows: int
    """Rows left, a guess until the draft is there."""
    done: asyncio.Future[Explanation]
    came: float
    turn: int
    """The last turn of its kind."""
    picture: Image.Image | None = None
    """There from its decoding to its features, for pictures are large."""
    passed: asyncio.Event = field(default_factory=asyncio.Event)
    """Its picture is no longer needed."""
    draft: Draft | None = None
    explanation: Explanation | None = None
    failure: Exception | None = None

    @property
    def kind(self) -> Hashable:
        """Jobs of equal kinds can be read together."""
        return kind_of(self.model, self.asked, self.longest)

    @property
    def weight(self) -> int:
        """As how many usual rows each of its rows counts; the same for all of a kind."""
        return weight_of(self.asked, self.longest)

    @property
    def load(self) -> int:
        """Work left, in usual rows."""
        return self.rows * self.weight

    @property
    def ready(self) -> bool:
        """Whether something can be done for it."""
        return self.picture is not None or self.draft is not None


def kind_of(model: DeViL, asked: Asked, longest: int) -> Hashable:
    """Rows of equal kinds can be read together."""
    return id(model), asked.plan.queries, longest


class Desk:
    """Explains pictures for many at once; lives in an event loop, works in one thread."""

    def __init__(self, *, turn_locations: int, max_wait_seconds: float) -> None:
        """Open the desk.

        Args:
            turn_locations: usual rows of one turn.
            max_wait_seconds: a picture that others would delay for longer is refused.
        """
        self.turn_locations, self.max_wait_seconds = turn_locations, max_wait_seconds
        self.pace = Pace()
        self._jobs: list[Job] = []
        self._pictures = asyncio.Semaphore(OPEN_AT_ONCE)
        self._turn = 0
        # Told in the thread itself, for OpenMP's number of threads is the caller's alone.
        self._thread = ThreadPoolExecutor(
            1, "desk", torch.set_num_threads, (torch.get_num_threads(),)
        )
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Rows that are yet to have their turn."""
        return sum(job.rows for job in self._jobs)

    async def explain(
        self,
        model: DeViL,
        picture: Callable[[], Image.Image],
        question: Question,
        *,
        owner: str,
        max_new_tokens: int = 50,
    ) -> Explanation:
        """Explain a picture.

        Args:
            model: answers, to the end, whatever takes its place meanwhile.
            picture: opens it, in RGB; called in a thread, unless the picture is refused.
            question: what is asked.
            owner: pictures of equal owners share one share of the turns.
            max_new_tokens: longest caption.

        Raises:
            LayerError, QueryError, ConfigError: it cannot be answered; says why, and what can.
            ImageError: the picture cannot be opened.
            BusyError: others would delay it for too long.
        """
        loop = asyncio.get_running_loop()
        asked = await loop.run_in_executor(None, _prepare, model, question, max_new_tokens)
        rows = rows_of(model, asked)
        load = rows * weight_of(asked, max_new_tokens)
        kind = kind_of(model, asked, max_new_tokens)
        ahead = load_ahead(self._jobs, kind, owner, load, self.turn_locations)
        self.pace.admit(ahead, self.waiting + rows, self.max_wait_seconds)
        job = Job(
            model=model,
            asked=asked,
            longest=max_new_tokens,
            owner=owner,
            rows=rows,
            done=loop.create_future(),
            came=time.monotonic(),
            turn=self._turn,
        )
        self._jobs.append(job)
        try:
            async with self._pictures:
                job.picture = await loop.run_in_executor(None, picture)
                if self._worker is None or self._worker.done():
                    self._worker = loop.create_task(self._work())
                await job.passed.wait()
            return await job.done
        finally:
            if job in self._jobs:  # given up
                self._jobs.remove(job)

    async def _work(self) -> None:
        """Turn after turn, until nothing is left."""
        try:
            while any(job.ready for job in self._jobs):
                await self._step()
        except Exception as error:  # a fault of ours must not let requests wait for ever
            for job in self._jobs:
                job.failure = error
                job.passed.set()
            self._close(list(self._jobs))
        finally:
            self.pace.rest()
            metrics.waiting(0)

    async def _step(self) -> None:
        """Open pictures that have come, then read a turn's rows."""
        loop = asyncio.get_running_loop()
        self.pace.begin()
        metrics.waiting(self.waiting)
        new = _in_turns([job for job in self._jobs if job.picture is not None])[:PICTURES_AT_ONCE]
        if new:
            with metrics.timed("backbone"):
                await loop.run_in_executor(self._thread, _open, new)
            for job in new:
                job.picture = None
                job.passed.set()
            self._close(new)
        taken = self._next_turn()
        assert new or taken, "jobs that nothing can be done for"
        if taken:
            rows = sum(part.size for _, parts in taken for part in parts)
            load = rows * taken[0][0].weight
            self.pace.read(load)
            with metrics.timed("translate"):
                await loop.run_in_executor(self._thread, _read, taken)
            self.pace.finish()
            metrics.batched(rows, load / self.turn_locations)
            self._close([job for job, _ in taken])

    def _next_turn(self) -> "list[tuple[Job, list[Rows]]]":
        """Rows of the kind that has waited longest, in equal shares of the owners."""
        jobs = [job for job in self._jobs if job.draft is not None]
        if not jobs:
            return []
        oldest = min(jobs, key=lambda job: job.turn)
        self._turn += 1
        owners: dict[str, list[Job]] = {}
        for job in jobs:
            if job.kind == oldest.kind:
                owners.setdefault(job.owner, []).append(job)
        taken: list[tuple[Job, list[Rows]]] = []
        room = max(1, self.turn_locations // oldest.weight)
        total = sum(job.rows for own in owners.values() for job in own)
        if total <= STRETCH * room:
            room = max(room, total)
        shares = sorted(owners.values(), key=lambda own: sum(job.rows for job in own))
        for left, own in zip(range(len(shares), 0, -1), shares, strict=True):
            share = -(-room // left)
            for job in own:
                assert job.draft is not None
                first = not job.draft.taken
                parts = job.draft.take(min(share, room))
                count = sum(rows.size for rows in parts)
                if count:
                    taken.append((job, parts))
                    if first:
                        metrics.spent("queue", time.monotonic() - job.came)
                job.turn = self._turn
                job.rows, share, room = job.draft.waiting, share - count, room - count
        return taken

    def _close(self, jobs: Sequence[Job]) -> None:
        """Hand over what is finished or has failed."""
        for job in jobs:
            if job.explanation is None and job.failure is None:
                continue
            if job in self._jobs:
                self._jobs.remove(job)
            if job.done.done():  # given up
                continue
            if job.failure is not None:
                job.done.set_exception(job.failure)
            elif job.explanation is not None:
                job.done.set_result(job.explanation)


def _prepare(model: DeViL, question: Question, longest: int) -> Asked:
    check_length(model.language_model, model.translator.config.prefix_length, longest)
    return prepare(model, question)


def rows_of(model: DeViL, asked: Asked) -> int:
    """How many rows a picture takes, to a few."""
    question, rows = asked.question, 0
    for layer in asked.layers:
        shape = model.shapes[model.layers[-1] if layer == ALL_LAYERS else layer]
        some = len(question.points)
        some = shape.locations if question.everywhere else min(some, shape.locations)
        rows += shape.locations if question.queries else some
        rows += question.captions
    return rows


def weight_of(asked: Asked, longest: int) -> int:
    """As how many usual rows each of a picture's rows counts."""
    return max(1, round((longest + asked.plan.tokens) / ROW_TOKENS))


def _in_turns(jobs: Sequence[Job]) -> list[Job]:
    """One of each owner, then the next of each."""
    count: Counter[str] = Counter()
    ranked = []
    for place, job in enumerate(jobs):
        ranked.append((count[job.owner], place, job))
        count[job.owner] += 1
    return [job for _, _, job in sorted(ranked, key=lambda one: one[:2])]


def _open(jobs: Sequence[Job]) -> None:
    """One backbone pass for the pictures of each model; what fails together is tried alone."""
    for model in {id(job.model): job.model for job in jobs}.values():
        own = [job for job in jobs if job.model is model]
        try:
            pictures = [job.picture for job in own if job.picture is not None]
            features = image_features(model, pictures)
            for i, (job, picture) in enumerate(zip(own, pictures, strict=True)):
                job.draft = Draft(model, of_picture(features, i), picture.size, job.asked)
                job.rows = job.draft.rows
                _finish(job)
        except Exception as error:
            _fail(own, error, lambda job: _open([job]))


def _read(taken: Sequence[tuple[Job, list[Rows]]]) -> None:
    """Read a turn's rows; what fails together is tried alone."""
    first = taken[0][0]
    try:
        rows = [part for _, parts in taken for part in parts]
        read_rows(first.model, rows, DecodingConfig(max_new_tokens=first.longest))
        for job, _ in taken:
            _finish(job)
    except Exception as error:
        parts = dict(taken)
        _fail([job for job, _ in taken], error, lambda job: _read([(job, parts[job])]))


def _fail(jobs: Sequence[Job], error: Exception, alone: Callable[[Job], None]) -> None:
    if len(jobs) == 1:
        jobs[0].failure = error
        return
    for job in jobs:
        alone(job)


def _finish(job: Job) -> None:
    if job.draft is not None and job.draft.finished:
        try:
            job.explanation = job.draft.explanation()
        except Exception as error:  # such as a map that is not finite: of this picture alone
            job.failure = error
