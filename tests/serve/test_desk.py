"""The desk: equal shares, refusals, and errors that stay with the picture that caused them."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import CAPTIONS, picture

from devil import DecodingConfig, DeViL
from devil.draft import Draft, prepare
from devil.errors import ConfigError, DataError, ImageError, LayerError
from devil.explanation import Explanation
from devil.question import Question
from serve import desk as desk_module
from serve.admission import BusyError, Pace
from serve.desk import Desk, weight_of

RED = picture("a red circle on the left side")
BLUE = picture("a blue square on the top side")
TOKENS = 5


def desk(turn: int = 8, wait: float = 1000.0) -> Desk:
    return Desk(turn_locations=turn, max_wait_seconds=wait)


def ask(
    desk: Desk, model: DeViL, image: Image.Image, owner: str, **question: Any
) -> Coroutine[Any, Any, Explanation]:
    asked = Question(**question)
    return desk.explain(model, lambda: image, asked, owner=owner, max_new_tokens=TOKENS)


def texts(found: Explanation) -> list[Any]:
    return [
        [layer.caption and layer.caption.text]
        + [c and c.text for row in layer.captions or () for c in row]
        for layer in found.layers.values()
    ]


def test_answers_are_those_of_the_python_api(model: DeViL) -> None:
    async def run() -> list[Explanation]:
        one = desk(turn=7)
        return await asyncio.gather(
            ask(one, model, RED, "a", queries=("red", "a circle")),
            ask(one, model, BLUE, "b", layers=("layer4",), points=((0.5, 0.5),), words=3),
            ask(one, model, BLUE, "b", queries=("red", "a circle")),
            ask(one, model, RED, "c", dense=False),
        )

    decoding = DecodingConfig(max_new_tokens=TOKENS)
    expected = [
        model.explain(RED, queries=["red", "a circle"], decoding=decoding),
        model.explain(BLUE, layers=["layer4"], points=[(0.5, 0.5)], words=3, decoding=decoding),
        model.explain(BLUE, queries=["red", "a circle"], decoding=decoding),
        model.explain(RED, dense=False, decoding=decoding),
    ]
    for found, own in zip(asyncio.run(run()), expected, strict=True):
        assert texts(found) == texts(own)
        for name, layer in own.layers.items():
            for query, values in layer.saliency.items():
                assert found.layers[name].saliency[query] == pytest.approx(values, abs=1e-3)


def test_a_small_request_does_not_wait_for_a_big_one(model: DeViL) -> None:
    order = []

    async def noted(name: str, request: Coroutine[Any, Any, Explanation]) -> None:
        await request
        order.append(name)

    async def run() -> None:
        one = desk(turn=8)
        big = [noted(f"big {i}", ask(one, model, RED, "big")) for i in range(6)]
        tasks = [asyncio.create_task(request) for request in big]
        while one.pace.rate is None:  # the big one is being read
            await asyncio.sleep(0.001)
        small = ask(one, model, BLUE, "small", layers=("layer4",), points=((0.5, 0.5),))
        tasks.append(asyncio.create_task(noted("small", small)))
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert order.index("small") <= 1, order


def test_turns_are_shared_by_owners_whatever_they_bring(
    model: DeViL, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[dict[str, int]] = []
    read = desk_module._read

    def counted(taken: Any) -> None:
        turns.append({})
        for job, parts in taken:
            rows = sum(part.stop - part.start for part in parts)
            turns[-1][job.owner] = turns[-1].get(job.owner, 0) + rows
        read(taken)

    monkeypatch.setattr(desk_module, "_read", counted)

    async def run() -> None:
        one = desk(turn=12)
        small = [ask(one, model, BLUE, f"small {i}", layers=("layer4",)) for i in range(2)]
        await asyncio.gather(*[ask(one, model, RED, "big") for _ in range(3)], *small)

    asyncio.run(run())
    # Requests arrive one after another: what counts is a turn in which all have enough to read.
    assert {"big": 4, "small 0": 4, "small 1": 4} in turns
    assert all(sum(turn.values()) == 12 for turn in turns[:-1])  # what is left over is used
    locations = sum(shape.locations for shape in model.shapes.values())
    last = model.shapes[model.layers[-1]].locations
    assert sum(turn.get("big", 0) for turn in turns) == 3 * (
        locations + last + len(model.layers) + 1
    )


def test_turns_are_shorter_if_much_is_asked_of_each_row(
    model: DeViL, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = prepare(model, Question(queries=CAPTIONS))
    weight = weight_of(asked, TOKENS)
    sizes, read = [], desk_module._read

    def counted(taken: Any) -> None:
        sizes.append(sum(part.size for _, parts in taken for part in parts))
        read(taken)

    monkeypatch.setattr(desk_module, "_read", counted)
    one = desk(turn=2 * weight + 1)
    asyncio.run(ask(one, model, RED, "a", layers=("layer4",), queries=CAPTIONS))
    assert weight >= 2 and max(sizes) == 2
    sizes.clear()
    one = desk(turn=2 * weight + 1)
    asyncio.run(ask(one, model, RED, "a", layers=("layer4",)))
    assert max(sizes) > 2


def test_errors_stay_with_their_picture(model: DeViL) -> None:
    white = Image.new("RGB", (64, 64), "white")

    def refuse_plain(_: object, given: tuple[torch.Tensor]) -> None:
        if any(image.std(dim=(1, 2)).max() < 1e-3 for image in given[0]):
            raise ImageError("the picture is plain")

    assert model.backbone is not None
    hook = model.backbone.register_forward_pre_hook(refuse_plain)

    async def run() -> list[Any]:
        one = desk()
        return await asyncio.gather(
            ask(one, model, RED, "a", layers=("layer4",)),
            ask(one, model, white, "b", layers=("layer4",)),
            ask(one, model, RED, "c", layers=("layer9",)),
            one.explain(model, lambda: RED, Question(), owner="d", max_new_tokens=200),
            ask(one, model, BLUE, "e", layers=("layer4",)),
            return_exceptions=True,
        )

    first, bad, unknown, long, last = asyncio.run(run())
    hook.remove()
    assert isinstance(first, Explanation) and isinstance(last, Explanation)
    assert isinstance(bad, ImageError)
    assert isinstance(unknown, LayerError)
    assert isinstance(long, ConfigError)


def test_what_would_wait_too_long_is_refused(model: DeViL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "finish", Pace.rest)  # 100 rows a second, whatever happens

    async def run() -> None:
        one = desk(turn=4)
        one.pace.rate = 100.0
        big = [asyncio.create_task(ask(one, model, RED, "big")) for _ in range(4)]
        while one.waiting < 300:
            await asyncio.sleep(0.001)
        one.max_wait_seconds = 0.5
        with pytest.raises(BusyError) as refused:
            await ask(one, model, BLUE, "late")
        assert 0 < refused.value.seconds <= 0.5
        with pytest.raises(BusyError):  # before it is opened
            await one.explain(model, lambda: pytest.fail("opened"), Question(), owner="late")
        # Others delay a small one by no more than what it brings itself.
        await ask(one, model, BLUE, "small", layers=("layer4",), points=((0.1, 0.1),))
        assert not any(task.done() for task in big)
        await asyncio.gather(*big)
        assert one.waiting == 0

    asyncio.run(run())


def test_requests_that_are_given_up_leave_no_work(model: DeViL) -> None:
    async def run() -> None:
        one = desk(turn=4)
        task = asyncio.create_task(ask(one, model, RED, "gone"))
        while one.pace.rate is None:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert one.waiting == 0
        found = await ask(one, model, BLUE, "next", layers=("layer4",))
        assert found.layers["layer4"].caption is not None

    asyncio.run(run())


def test_a_fault_of_the_model_ends_the_request(model: DeViL) -> None:
    assert model.backbone is not None

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    hook = model.backbone.register_forward_pre_hook(fail)

    async def run(one: Desk) -> Explanation:
        return await ask(one, model, RED, "a", layers=("layer4",))

    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(run(desk()))
    hook.remove()
    assert asyncio.run(run(desk())).layers["layer4"].caption is not None


def test_other_queries_take_turns_and_are_counted(
    model: DeViL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "finish", Pace.rest)  # 100 rows a second, whatever happens

    async def run() -> None:
        one = desk(turn=16)
        one.pace.rate = 100.0
        others = [
            asyncio.create_task(ask(one, model, RED, f"o{i}", queries=("red", f"a{i}")))
            for i in range(8)
        ]
        while len(one._jobs) < 8:
            await asyncio.sleep(0.001)
        one.max_wait_seconds = 0.5
        with pytest.raises(BusyError):  # one row, but behind a turn of each of the others
            await ask(one, model, BLUE, "small", layers=("layer4",), points=((0.1, 0.1),))
        await asyncio.gather(*others)

    asyncio.run(run())


def test_decoded_pictures_do_not_pile_up(model: DeViL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "OPEN_AT_ONCE", 3)
    decoded = most = 0

    async def run() -> None:
        nonlocal most
        one = desk(turn=4)

        def opened() -> Image.Image:
            nonlocal decoded
            decoded += 1
            return RED

        async def look() -> None:
            nonlocal most
            while True:
                most = max(most, sum(job.picture is not None for job in one._jobs))
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        question = Question(layers=("layer4",))
        requests = [
            one.explain(model, opened, question, owner=f"{i}", max_new_tokens=2) for i in range(12)
        ]
        found = await asyncio.gather(*requests)
        looking.cancel()
        assert len(found) == 12 and not one._jobs

    asyncio.run(run())
    assert decoded == 12 and 1 <= most <= 3


def test_an_explanation_that_cannot_be_made_fails_alone(
    model: DeViL, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Draft.explanation

    def explanation(draft: Draft) -> Explanation:
        if draft.size == (24, 24):
            raise DataError("a map is not finite")
        return made(draft)

    monkeypatch.setattr(Draft, "explanation", explanation)

    async def run() -> list[Any]:
        one = desk(turn=64)
        images = (RED, RED.resize((24, 24)), BLUE)
        asked = [ask(one, model, image, f"{i}") for i, image in enumerate(images)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, bad, last = asyncio.run(run())
    assert isinstance(first, Explanation) and isinstance(last, Explanation)
    assert isinstance(bad, DataError)
