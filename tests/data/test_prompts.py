"""Embeddings of prompts: what the encoder says, kept in half precision, the same wherever the work was stopped."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from elit import UserError, prompt_tables
from elit.cli import main
from elit.data import prompts as module
from elit.data.emoji import load_emoji
from elit.data.images import LabelledImages
from elit.data.prompts import prepare_prompts, read_texts, told, with_prompts
from elit.prompt_tables import open_prompts
from elit.text_encoder import load_text_encoder
from tiny_text import WIDTH, save_encoder, tokenizer

TEXTS = ["red heart", "blue star of a fish", "star", "", "a red red star"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("text") / "encoder")


@pytest.fixture
def table(encoder: Path, tmp_path: Path) -> Path:
    prepare_prompts(TEXTS, load_text_encoder(str(encoder)), tmp_path / "prompts", tokens=4)
    return tmp_path / "prompts"


@torch.no_grad()
def by_hand(encoder: Path, text: str) -> torch.Tensor:
    """(T, D) of one text alone, without padding."""
    ids = tokenizer()(text)["input_ids"] or [0]
    return AutoModel.from_pretrained(encoder)(input_ids=torch.tensor([ids])).last_hidden_state[0]


def test_tokens_are_the_encoders_own_and_zero_beyond_the_text(encoder: Path, table: Path) -> None:
    found = open_prompts(table).of(torch.arange(5)).text
    for i, text in enumerate(TEXTS):
        if not text:
            continue
        count = min(4, len(text.split()))
        if len(text.split()) <= 4:  # one that was cut has seen fewer words
            torch.testing.assert_close(found.tokens[i, :count], by_hand(encoder, text), atol=2e-3, rtol=2e-3)
            torch.testing.assert_close(found.pooled[i], by_hand(encoder, text).mean(0), atol=2e-3, rtol=2e-3)
        assert found.mask[i].tolist() == [True] * count + [False] * (4 - count)
        assert not found.tokens[i, count:].any()


def test_without_tokens_the_mean_stands_for_the_whole(encoder: Path, tmp_path: Path) -> None:
    prepare_prompts(TEXTS, load_text_encoder(str(encoder)), tmp_path / "mean")
    found = open_prompts(tmp_path / "mean").of(torch.tensor([1])).text
    torch.testing.assert_close(found.tokens[0, 0], by_hand(encoder, TEXTS[1]).mean(0), atol=2e-3, rtol=2e-3)
    assert torch.equal(found.tokens[:, 0], found.pooled) and found.mask.all()
    assert set(load_file(tmp_path / "mean/part-00000.safetensors")) == {"pooled"}


def test_no_prompt_is_the_empty_one_whatever_the_number(table: Path) -> None:
    opened = open_prompts(table)
    told_3 = opened.of(torch.tensor([0, 5, 2]))
    assert torch.equal(told_3.text.pooled[1], opened.nothing.pooled)
    assert torch.equal(told_3.null().text.pooled, opened.nothing.pooled.expand(3, -1))
    assert torch.equal(opened.find(["", "star"]).text.tokens, opened.of(torch.tensor([5, 2])).text.tokens)
    joined = told_3.rows(torch.tensor([2])).joined(told_3.rows(torch.tensor([0])))
    assert torch.equal(joined.text.pooled, opened.of(torch.tensor([2, 0])).text.pooled)
    with pytest.raises(UserError, match="has no prompt 'stra'; did you mean star"):
        opened.find(["stra"])


def test_a_stopped_preparation_goes_on_and_ends_in_the_same_bytes(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of two prompts; the second part fails at first, and the first is not made again."""
    for where in (module, prompt_tables):
        monkeypatch.setattr(where, "PART", 2)
    made, fails = load_text_encoder(str(encoder)), [False]
    whole = made.encode
    calls: list[int] = []

    def encode(texts, tokens):  # type: ignore[no-untyped-def]
        calls.append(len(texts))
        if fails[0] and len(calls) == 3:
            raise KeyboardInterrupt
        return whole(texts, tokens)

    monkeypatch.setattr(made, "encode", encode)
    prepare_prompts(TEXTS, made, tmp_path / "straight", 4)
    fails[0] = True
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        prepare_prompts(TEXTS, made, tmp_path / "stopped", 4)
    with pytest.raises(UserError, match=r"has no part-00001.safetensors; the command that began"):
        open_prompts(tmp_path / "stopped")
    fails[0] = False
    calls.clear()
    prepare_prompts(TEXTS, made, tmp_path / "stopped", 4)
    assert calls == [1, 2, 1]  # no prompt, and the parts that were not there
    straight, stopped = ({p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("straight", "stopped"))
    assert straight == stopped
    assert open_prompts(tmp_path / "stopped").of(torch.tensor([4])).text.mask.all()


def test_the_names_of_the_emoji_come_with_the_package() -> None:
    table = open_prompts("emoji")
    assert table.texts == read_texts("emoji") and len(table) == len(load_emoji().names)
    near, far = (table.find([a, b]).text.pooled for a, b in (("red apple", "green apple"), ("red apple", "snowboarder")))
    assert torch.cosine_similarity(*near, dim=0) > torch.cosine_similarity(*far, dim=0) + 0.2


def pictures(count: int, labels: int) -> LabelledImages:
    numbers = torch.arange(count) % labels
    return LabelledImages(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), numbers, tuple("abcdefgh"[:labels]))


def test_prompts_are_of_pictures_or_of_labels_and_held_out_ones_are_spread(table: Path) -> None:
    opened = open_prompts(table)
    per_picture = with_prompts(pictures(5, 2), opened)
    assert per_picture.read(torch.tensor([4, 1]), [])[1].tolist() == [4, 1]
    per_label = with_prompts(pictures(20, 5), opened, held_out=0.25)
    assert per_label.read(torch.tensor([0, 3]), [])[1].tolist() == [0, 4]  # the 4th of the 20 is held out
    held = with_prompts(pictures(20, 5), opened, held_out=0.25, of_held_out=True)
    assert held.kept.tolist() == [3, 7, 11, 15, 19]
    assert sorted(held.kept.tolist() + per_label.kept.tolist()) == list(range(20))
    assert torch.equal(told(per_label, torch.tensor([-1])).text.pooled[0], opened.nothing.pooled)  # type: ignore[union-attr]
    with pytest.raises(UserError, match="holds 5 prompts for 7 pictures with 3 labels"):
        with_prompts(pictures(7, 3), opened)


def test_mistakes_are_sentences(encoder: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "long.txt").write_text("x" * 20_001)
    (tmp_path / "some.txt").write_text("star\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    cases = [
        ("empty.txt", encoder, "new", [], "holds no prompts; write one a line"),
        ("bytes.txt", encoder, "new", [], "is not a text file"),
        ("long.txt", encoder, "new", [], "line 1 of"),
        ("none.txt", encoder, "new", [], "is no file of prompts"),
        ("some.txt", tmp_path / "full", "new", [], "no text model could be loaded"),
        ("some.txt", tmp_path / "gone", "new", [], "there is no folder"),
        ("some.txt", encoder, "full", [], "holds other files, such as mine.txt"),
        ("some.txt", encoder, "prompts", [], "holds embeddings of other"),
        ("some.txt", encoder, "new", ["--tokens", "13"], "reads 12 tokens at most, not 13"),
    ]
    for source, model, out, more, sentence in cases:
        words = ["prepare", "prompts", str(tmp_path / source), "--encoder", str(model), "--out", str(tmp_path / out), *more]
        assert main(words) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert " ".join(sentence.split()) in said, (sentence, said)
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_files_that_were_changed_are_refused(table: Path) -> None:
    info = json.loads((table / "prompts.json").read_text())
    (table / "prompts.json").write_text(json.dumps(info | {"width": WIDTH + 1}))
    with pytest.raises(UserError, match=r"nothing.safetensors is not what prompts.json says"):
        open_prompts(table)
    (table / "prompts.json").write_text(json.dumps(info))
    part = table / "part-00000.safetensors"
    tensors = load_file(part)
    tensors["pooled"][2] = float("nan")
    save_file(tensors, part)
    with pytest.raises(UserError, match="holds values that are no numbers"):
        open_prompts(table).of(torch.tensor([2]))
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        open_prompts(table)


@pytest.mark.parametrize("change", ["star\nred heart\n", "".join(f"{text}\n" for text in [*TEXTS, "fish"]), "st\xe9r\n"])
def test_texts_that_were_changed_are_refused(table: Path, change: str) -> None:
    """They would be told the embeddings of others: of another order, of more, and what is no text at all."""
    (table / "texts.txt").write_bytes(change.encode("latin1"))
    with pytest.raises(UserError, match=r"texts\.txt was changed, .*prepare them again"):
        open_prompts(table).find(["star"])


def test_a_folder_that_is_written_anew_is_read_anew(encoder: Path, table: Path) -> None:
    """By the same process, which knows the old files."""
    before = open_prompts(table).find(["star"]).text.tokens
    shutil.rmtree(table)
    prepare_prompts(["star", *TEXTS[:2], *TEXTS[3:]], load_text_encoder(str(encoder)), table, tokens=4)
    assert torch.equal(open_prompts(table).find(["star"]).text.tokens, before)
    assert open_prompts(table).numbers["star"] == 0


def test_a_prompt_has_one_line_whatever_else_is_in_it(encoder: Path, tmp_path: Path) -> None:
    made, texts = load_text_encoder(str(encoder)), ["star", "red\x85heart\u2028\x0c", "fish"]
    prepare_prompts(texts, made, tmp_path / "odd", tokens=4)
    assert open_prompts(tmp_path / "odd").texts == texts
    with pytest.raises(UserError, match=r"the prompt 'a\\nstar' has several lines"):
        prepare_prompts(["red", "a\nstar"], made, tmp_path / "none", tokens=4)
    assert not (tmp_path / "none").exists()
