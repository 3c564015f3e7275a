"""Debian's Chromium, driven by Playwright, and what every visit of a page must not do."""

import base64
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Request, expect, sync_playwright

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 60_000
"""Milliseconds: a busy machine takes its time."""
VIOLATIONS = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) => violations.push(event.blockedURI));
"""
DROP = """
([name, text]) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type: "image/png" }));
  for (const kind of ["dragover", "drop"]) {
    const event = new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true });
    document.querySelector("main").dispatchEvent(event);
  }
}
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser with a profile of its own; skips the test where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no chromium on this machine: the explorer page is not tested in a browser")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that is open, and all that it asked for and complained about."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.address = address
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE)
        self.context.add_init_script(VIOLATIONS)
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)

    def _hear(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, view: str = "") -> "Visit":
        """Open the page in a view: the part of a link after its `#`."""
        self.page.goto(f"{self.address}/#{view}")
        expect(self.page.locator("#model option")).not_to_have_count(0)
        if "sample=" in view or "kept=" in view:
            self.settled()
        return self

    def settled(self) -> "Visit":
        """Wait until there are captions, and nothing is being asked."""
        self.page.wait_for_selector(".panel[aria-busy=false] .sure:not(:empty)")
        expect(self.page.locator(".panel[aria-busy=true]")).to_have_count(0)
        return self

    def drop(self, name: str, content: bytes) -> None:
        """Drop a file on the page."""
        self.page.evaluate(DROP, [name, base64.b64encode(content).decode()])

    def asked(self, route: str) -> int:
        """How many requests went to a route of the API."""
        return sum(
            request.url.startswith(f"{self.address}/v1/{route}") for request in self.requests
        )

    def caption(self, layer: str, panel: int = 0) -> str:
        """What stands as a layer's caption."""
        row = self.page.locator(".panel").nth(panel).locator(f".layer:has([value='{layer}'])")
        return row.locator(".layer-caption").text_content() or ""

    def close(self) -> None:
        """Leave, and see that nothing was asked of another host, refused or complained about."""
        violations = self.page.evaluate("window.violations")
        hosts = [r.url for r in self.requests if not r.url.startswith((self.address, "blob:"))]
        self.context.close()
        found = (hosts, violations, self.complaints)
        assert found == ([], [], []), found
