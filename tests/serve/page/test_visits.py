"""The explorer page in a real browser: links, screens, and a service that says no."""

import re

from playwright.sync_api import Route, expect

from serve.pages import FOLDER

from .chromium import Visit
from .conftest import Opener

SEA = (FOLDER / "samples" / "sea.png").read_bytes()
NIGHT = (FOLDER / "samples" / "night.png").read_bytes()


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
    expect(page).to_have_url(re.compile("opacity=30"))
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
    expect(visit.page).to_have_url(re.compile("at=.*kept=\\w+"))
    again = opened(visit.page.url.partition("#")[2])
    assert again.page.inner_text(".readings") == visit.page.inner_text(".readings")
    assert (again.asked("explanations"), again.asked("explain")) == (2, 0)  # nothing is computed


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
    view = "sample=sea&words=red&words=a+rather+long+line&map=red&beside=beta"
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

    schemes = {"light": ("color", "backgroundColor"), "dark": ("backgroundColor", "color")}
    for scheme, (low, high) in schemes.items():
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
