"""The client and the command against the real application: answers equal the Python API's."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import encoded, picture

from devil import DecodingConfig, DeViL
from devil.client import AsyncClient, Client
from devil.command import main
from devil.errors import ImageError, ServiceError
from devil.explanation import Explanation

from .test_app import assert_equal

pytestmark = pytest.mark.live

PHOTOS = [
    picture("a red circle on the left side", side=96).resize((120, 96)),
    picture("a green line on the bottom side", side=80),
    picture("a blue square on the top side", side=72),
]


@pytest.fixture
def service(address: str) -> Any:
    with Client(address) as client:
        yield client


def same(found: Explanation, expected: Explanation) -> None:
    """Equal, but for the rounding of batches; and of a picture that is the same."""
    assert_equal(found.to_dict(), expected.to_dict())
    assert found.image is not None and expected.image is not None
    assert found.image.tobytes() == expected.image.tobytes()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_explain(service: Client, model: DeViL, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"photo.{kind.lower()}"
    path.write_bytes(encoded(PHOTOS[0], kind))
    asked: dict[str, Any] = {
        "layers": ["layer4", "all"],
        "queries": ["a red circle", "square"],
        "calibration": "contrast",
        "prompt": "a",
        "smoothing": 3,
    }
    found = service.explain(path, max_new_tokens=4, **asked)
    same(found, model.explain(path, decoding=DecodingConfig(max_new_tokens=4), **asked))
    same(service.explain(path), model.explain(path))


def test_explain_an_open_picture_and_bytes(service: Client, model: DeViL) -> None:
    image = PHOTOS[1].convert("L")
    same(service.explain(image, layers="all"), model.explain(image, layers="all"))
    content = encoded(PHOTOS[1])
    same(service.explain(content, layers="all"), model.explain(content, layers="all"))


def test_points_and_words(service: Client, model: DeViL) -> None:
    asked: dict[str, Any] = {"points": [(0.1, 0.95), (0.5, 0.5)], "words": 3}
    found = service.explain(encoded(PHOTOS[0]), **asked)
    same(found, model.explain(encoded(PHOTOS[0]), **asked))
    words = [cell for row in found.layers["layer4"].words or () for cell in row if cell]
    assert words and all(len(cell) == 3 for cell in words)


def test_caption_and_saliency(service: Client, model: DeViL) -> None:
    content = encoded(PHOTOS[0])
    same(service.caption(content, dense=False), model.explain(content, dense=False))
    found = service.saliency(content, "circle", layers=["layer3"])
    same(found, model.explain(content, queries="circle", layers=["layer3"], captions=False))


def test_many_pictures(service: Client, model: DeViL, tmp_path: Path) -> None:
    truncated = encoded(PHOTOS[0])[:600]
    images = [*map(encoded, PHOTOS), b"no picture", truncated, PHOTOS[2], tmp_path / "missing.png"]
    found = sorted(
        service.explain_many(images, group=3, layers=["all"], dense=False),
        key=lambda outcome: outcome.index,
    )
    assert [outcome.index for outcome in found] == list(range(7))
    for index in (0, 1, 2, 5):
        same(found[index].get(), model.explain(images[index], layers=["all"], dense=False))
    assert all(isinstance(found[index].error, ImageError) for index in (3, 4, 6))


def test_a_picture_that_the_service_alone_refuses(service: Client) -> None:
    """More pixels than it takes: an error of this one picture."""
    images = [Image.new("RGB", (1100, 1000)), PHOTOS[0]]
    found = {o.index: o for o in service.explain_many(images, layers="all", dense=False)}
    assert found[1].error is None
    error = found[0].error
    assert isinstance(error, ServiceError) and (error.status, error.field) == (422, "image")


def test_all_at_once(address: str, model: DeViL) -> None:
    images = [encoded(photo) for photo in PHOTOS]

    async def ask() -> list[Explanation]:
        async with AsyncClient(address) as client:
            asked = [client.explain(image, layers="layer4") for image in images * 3]
            return await asyncio.gather(*asked)

    for image, found in zip(images * 3, asyncio.run(ask()), strict=True):
        same(found, model.explain(image, layers="layer4"))


def test_models(service: Client, model: DeViL) -> None:
    (found,) = service.models()
    assert found == service.model(found.id)
    assert found.version == model.version and found.default
    shapes = {layer.name: (layer.channels, *layer.grid) for layer in found.layers}
    assert shapes == {name: tuple(shape) for name, shape in model.shapes.items()}


def test_kept_explanations(service: Client, tmp_path: Path) -> None:
    found = service.explain(PHOTOS[0], queries="circle", dense=False)
    assert found.id is not None
    assert service.explanation(found.id) == found
    png = service.explanation_png(found.id, tmp_path / "e.png")
    assert Image.open(png).size[0] > 500
    html = service.explanation_html(found.id, tmp_path / "e.html")
    assert "data:image/jpeg" in html.read_text()
    (outcome,) = service.explain_many([PHOTOS[0]], dense=False)
    assert service.explanation(outcome.get().id or "") == outcome.get()
    assert service.explain(PHOTOS[0], keep=False, dense=False).id is None


@pytest.mark.parametrize(
    ("asked", "status", "field"),
    [
        ({"layers": ["layer9"]}, 422, "layers"),
        ({"smoothing": 2}, 422, "smoothing"),
        ({"model": "nobody"}, 422, "model"),
        ({"points": [(2, 0)]}, 422, "points"),
    ],
)
def test_refusals(service: Client, asked: dict[str, Any], status: int, field: str) -> None:
    with pytest.raises(ServiceError) as caught:
        service.explain(PHOTOS[0], **asked)
    assert (caught.value.status, caught.value.field) == (status, field)


def test_what_is_not_there_and_what_is_too_large(service: Client) -> None:
    for ask in (service.explanation, service.model):
        with pytest.raises(ServiceError) as caught:
            ask("0" * 32)
        assert caught.value.status == 404
    with pytest.raises(ServiceError) as caught:
        service.explain(Image.effect_noise((400, 600), 90))
    assert caught.value.status == 413


def test_the_command_prints_the_same_here_and_there(
    address: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "photo.png"
    PHOTOS[0].save(path)
    asked = ["explain", str(path), "--query", "circle", "--layer", "layer4", "--point", ".5", ".5"]
    main([*asked, "--server", address])
    remote = capsys.readouterr().out
    main([*asked, "--model", str(model_folder)])
    assert capsys.readouterr().out == remote
    main(["models", "--server", address])
    remote = capsys.readouterr().out.splitlines()[1:]
    main(["models", "--model", str(model_folder)])
    assert capsys.readouterr().out.splitlines()[1:] == remote
