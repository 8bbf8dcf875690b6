"""Takes page.png: the page with an answer and a comparison. Beside a running server:

python docs/pictures/page.py http://127.0.0.1:8000 docs/pictures/page.png
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

WIDTH, HEIGHT = 1120, 900
COLOURS = 256


def main(url: str, output: Path) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light", reduced_motion="reduce"
        )
        page.set_default_timeout(60_000)
        page.goto(url)
        page.locator("[data-example='china.jpg']").click()
        expect(page.locator("#label")).to_have_text("church", timeout=60_000)
        page.locator("#stages [value='2']").check()
        page.locator("#compare").click()
        expect(page.locator("#compare")).to_have_text("Compare again", timeout=60_000)
        page.evaluate("document.activeElement.blur()")
        height = page.locator("#command").evaluate("band => Math.floor(band.offsetTop) - 24")
        shot = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    few = picture.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)
    few.save(output, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
