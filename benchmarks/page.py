"""How soon the page is there and shows something: `python benchmarks/page.py`.

- from `elit app` to its word that the page is there, and to the first picture in a real browser;
- from a change of the slider to the first picture so far, and to both pictures (10 changes).

Of the start also the processor's time of the server's process and its worker, which other programs on the machine change
little (Linux).

Needs chromium, and playwright of the extra `dev`.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time

from playwright.sync_api import Page, sync_playwright

from elit.console import show
from timing import machine, processor_s, quartiles

CHANGES = 10
WATCH = """() => {
  window.first = null; window.last = null;
  for (const watcher of window.watchers ?? []) watcher.disconnect();  // those of the change before, which began earlier
  const began = performance.now(), low = document.querySelector('#low img'), figure = document.querySelector('#full');
  window.watchers = [
    new MutationObserver(() => { window.first ??= performance.now() - began; }),
    new MutationObserver(() => {
      if (document.body.dataset.drawing === 'no') window.last ??= performance.now() - began;
    }),
  ];
  window.watchers[0].observe(low, { attributeFilter: ['src'] });
  const slider = document.querySelector('#budget');
  slider.value = (Number(slider.value) + 1) % (Number(slider.max) + 1);
  document.body.dataset.drawing = 'asked';
  slider.dispatchEvent(new Event('input', { bubbles: true }));
  window.watchers[1].observe(document.body, { attributeFilter: ['data-drawing'] });
}"""


def waited(page: Page, condition: str, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(10)


def changes(page: Page) -> tuple[list[float], list[float]]:
    """Milliseconds from each change of the slider to the first picture, and to the last."""
    first, last = [], []
    for _ in range(CHANGES):
        page.evaluate(WATCH)
        waited(page, "window.last !== null")
        first.append(page.evaluate("window.first"))
        last.append(page.evaluate("window.last"))
    return first, last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model folder; the bundled model if none is given")
    options = parser.parse_args()
    words = ["--model", options.model] if options.model else []
    began = time.perf_counter()
    command = [sys.executable, "-m", "elit", "app", "--port", "0", *words]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        while (url := re.search(r"http://\S+:(\d+)", line := server.stderr.readline())) is None:
            assert line, "elit app has ended"
        took = time.perf_counter() - began
        show(f"{machine()}; elit app was up after {took:.1f} s, {processor_s(server.pid):.1f} s of the processor")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            opened = time.perf_counter()
            page.goto(url[0])
            waited(page, "Boolean(document.querySelector('#low img').src)")
            show(f"first picture {time.perf_counter() - opened:.2f} s after the page was asked for")
            waited(page, "document.body.dataset.drawing === 'no'")
            first, last = changes(page)
            browser.close()
        told = f"from a change to the first picture so far {quartiles(first)}, to both pictures {quartiles(last)}"
        show(f"{told}; {CHANGES} changes")
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
