#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["playwright==1.65.2"]
#
# [tool.uv]
# exclude-newer = "2026-11-16T00:00:00Z"
# ///
"""Take data/draw.png anew: draw.py's page on a desktop, with a 3.

    uv run tests/tools/screenshot.py

Needs data/mnist_cnn.pt and Debian's chromium.
"""

import math
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

REPO = Path(__file__).resolve().parents[2]


def three(x: float, y: float, side: float) -> list[tuple[float, float]]:
    """The stroke: two arcs, as places on a drawing at (x, y)."""
    places = []
    for middle, radius, start, end in (0.32, 0.15, -150, 80), (0.65, 0.18, -80, 150):
        for step in range(25):
            angle = math.radians(start + (end - start) * step / 24)
            across = 0.48 + 1.1 * radius * math.cos(angle)
            down = middle + radius * math.sin(angle)
            places.append((x + side * across, y + side * down))
    return places


def take(address: str, path: Path) -> None:
    with sync_playwright() as playwright:
        options = {"executable_path": "/usr/bin/chromium", "args": ["--no-sandbox"]}
        browser = playwright.chromium.launch(**options)
        page = browser.new_page(viewport={"width": 1120, "height": 630})
        page.goto(address)
        box = page.locator("#drawing").bounding_box()
        side = min(box["width"], box["height"])
        left = box["x"] + (box["width"] - side) / 2
        first, *others = three(left, box["y"], side)
        page.mouse.move(*first)
        page.mouse.down()
        for place in others:
            page.mouse.move(*place)
        page.mouse.up()
        expect(page.locator("#answer")).to_have_text("3")
        expect(page.locator("#hint")).to_contain_text("I read 3.")
        page.screenshot(path=path)


def main() -> None:
    command = ["uv", "run", "draw.py", "--port", "0", "--no-browser"]
    with subprocess.Popen(command, cwd=REPO, stdout=-1, text=True) as server:
        words = server.stdout.readline().split()
        try:
            if not words:
                sys.exit("error: draw.py did not start")
            take(words[4], REPO / "data/draw.png")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
