"""Pictures of the page for README.md and docs: `python benchmarks/screenshots.py` in a real browser, wide and narrow, light
and dark. Needs chromium, and playwright of the extra `dev`.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

DOCS = Path(__file__).parents[1] / "docs"
WAIT_MS = 300_000
SHOTS = {"page-light": (1280, 800, "light"), "page-dark": (400, 800, "dark")}
MORE = {"page-light-narrow": (400, 800, "light"), "page-dark-wide": (1280, 800, "dark")}


def shoot(browser: Browser, url: str, file: Path, width: int, height: int, scheme: str, strip: bool) -> None:
    """One picture of the page, once both pictures on it are drawn."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce")
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(url)
    while not page.evaluate("document.body.dataset.drawing === 'no'"):
        page.wait_for_timeout(200)
    if strip:
        page.click("#draw-strip")
        while page.evaluate("document.querySelectorAll('#strip img').length < Math.min(facts.levels.length, STRIP)"):
            page.wait_for_timeout(200)
        page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=file, full_page=True)
    context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DOCS, help="folder for the pictures")
    parser.add_argument("--all", action="store_true", help="also the narrow light one and the wide dark one")
    options = parser.parse_args()
    command = [sys.executable, "-m", "elit", "app", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = None
        while url is None:
            line = server.stderr.readline()
            assert line, "elit app has ended"
            url = re.search(r"http://\S+", line)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, (width, height, scheme) in (SHOTS | (MORE if options.all else {})).items():
                shoot(browser, url[0], options.out / f"{name}.png", width, height, scheme, strip=width > 600)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
