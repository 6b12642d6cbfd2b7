"""The page in a real Chromium: slide, wait, and the picture is the one that Python makes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from elit import Guidance, load_model, sample
from elit.cli import main
from elit.pixels import to_uint8
from serving import Running, reached, running, settled, shown

STEPS, SEED, HEART = 4, 11, 51
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def server(served_model: Path) -> Iterator[Running]:
    with running(served_model, page=True, deadline_ms=3.6e6, drain_s=5.0) as found:
        yield found


@pytest.fixture
def page(server: Running, browser: Browser) -> Iterator[Page]:
    """The page on a phone's width, drawn once. No request leaves this host, and nothing is said on the console."""
    context = browser.new_context(viewport={"width": 400, "height": 800}, accept_downloads=True, color_scheme="dark")
    opened = context.new_page()
    opened.set_default_timeout(WAIT_MS)
    asked: list[str] = []
    said: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(server.url)
    reached(opened, "facts !== null")
    opened.evaluate(f"() => {{ by('steps').value = {STEPS}; by('seed').value = {SEED}; by('guidance').value = 1.5; }}")
    opened.evaluate("changed()")
    settled(opened)
    yield opened
    assert asked and all(url.startswith((server.url, "data:", "blob:")) for url in asked)
    assert not said
    context.close()


def expected(model: Path, budget: float, guidance: Guidance = Guidance(1.5)) -> np.ndarray:
    made = sample(load_model(model), [HEART], steps=STEPS, budget=budget, guidance=guidance, seed=SEED)
    return to_uint8(made)[0].permute(1, 2, 0).numpy()


def test_the_slider_draws_the_same_noise_anew_by_the_keyboard_alone(page: Page, served_model: Path) -> None:
    assert np.array_equal(shown(page, "low"), expected(served_model, 4 / 16))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "budget"
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    settled(page)
    assert "15/16 of the latents" in str(page.get_attribute("#budget", "aria-valuetext"))
    assert np.array_equal(shown(page, "low"), expected(served_model, 15 / 16))
    assert np.array_equal(shown(page, "full"), expected(served_model, 1.0))
    assert "at 15/16" in page.inner_text("#status") and "GFLOPs" in page.inner_text("#low figcaption")


def test_guidance_and_attention(page: Page, served_model: Path) -> None:
    page.click("summary")
    page.select_option("#kind", "auto")
    page.check("#attention")
    settled(page)
    weak = Guidance(1.5, weak_budget=1 / 16, weak_label="same")
    assert np.array_equal(shown(page, "low"), expected(served_model, 4 / 16, weak))
    assert page.is_visible("#low canvas") and page.evaluate("document.querySelector('#low canvas').width") == 16
    page.fill("#steps", "1000")
    settled(page)
    assert "Steps" in page.inner_text("#mistake") and page.get_attribute("#mistake", "role") == "alert"


def test_a_download_is_drawn_again_to_the_byte(page: Page, served_model: Path, tmp_path: Path) -> None:
    with page.expect_download() as download:
        page.click("#low a")
    picture = tmp_path / download.value.suggested_filename
    assert picture.name == f"heart-4-of-16-seed-{SEED}.png"
    download.value.save_as(picture)
    assert main(["sample", "--from", str(picture), "--model", str(served_model), "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / picture.name).read_bytes() == picture.read_bytes()


def test_every_budget_is_drawn(page: Page) -> None:
    page.click("#draw-strip")
    reached(page, "document.querySelectorAll('#strip img').length === 16")
    texts = page.eval_on_selector_all("#strip img", "images => images.map(image => image.alt)")
    assert (
        texts[0] == "at 1/16 of the latents"
        and len({*page.locator("#strip img").evaluate_all("a => a.map(i => i.src)")}) > 8
    )


def test_a_screen_reader_and_a_phone_find_everything(page: Page) -> None:
    """Every field has a name, pictures say what they are, nothing is wider than the screen, and letters stand out."""
    unnamed = page.evaluate("[...document.querySelectorAll('input, select')].filter(e => !e.labels.length).map(e => e.id)")
    assert unnamed == [] and page.get_by_role("slider", name="Budget").count() == 1
    assert "heart, drawn at 4/16" in str(page.get_attribute("#low img", "alt"))
    assert page.get_attribute("#status", "aria-live") == "polite" and page.get_attribute("html", "lang") == "en"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        for place in ("body", "#budget-said", "#status", "button", ".hint", "figcaption span"):
            assert page.evaluate(CONTRAST, place) >= 4.5, (scheme, place)


def test_labels_of_several_factors_have_a_list_for_each(browser: Browser, factored_model: Path) -> None:
    """With "any" in each; what leaves everything open is told."""
    with running(factored_model, page=True, drain_s=5.0) as server:
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(server.url)
        reached(page, "facts !== null")
        settled(page)
        assert page.eval_on_selector_all("select.label", "all => all.map(e => e.labels[0].textContent)") == [
            "Picture of",
            "with",
        ]
        assert page.evaluate("label()") == "heart/noto" and page.input_value("#budget") == "0"
        assert "heart, noto, drawn at 1/4" in str(page.get_attribute("#low img", "alt"))
        page.select_option("#label-0", "food-fruit")
        page.select_option("#label-1", "*")
        settled(page)
        assert page.evaluate("label()") == "food-fruit/*" and page.inner_text("#mistake") == ""
        model, steps = load_model(factored_model), 3
        names = page.evaluate("facts.label_names")
        made = sample(model, [names.index("food-fruit/*")], steps=steps, budget=1.0, guidance=Guidance(2.0), seed=0)
        assert np.array_equal(shown(page, "full"), to_uint8(made)[0].permute(1, 2, 0).numpy())
        page.select_option("#label-0", "*")
        settled(page)
        assert "leaves everything open" in page.inner_text("#mistake")
        page.close()


CONTRAST = """place => {
  const luminance = text => text.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
  const element = document.querySelector(place);
  let ground = element;
  while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)') ground = ground.parentElement;
  const pair = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(luminance);
  return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
}"""
