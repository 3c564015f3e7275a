"""Pictures of the explorer page, light, dark and on a phone: `screenshots.py ADDRESS FOLDER`.

The service at the address should have a model that is worth looking at, such as the demo's. Needs
Chromium and Playwright; a large picture comes with fewer colours, for it goes into the docs.
"""

import io
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

VIEW = (
    "layer=layer3&words=red circle&words=fish&map=red circle&prompt=a picture of a"
    "&at=0.7500,0.7500&sample=sea"
)
SHOTS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 1000}, "color_scheme": "dark"},
    "phone": {
        "viewport": {"width": 360, "height": 1180},
        "color_scheme": "light",
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
}
MOST_BYTES = 300_000
PATIENCE = 120_000
"""Milliseconds."""


def shoot(browser: Browser, address: str, options: dict[str, Any]) -> bytes:
    """One picture of the page, when all that it asked for has come."""
    page = browser.new_page(**options)
    page.set_default_timeout(PATIENCE)
    page.goto(f"{address.rstrip('/')}/#{quote(VIEW, safe='=&,')}")
    page.wait_for_selector(".likely span")
    expect(page.locator(".tile.waiting")).to_have_count(0)
    expect(page.locator(".panel[aria-busy=true]")).to_have_count(0)
    picture = page.screenshot()
    page.close()
    return picture


def main(address: str, folder: Path) -> None:
    """Write `explorer-*.png` into a folder."""
    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("there is no chromium on this machine; apt-get install chromium")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path, headless=True, args=["--no-sandbox", "--disable-gpu"]
        )
        for name, options in SHOTS.items():
            image = Image.open(io.BytesIO(shoot(browser, address, options))).convert("RGB")
            target = folder / f"explorer-{name}.png"
            image.save(target, optimize=True)
            if target.stat().st_size > MOST_BYTES:
                image.quantize(256).save(target, optimize=True)
            print(target, f"{target.stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
