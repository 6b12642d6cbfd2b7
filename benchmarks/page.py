"""How soon the page is there and shows something, and what the server adds to a request: `python benchmarks/page.py`.

- from `elit app` to its word that the page is there, and to the first picture in a real browser;
- from a change of the slider to the first picture so far, and to both pictures (10 changes);
- what a request takes beside its calls of the model: the client's time less `compute_ms`, and of that what the worker spends
  before and after the calls (100 requests of one step, one after another over one connection).

Of the start and of the requests also the processor's time of the server's process and its worker, which other programs on
the machine change little (Linux).

Needs chromium, and playwright of the extra `dev`.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from elit.console import show
from timing import machine

CHANGES, REQUESTS = 10, 100
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


def processor_s(pid: int) -> float:
    """Seconds of the processor that a process has had, and its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(processor_s(int(child)) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def spread(times: list[float]) -> str:
    """The median and the quartiles of milliseconds."""
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:.1f} ms ({low:.1f} to {high:.1f})"


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


def overheads(port: int) -> tuple[list[float], list[float], list[float]]:
    """Milliseconds of requests beside their calls, and of that inside the worker, while they are drawn; and of the calls."""
    connection = HTTPConnection("127.0.0.1", port)
    body = json.dumps({"prompt": "0", "steps": 1, "seed": 1, "quality": "high", "guidance_scale": 1, "deadline_ms": 1e8})
    whole, inside, calls = [], [], []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        connection.request("POST", "/v1/images/generations", body, {"content-type": "application/json"})
        told = json.loads(connection.getresponse().read())["elit"]
        whole.append(1000 * (time.perf_counter() - began) - told["compute_ms"])
        inside.append(told["queue_ms"] + told["drawing_ms"] - told["compute_ms"])
        calls.append(told["compute_ms"])
    return whole, inside, calls


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
        show(
            f"from a change to the first picture so far {spread(first)}, to both pictures {spread(last)}; {CHANGES} changes"
        )
        before = processor_s(server.pid)
        whole, inside, calls = overheads(int(url[1]))
        used = 1000 * (processor_s(server.pid) - before) / REQUESTS
        show(f"a request beside its calls: {spread(whole)}, in the worker {spread(inside)}; {REQUESTS} requests")
        show(
            f"of the processor a request has {used:.1f} ms; its calls take {statistics.median(calls):.1f} ms, at the median"
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
