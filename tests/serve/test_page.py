"""The explorer page in a real browser, asking the real service of two tiny models."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray.serve
from playwright.sync_api import Browser, Route, expect
from tiny import tiny_model

from devil import DeViL, Explanation
from devil.report.heatmap import colours, normalise, scale_of, upsample
from devil.saliency import ALL_LAYERS
from serve.app import app
from serve.pages import FOLDER
from serve.settings import Settings

from .chromium import Visit, chromium
from .conftest import SETTINGS

SEA = (FOLDER / "samples" / "sea.png").read_bytes()
NIGHT = (FOLDER / "samples" / "night.png").read_bytes()
PIXELS = """
(canvas) => [canvas.width, canvas.height,
  [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]]
"""
Opener = Callable[..., Visit]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DeViL]:
    """Two models that say different things."""
    found = {}
    for seed, name in enumerate(("alpha", "beta")):
        folder = tmp_path_factory.mktemp(name)
        tiny_model(folder, seed=seed).save_pretrained(folder / "model")
        found[name] = DeViL.from_pretrained(folder / "model")
        found[name].folder = folder / "model"  # type: ignore[attr-defined]
    return found


@pytest.fixture(scope="module")
def service(
    address: str, models: dict[str, DeViL], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where the page of a service with both models is."""
    folders = ",".join(f"{name}={model.folder}" for name, model in models.items())  # type: ignore[attr-defined]
    state = tmp_path_factory.mktemp("state")
    settings = Settings(model=folders, state=str(state), **SETTINGS)
    ray.serve.run(app(settings), name="page", route_prefix="/explorer")
    yield f"{address}/explorer"
    ray.serve.delete("page")


@pytest.fixture(scope="module")
def browser(service: str) -> Iterator[Browser]:
    """Started after the service, and closed before it: both run in this thread."""
    with chromium() as browser:
        yield browser


@pytest.fixture
def opened(browser: Browser, service: str) -> Iterator[Opener]:
    """Opens the page in a view; at the end nothing may have gone elsewhere or wrong."""
    visits: list[Visit] = []

    def open_page(view: str = "", **options: object) -> Visit:
        visits.append(Visit(browser, service, **options))
        return visits[-1].open(view)

    yield open_page
    for visit in visits:
        visit.close()


def explained(model: DeViL, picture: bytes, **options: object) -> Explanation:
    return model.explain(picture, **options)  # type: ignore[arg-type]


def test_a_dropped_picture_is_read_by_every_layer(opened: Opener, models: dict[str, DeViL]) -> None:
    visit = opened()
    expect(visit.page.locator(".drop-title")).to_be_visible()
    visit.drop("sea.png", SEA)
    visit.settled()
    whole = explained(models["alpha"], SEA, dense=False)
    for name, layer in whole.layers.items():
        assert layer.caption is not None
        assert visit.caption(name) == layer.caption.text
        share = 100 * layer.caption.token_probability
        shown = visit.page.locator(f".layer:has([value='{name}']) .sure").inner_text()
        assert abs(float(shown.removesuffix(" %")) - share) <= 0.51
    expect(visit.page.locator("#about-picture")).to_contain_text("sea.png, 160 × 160")
    visit.drop("night.png", NIGHT)
    expect(visit.page.locator("#about-picture")).to_contain_text("night.png")
    visit.settled()
    other = explained(models["alpha"], NIGHT, dense=False)
    assert visit.caption("layer2") == other.layers["layer2"].caption.text  # type: ignore[union-attr]


def test_a_chosen_file_and_a_file_that_is_no_picture(opened: Opener) -> None:
    visit = opened()
    visit.page.set_input_files(
        "#file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no"}
    )
    expect(visit.page.locator("#problem")).to_have_text(
        "no.png is not a picture that this browser can show."
    )
    visit.page.set_input_files("#file", FOLDER / "samples" / "night.png")
    visit.settled()
    expect(visit.page.locator("#problem")).to_be_hidden()


def test_pointing_tells_what_each_layer_says_there_without_asking_again(
    opened: Opener, models: dict[str, DeViL]
) -> None:
    visit = opened("sample=sea&layer=layer2")
    asked = visit.asked("")
    everywhere = explained(models["alpha"], SEA)
    row, column = 5, 1
    left, top, right, bottom = everywhere.cell("layer2", row, column)
    x, y = (left + right) / 2 / 160, (top + bottom) / 2 / 160
    box = visit.page.locator(".stage").bounding_box()
    assert box is not None
    visit.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    expect(visit.page.locator(".readings h2")).to_have_text("At this placerow 6, column 2")
    for name, layer in everywhere.layers.items():
        rows, columns = layer.grid
        assert layer.captions is not None
        at = layer.captions[row * rows // 8][column * columns // 8]
        assert at is not None and visit.caption(name) == at.text
    words = models["alpha"].vocabulary_saliency(SEA, layers="layer2")["layer2"].top[row][column]
    likely = visit.page.locator(".layer:has([value='layer2']) .likely span").all_inner_texts()
    assert likely == [word.word for word in words[: len(likely)]] and len(likely) == 6
    visit.page.mouse.move(1, 1)
    expect(visit.page.locator(".readings h2")).to_have_text("In the whole picture")
    assert visit.asked("") == asked


def test_the_keyboard_reaches_everything(opened: Opener) -> None:
    visit = opened("sample=sea&layer=layer3")
    page = visit.page
    reached = set()
    page.locator("body").press("Tab")
    for _ in range(40):
        focused = page.evaluate("document.activeElement.id || document.activeElement.className")
        reached.add(focused or page.evaluate("document.activeElement.name ?? ''"))
        outline = page.evaluate(
            "[document.activeElement, document.activeElement.parentElement,"
            "document.activeElement.nextElementSibling].some((e) => e &&"
            " getComputedStyle(e).outlineStyle !== 'none')"
        )
        assert outline or focused == "", focused
        page.keyboard.press("Tab")
    assert {"model", "beside", "file", "words", "prompt", "opacity", "stage"} <= reached
    stage = page.locator(".stage")
    stage.focus()
    stage.press("ArrowRight")  # from nowhere to the middle
    expect(page.locator(".readings h2 small")).to_have_text("row 2, column 2")
    stage.press("ArrowRight")
    stage.press("ArrowDown")
    expect(page.locator(".readings h2 small")).to_have_text("row 3, column 3")
    spoken = page.locator(".panel > [aria-live=polite]")
    expect(spoken).to_contain_text("Row 3, column 3. layer3: " + visit.caption("layer3"))
    for _ in range(9):
        stage.press("ArrowLeft")
    expect(page.locator(".readings h2 small")).to_have_text("row 3, column 1")
    stage.press("Escape")
    expect(page.locator(".readings h2")).to_have_text("In the whole picture")
    page.locator(".layer input[value=layer3]").focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator(".layer input[value=layer4]")).to_be_checked()


def test_words_get_a_map_for_every_layer_in_the_reports_colours(
    opened: Opener, models: dict[str, DeViL]
) -> None:
    visit = opened("sample=sea")
    page = visit.page
    page.fill("#words", "red circle,  a line , red circle")
    page.press("#words", "Enter")
    expect(page.locator(".tile:not(.waiting)")).to_have_count(8)
    assert page.locator(".map-row h3").all_inner_texts() == ["“red circle”", "“a line”"]
    queries = ["red circle", "a line"]
    maps = explained(models["alpha"], SEA, queries=queries, dense=False).layers
    page.click(".map-row:nth-child(2) .tile:nth-child(1)")
    expect(page.locator(".legend-title")).to_have_text("“a line” in layer2")
    for canvas, layer, query in (
        (page.locator(".stage canvas"), "layer2", "a line"),
        (page.locator(".tile canvas").nth(3), ALL_LAYERS, "red circle"),
    ):
        width, height, pixels = canvas.evaluate(PIXELS)
        drawn = np.reshape(pixels, (height, width, 4))[..., :3]
        values = normalise(maps[layer].saliency[query])
        expected = colours(upsample(values, height, width)).astype(int)
        assert np.abs(drawn - expected).max() <= 8 and np.abs(drawn - expected).mean() < 0.5
    label = scale_of(maps["layer2"].saliency["a line"]).label
    assert page.locator(".range").nth(4).inner_text() == label


def test_calibration_and_prompt_change_the_maps(opened: Opener, models: dict[str, DeViL]) -> None:
    visit = opened("sample=sea&words=red&map=red&layer=layer2")
    page = visit.page
    expect(page.locator(".tile:not(.waiting)")).to_have_count(4)
    for calibration in ("none", "mean"):
        asked = visit.asked("saliency")
        page.check(f"[value={calibration}]", force=True)
        options = {"queries": ["red"], "calibration": calibration, "dense": False}
        values = explained(models["alpha"], SEA, **options).layers["layer2"].saliency["red"]
        expect(page.locator(".range").first).to_have_text(scale_of(values).label)
        assert visit.asked("saliency") == asked + 1
    page.fill("#prompt", "a")
    page.press("#prompt", "Enter")
    options = {"queries": ["red"], "calibration": "mean", "prompt": "a", "dense": False}
    values = explained(models["alpha"], SEA, **options).layers["layer2"].saliency["red"]
    expect(page.locator(".range").first).to_have_text(scale_of(values).label)
    asked = visit.asked("saliency")
    page.check("[value=none]", force=True)
    page.fill("#prompt", "")
    page.press("#prompt", "Enter")
    visit.settled()
    assert visit.asked("saliency") == asked + 1  # of "none" without a prompt it knows already
    page.fill("#opacity", "20")
    style = "getComputedStyle(document.querySelector('.stage canvas')).opacity"
    assert page.evaluate(style) == "0.2"


def test_two_models_beside_each_other_at_the_same_place(
    opened: Opener, models: dict[str, DeViL]
) -> None:
    visit = opened("sample=sea&at=0.3000,0.3000&words=red&map=red&layer=layer4")
    page = visit.page
    page.select_option("#beside", "beta")
    expect(page.locator(".panel")).to_have_count(2)
    expect(page.locator(".tile:not(.waiting)")).to_have_count(8)
    visit.settled()
    said = []
    for index, model in enumerate(models.values()):
        found = explained(model, SEA).layers["layer2"].captions
        assert found is not None and found[2][2] is not None
        assert visit.caption("layer2", index) == found[2][2].text
        said.append(found[2][2].text)
    assert said[0] != said[1]
    boxes = [page.locator(".stage").nth(index).bounding_box() for index in range(2)]
    assert boxes[0] and boxes[1] and boxes[0]["y"] == boxes[1]["y"]
    page.mouse.click(boxes[1]["x"] + 0.7 * boxes[1]["width"], boxes[1]["y"] + 200)
    expect(page.locator(".cursor.held")).to_have_count(2)
    page.select_option("#beside", "")
    expect(page.locator(".panel")).to_have_count(1)


def test_a_link_restores_the_view_of_a_sample(opened: Opener) -> None:
    visit = opened("sample=sea")
    page = visit.page
    page.fill("#words", "red, fish & co")
    page.press("#words", "Enter")
    expect(page.locator(".tile:not(.waiting)")).to_have_count(8)
    page.check("[value=contrast]", force=True)
    page.locator(".layer input[value=layer3]").check(force=True)
    page.locator(".stage").press("ArrowUp")
    page.fill("#opacity", "30")
    visit.settled()
    expect(page.locator("#share button")).to_be_enabled()
    page.wait_for_function("location.hash.includes('opacity=30')")
    again = opened(page.url.partition("#")[2])
    expect(again.page.locator(".tile:not(.waiting)")).to_have_count(8)
    parts = (".readings", ".legend-title", ".maps")
    for part in parts:
        assert again.page.inner_text(part) == page.inner_text(part)
    assert again.page.input_value("#words") == "red, fish & co"
    assert again.page.input_value("#opacity") == "30"
    expect(again.page.locator("[value=contrast]")).to_be_checked()
    assert again.page.url == page.url


def test_a_link_restores_a_dropped_picture_and_its_captions(opened: Opener) -> None:
    visit = opened()
    visit.drop("mine.png", NIGHT)
    visit.settled()
    visit.page.locator(".stage").press("ArrowUp")
    expect(visit.page.locator("#share button")).to_be_enabled()
    visit.page.wait_for_function("location.hash.includes('kept=') && location.hash.includes('at=')")
    again = opened(visit.page.url.partition("#")[2])
    assert again.page.inner_text(".readings") == visit.page.inner_text(".readings")
    assert again.asked("explain") == again.asked("explanations") == 2  # nothing was computed


def test_a_link_whose_picture_is_gone_says_so(opened: Opener) -> None:
    visit = opened()
    visit.page.goto(f"{visit.address}/#kept=0123456789abcdef&words=red")
    visit.page.reload()
    expect(visit.page.locator("#problem")).to_contain_text("The picture of this link is gone")
    visit.complaints.clear()  # the browser itself notes each 404
    visit.drop("mine.png", NIGHT)
    visit.settled()
    expect(visit.page.locator("#problem")).to_be_hidden()
    assert visit.page.input_value("#words") == "red"


def test_a_narrow_screen_has_no_sideways_scrolling(opened: Opener) -> None:
    view = "sample=sea&words=red&words=a+rather+long+phrase+of+several+words&map=red&beside=beta"
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    for start in ("", view):
        visit = opened(start, **phone)
        assert visit.page.evaluate("document.documentElement.scrollWidth") == 360
        wide = visit.page.evaluate(
            "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right"
            " > 361 && !e.closest('.crowded, .stage, .frame')).map((e) => e.className)"
        )
        assert wide == []
    box = visit.page.locator(".stage").first.bounding_box()
    assert box is not None
    visit.page.locator(".stage").first.tap(position={"x": 0.7 * box["width"], "y": 100})
    expect(visit.page.locator(".cursor.held").first).to_be_visible()


def test_dark_is_dark_and_light_is_light(opened: Opener) -> None:
    def lightness(visit: Visit, what: str) -> float:
        colour = f"getComputedStyle(document.body).{what}.match(/\\d+/g).slice(0, 3).map(Number)"
        return sum(visit.page.evaluate(colour)) / 765

    for scheme, low, high in (("light", "color", "backgroundColor"),) + (
        ("dark", "backgroundColor", "color"),
    ):
        visit = opened("sample=night", color_scheme=scheme)
        assert lightness(visit, low) < 0.2 and lightness(visit, high) > 0.8


def test_a_busy_service_is_asked_again_after_the_time_it_named(opened: Opener) -> None:
    visit = opened()
    refused: list[str] = []

    def refuse_once(route: Route) -> None:
        if refused:
            route.continue_()
        else:
            refused.append(route.request.url)
            route.fulfill(status=429, headers={"Retry-After": "2"}, body="{}")

    visit.page.route("**/v1/explain", refuse_once)
    visit.drop("sea.png", SEA)
    expect(visit.page.locator("#busy")).to_contain_text("The service is busy. Trying again in")
    visit.settled()
    expect(visit.page.locator("#busy")).to_be_hidden()
    assert len(refused) == 1 and visit.asked("explain") == 3
    visit.complaints.clear()  # the browser itself notes the 429


def test_what_the_service_refuses_is_told_in_its_words(opened: Opener) -> None:
    visit = opened("sample=sea")
    visit.page.fill("#words", "word " * 100)
    visit.page.press("#words", "Enter")
    problem = visit.page.locator(".panel .problem [role=alert]")
    expect(problem).to_contain_text("tokens")
    visit.page.fill("#words", "red")
    visit.page.press("#words", "Enter")
    expect(visit.page.locator(".tile:not(.waiting)")).to_have_count(4)
    expect(problem).to_be_hidden()
    visit.complaints.clear()  # the browser itself notes the 422
