"""The explorer page in a real browser: pictures, places, words, two models."""

import numpy as np
from playwright.sync_api import expect

from devil import DeViL, Explanation
from devil.report.heatmap import colours, normalise, scale_of, upsample
from devil.types import ALL_LAYERS
from serve.pages import FOLDER

from .conftest import Opener

SEA = (FOLDER / "samples" / "sea.png").read_bytes()
NIGHT = (FOLDER / "samples" / "night.png").read_bytes()
PIXELS = """
(canvas) => [canvas.width, canvas.height,
  [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data]]
"""

FOCUSED = """
(() => {
  const one = document.activeElement;
  const near = [one, one.parentElement, one.nextElementSibling];
  return {
    what: one === document.body ? "BODY" : one.id || one.className || one.name || one.tagName,
    outlined: near.some((e) => e && getComputedStyle(e).outlineStyle !== "none"),
  };
})()
"""


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
    everywhere = explained(models["alpha"], SEA, words=8)
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
    words = everywhere.layers["layer2"].words[row][column]  # type: ignore[index]
    likely = visit.page.locator(".layer:has([value='layer2']) .likely span").all_inner_texts()
    assert likely == [word.word for word in words[:6]]  # type: ignore[index]
    visit.page.mouse.move(1, 1)
    expect(visit.page.locator(".readings h2")).to_have_text("In the whole picture")
    assert visit.asked("") == asked


def test_the_keyboard_reaches_everything(opened: Opener) -> None:
    visit = opened("sample=sea&layer=layer3")
    page = visit.page
    reached = set()
    page.locator("body").press("Tab")
    for _ in range(28):
        focused = page.evaluate(FOCUSED)
        assert focused["outlined"] or focused["what"] == "BODY", focused
        reached.add(focused["what"])
        page.keyboard.press("Tab")
    assert {"model", "beside", "file", "words", "prompt", "opacity", "stage"} <= reached, reached
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
