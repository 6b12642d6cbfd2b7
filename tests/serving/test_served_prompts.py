"""Transformers of diffusers, tiny, served by text: the pictures of `elit.sample` with the same prompts."""

import base64
import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser

import elit
from elit import Guidance, UserError, sample
from elit.cli import main
from elit.cost import count_flops
from elit.data.prompts import prepare_prompts
from elit.host_models import load_host_model
from elit.imprint import read_imprint
from elit.model_words import PromptWords
from elit.pixels import to_uint8
from elit.prompt_tables import PromptTable, open_prompts
from elit.recipe import Recipe
from elit.serving.engine import Engine, Order
from elit.serving.messages import Settings
from elit.serving.opened import opened
from elit.text_encoder import load_text_encoder
from serving import Running, reached, running, settled, shown
from tiny_runs import HOSTS, TEXTS, save_world
from tiny_text import WIDTH


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def table(world: Path) -> PromptTable:
    return open_prompts(world / "prompts")


@pytest.mark.parametrize("name", HOSTS)
def test_pictures_of_prompts_are_those_of_sample_whoever_else_is_served(world: Path, table: PromptTable, name: str) -> None:
    """Prompts of different lengths, budgets, times and guidance in one batch; alone to the bit."""
    model = load_host_model(world / name)
    guided = Recipe(steps=4, seed=2, shift=1.5, guidance=Guidance(2.0, weak_budget=0.25))
    orders = [
        Order(guided, table.find([TEXTS[1]] * 2)),
        Order(Recipe(sampler="heun", steps=3, seed=3, guidance=Guidance(3.0)), table.find([TEXTS[3]])),
        Order(Recipe(steps=5, seed=4), table.find([TEXTS[0]])),
        Order(guided, table.find([TEXTS[2]]), alone=True),
    ]
    levels, engine, ended = (4, 2, 1, 3), Engine(model, 16), {}
    for tick in itertools.count():
        if tick < len(orders):
            engine.join(tick, orders[tick])
        done = engine.step({number: levels[number] for number in engine.running})
        ended |= {number: progress.x for number, progress in done.items() if progress.ended}
        if len(ended) == len(orders):
            break
    for number, order in enumerate(orders):
        recipe, budget = order.recipe, levels[number] / model.latents
        course = (recipe.sampler, recipe.steps, budget, recipe.guidance, recipe.seed)
        expected = sample(model, order.labels, *course, shift=recipe.shift)
        torch.testing.assert_close(ended[number], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(ended[number], expected) or not order.alone
        other = sample(
            model, table.find([TEXTS[0] if number != 2 else TEXTS[1]] * len(expected)), *course, shift=recipe.shift
        )
        assert not torch.allclose(other, expected, atol=1e-3)  # it is told the prompt
    with pytest.raises(UserError, match="attention is told by models of this library"):
        engine.join(9, Order(guided, table.find([TEXTS[0]]), attention=True))


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[Running]:
    with running(world / "sd3", encoder=str(world / "encoder"), page=True) as found:
        yield found


def pixels(text: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))


def test_the_official_client_is_served_what_python_draws(server: Running, world: Path, table: PromptTable) -> None:
    """A prepared prompt, with its comma, and one that is embedded when it comes, as a folder would have kept it."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any")
    other = "a blue fish"
    prepare_prompts([other], load_text_encoder(str(world / "encoder")), world / "one", tokens=5)
    model, settings = load_host_model(world / "sd3"), {"seed": 7, "steps": 3, "alone": True, "budget": 0.5}
    for prompt, source in ((TEXTS[3], table), (other, open_prompts(world / "one"))):
        answer = client.images.generate(prompt=f" {prompt} ", n=2, extra_body=settings)
        guidance = Guidance(2.0)  # the run's own, as are the times
        told = source.find([prompt] * 2)
        expected = to_uint8(sample(model, told, steps=3, budget=0.5, guidance=guidance, seed=7, shift=1.5))
        for made, image in zip(answer.data, expected, strict=True):
            assert np.array_equal(pixels(made.b64_json), image.permute(1, 2, 0).numpy())
        said = answer.model_extra["elit"]
        assert said["budgets"] == [0.5] * 3 and said["imprint"]["prompts"] == [prompt] * 2 and said["gflops"] > 0
    with torch.device("meta"):
        dense = elit.elasticize(HOSTS["sd3"][0](**HOSTS["sd3"][1]), 1, 1, 2, anchor="none").requires_grad_(False)
    x, pooled = torch.zeros(1, 3, 8, 8, device="meta"), torch.zeros(1, WIDTH, device="meta")
    inputs = {"hidden_states": x, "encoder_hidden_states": torch.zeros(1, 5, WIDTH, device="meta"),
              "pooled_projections": pooled, "timestep": pooled[:, 0]}  # fmt: skip
    flops = 2 * 2 * 3 * count_flops(dense, 0.5, inputs)  # two pictures, two passes, three steps
    assert said["gflops"] == pytest.approx(flops / 1e9, rel=1e-6)
    facts = client.models.list().data[0].model_extra["elit"]
    assert facts["label_names"] == TEXTS and facts["steps"] == 25 and facts["guidance_scale"] == 2.0


def test_the_page_of_a_run_of_finetune(server: Running, browser: Browser, world: Path, table: PromptTable) -> None:
    """On a phone in the dark, by the keyboard: a prompt and a budget are chosen, and the picture is the one of Python."""
    context = browser.new_context(viewport={"width": 400, "height": 800}, color_scheme="dark")
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(server.url)
    reached(page, "facts !== null")
    page.evaluate("by('steps').value = 3")
    assert page.eval_on_selector_all("#label-0 option", "all => all.map(e => e.textContent)") == TEXTS
    assert page.get_by_role("combobox", name="Prompt").count() == 1 and page.is_disabled("#attention")
    assert page.text_content("#kind option[value=auto]") == "lowest budget, same text (autoguidance)"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    settled(page)
    assert page.input_value("#label-0") == TEXTS[3] and page.inner_text("#mistake") == ""
    assert f"{TEXTS[3]}, drawn at 2/4 of the latents" in str(page.get_attribute("#low img", "alt"))
    model = load_host_model(world / "sd3")
    for figure, budget in (("low", 0.5), ("full", 1.0)):
        told = table.find([TEXTS[3]])
        made = sample(model, told, steps=3, budget=budget, guidance=Guidance(2.0), seed=0, shift=1.5)
        assert np.array_equal(shown(page, figure), to_uint8(made)[0].permute(1, 2, 0).numpy())
    page.click("#draw-strip")
    reached(page, "document.querySelectorAll('#strip img').length === 4")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400 and not said
    context.close()


def test_budgets_fall_for_the_deadline_of_a_prompt(server: Running) -> None:
    body = {"prompt": TEXTS[0], "steps": 8, "seed": 1}
    assert server.ask({**body, "deadline_ms": 1e7})[1]["elit"]["budgets"] == [1.0] * 8
    assert server.ask({**body, "budget": 1 / 4})[1]["elit"]["budgets"] == [0.25] * 8
    low = server.ask({**body, "deadline_ms": 0.01})
    assert low[0] == 400 and "lowest budget, on its own" in low[1]["error"]["message"]


def test_prompts_that_cannot_be_drawn_are_told_in_a_sentence(server: Running) -> None:
    for body, said in [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": "a red heart of a blue fish"}, "the prompt has 7 tokens, and this model is told 5 at most"),
        ({"prompt": "red heart " * 390}, "the prompt has 780 tokens"),
        ({"prompt": "x" * 4001}, "at most 4000 characters"),
        ({"prompt": TEXTS[0], "attention": True, "alone": True}, "leave attention out"),
    ]:
        status, answer, _ = server.ask({**body, "steps": 2})
        assert status == 400 and said in answer["error"]["message"] and "\n" not in answer["error"]["message"]


def test_without_an_encoder_a_prompt_is_one_of_the_runs_own(world: Path, table: PromptTable) -> None:
    words = opened(Settings(model=str(world / "qwen")), "cpu").words
    torch.testing.assert_close(words.told(TEXTS[2], 3).condition.text.tokens, table.find([TEXTS[2]] * 3).text.tokens)
    with pytest.raises(UserError, match="this model has no prompt 'red haert'; did you mean red heart"):
        words.told("red haert", 1)
    many = PromptWords(replace(table, folder=world / "many"))
    many.table.__dict__["numbers"] = {f"prompt {i}": i for i in range(3000)}
    with pytest.raises(UserError, match="no prompt 'red heart'; there are 3,000, such as 'prompt 0'"):
        many.told("red heart", 1)


def test_what_cannot_be_served_is_a_sentence(
    world: Path, served_model: Path, tmp_path: Path, server: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    for settings, said in [
        (Settings(model=str(world / "untold")), "give them with --prompts"),
        (Settings(model=str(world / "sd3"), prompts=str(world / "wide-prompts")), "embeddings of 32 and, pooled, 32"),
        (Settings(model=str(world / "sd3"), prompts="emoji"), "embeddings of 384"),
        (Settings(model=str(world / "sd3"), encoder=str(world / "wide")), "is another encoder"),
        (Settings(model=str(world / "sd3"), encoder=str(world / "none")), "there is no folder"),
        (Settings(model=str(world / "sd3"), codec="ema"), "makes pixels"),
        (Settings(model=str(served_model), prompts=str(world / "prompts")), "--prompts is for a run of elit finetune"),
    ]:
        with pytest.raises(UserError, match=said):
            opened(settings, "cpu")
    told = opened(Settings(model=str(world / "untold"), prompts=str(world / "prompts")), "cpu").words
    assert told.names == tuple(TEXTS)
    labels = opened(Settings(model=str(served_model)), "cpu").words
    with pytest.raises(UserError, match="this model is told labels and no text: there is no label 'a red heart'"):
        labels.told("a red heart", 1)
    picture = tmp_path / "picture.png"
    made = server.ask({"prompt": TEXTS[0], "steps": 2, "seed": 1})[1]
    picture.write_bytes(base64.b64decode(made["data"][0]["b64_json"]))
    assert read_imprint(picture).prompts == (TEXTS[0],)
    assert main(["sample", "--from", str(picture), "--out", str(tmp_path / "out")]) == 2
    assert "give --model" in capsys.readouterr().err
    assert json.loads((world / "untold" / "config.json").read_text())["prompts"] is None
