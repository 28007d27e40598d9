"""Photographs a playground: light on a desk, and dark on a phone. Run in the environment that has Playwright.

Usage: ``python -m tests.e2e.playground_camera URL FILE``
"""

import base64
import os
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect, sync_playwright

from tests.e2e.playground_checks import FLAGS

WIDTH, HEIGHT, PHONE = 1280, 800, (390, 844)


def photograph(browser: Browser, url: str, scheme: Any, size: tuple[int, int]) -> bytes:
    """A picture of the page after a stream, with the answer in sight."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": size[0], "height": size[1]})
    page = context.new_page()
    page.goto(f"{url}/playground")
    page.get_by_label("prompt").fill("A weekend by a lake, by train")
    page.get_by_label("mode", exact=True).select_option(label="research")
    page.get_by_label("days", exact=True).fill("30")
    page.locator("#send").click()
    expect(page.locator("#health")).to_have_text("Busy")
    page.get_by_label("mode", exact=True).select_option(label="stream")
    page.get_by_label("days", exact=True).fill("3")
    page.locator("#send").click()
    expect(page.locator("#status")).to_have_text("200 OK", timeout=30_000)
    page.wait_for_timeout(1_600)  # for the state to be asked for once more
    page.evaluate("scrollTo(0, innerWidth < 800 ? document.getElementById('response').offsetTop - 12 : 0)")
    picture: bytes = page.screenshot()
    context.close()
    return picture


def main(url: str, file: str) -> None:
    """Take both pictures, and lay the phone over the desk's corner."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ["PLAYGROUND_CHROMIUM"], args=FLAGS)
        desk, phone = photograph(browser, url, "light", (WIDTH, HEIGHT)), photograph(browser, url, "dark", PHONE)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        sources = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in (desk, phone)]
        page.set_content(
            f"""<body style="margin: 0; overflow: hidden"><img src="{sources[0]}" style="display: block">
            <img src="{sources[1]}" style="position: absolute; right: 26px; bottom: -24px; width: 256px;
            border-radius: 24px; border: 5px solid #30363a; box-shadow: 0 14px 44px rgb(0 0 0 / 35%)">"""
        )
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        Path(file).write_bytes(page.screenshot())
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
