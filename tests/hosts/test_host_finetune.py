"""`elit finetune`: transformers of diffusers, tiny, trained by the loop that trains our own models."""

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import elit
from elit import UserError
from elit.backbones.hosts.model import FORMS, HostModel, pack, unpack
from elit.cli import main
from elit.codec import Pixels
from elit.condition import Prompts, Text
from elit.data.opening import load_images, open_data
from elit.data.prompts import prepare_prompts, with_prompts
from elit.flow import TimeLaw, shifted
from elit.host_export import LORA_FILE, others_of
from elit.host_folders import save_elastic
from elit.host_models import (
    HostCheckpoint,
    describe_checkpoint,
    drawn_transformer,
    find_host,
    load_host_model,
    read_transformer,
)
from elit.lora import Lora, add_lora
from elit.pixels import to_float
from elit.prompt_tables import open_prompts
from elit.sampling import image_noise
from elit.serving.messages import Settings
from elit.serving.opened import opened
from elit.text_encoder import load_text_encoder
from elit.training.batch import draw_batch
from elit.training.host_config import HostTrainConfig, load_host_config
from elit.training.host_run import HostJob, check_widths, finetune
from elit.training.step import make_state, train_step
from ranks import run_ranks, start_ranks, wait_for
from tiny_hosts import SIZES, TINY
from tiny_text import WIDTH, save_encoder, tokenizer

CPU = torch.device("cpu")
SD3 = {
    **SIZES, "sample_size": 8, "in_channels": 3, "out_channels": 3, "num_layers": 4, "joint_attention_dim": WIDTH,
    "caption_projection_dim": 32, "pooled_projection_dim": WIDTH, "pos_embed_max_size": 6, "qk_norm": "rms_norm",
}  # fmt: skip
QWEN = {
    **SIZES, "in_channels": 12, "out_channels": 3, "num_layers": 4, "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
TEXTS = [f"{color} {thing}" for color in ("red", "blue", "a") for thing in ("heart", "star", "fish", "of")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, a prompt for each, and an SD3 and a Qwen-Image with their weights."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    for i in range(12):
        file = folder / "pictures" / "ab"[i // 6] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8).numpy()).save(file)
    (folder / "captions.txt").write_text("\n".join(TEXTS) + "\n")
    prepare_prompts(TEXTS, load_text_encoder(str(save_encoder(folder / "encoder"))), folder / "prompts", tokens=3)
    for name, kind, sizes in (
        ("sd3", diffusers.SD3Transformer2DModel, SD3),
        ("qwen", diffusers.QwenImageTransformer2DModel, QWEN),
    ):
        torch.manual_seed(1)
        made = kind(**sizes)
        with torch.no_grad():
            for name_of, parameter in made.named_parameters():
                if parameter.ndim < 2 and "norm" not in name_of:
                    parameter.normal_(std=0.1)
        made.save_pretrained(folder / name)
    return folder


def options(world: Path, out: Path, **values: Any) -> list[str]:
    given = {
        "host.transformer": world / "sd3", "data.source": world / "pictures", "data.size": 8,
        "prompts.source": world / "prompts", "out": out, "steps": 4, "batch_size": 4, "device": "cpu",
        "optimizer.lr": 3e-3, "optimizer.muon_lr": 0.02, "log.preview_every": 0, "budget.lowest": 0.25,
        **{key.replace("__", "."): value for key, value in values.items()},
    }  # fmt: skip
    return [
        f"--{key}={'null' if value is None else json.dumps(value) if isinstance(value, list) else value}"
        for key, value in given.items()
    ]


ELASTIC = {"elastic__head": 1, "elastic__tail": 1, "elastic__window": 2}


def config_of(world: Path, out: Path, **values: Any) -> HostTrainConfig:
    return load_host_config(None, options(world, out, **values))


def started(config: HostTrainConfig) -> tuple[Any, Any, Any]:
    """The state of a run, its parts, and its data."""
    job = HostJob(config)
    found = job.look_around(CPU)
    parts = job.take_apart(CPU, found)
    return make_state(parts.start), parts, found.data


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def prompts_of(world: Path, *numbers: int) -> Prompts:
    return open_prompts(world / "prompts").of(torch.tensor(numbers))


# The model


@pytest.mark.parametrize("name", FORMS)
def test_a_host_is_given_what_its_pipeline_gives_it(name: str) -> None:
    """Of squares of 2 x 2 values, of time and of text; and what comes back is a velocity of the picture's shape."""
    transformer = TINY[name].made()
    model = HostModel(transformer, (8, 12))
    width, pooled = model.form.widths(transformer.config)
    torch.manual_seed(2)
    text = Text(torch.randn(2, 5, width), torch.ones(2, 5, dtype=torch.bool), torch.randn(2, pooled or 3))
    x, t = torch.randn(2, model.input.channels, 8, 12), torch.tensor([0.25, 0.75])
    tokens = x
    if model.form.packed:
        kind = diffusers.FluxPipeline if "Flux" in name else diffusers.QwenImagePipeline
        tokens = kind._pack_latents(x, 2, x.shape[1], 8, 12)
    told: dict[str, Any] = {"hidden_states": tokens, "encoder_hidden_states": text.tokens, "return_dict": False}
    if name == "SD3Transformer2DModel":
        told |= {"pooled_projections": text.pooled, "timestep": torch.tensor([250.0, 750.0])}
    elif name == "FluxTransformer2DModel":
        ids = diffusers.FluxPipeline._prepare_latent_image_ids(2, 4, 6, "cpu", torch.float32)
        told |= {"pooled_projections": text.pooled, "timestep": t, "img_ids": ids, "txt_ids": torch.zeros(5, 3)}
    else:
        told |= {"encoder_hidden_states_mask": text.mask.long(), "timestep": t, "img_shapes": [[(1, 4, 6)]] * 2}
    with torch.no_grad():
        made = transformer(**told)[0]
        if model.form.packed:
            made = unpack(made, 8, 12)
            assert torch.equal(pack(made), transformer(**told)[0])
        assert torch.equal(model(x, t, Prompts(text, text.each(lambda one: one[0]))), made)


def test_what_a_model_is_not_told_is_refused() -> None:
    model = HostModel(TINY["SD3Transformer2DModel"].made(), (8, 8))
    with pytest.raises(UserError, match="is told Prompts"):
        model(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    with pytest.raises(UserError, match="cannot be cut into patches of 2 x 2"):
        HostModel(TINY["SD3Transformer2DModel"].made(), (8, 9))
    with pytest.raises(UserError, match="more than the 16 patches a side"):
        HostModel(TINY["SD3Transformer2DModel"].made(), (8, 34))
    with pytest.raises(UserError, match="can be made elastic, and cannot be trained here; those that can: SD3"):
        HostModel(TINY["WanTransformer3DModel"].made(), (8, 8))


# The objective


def test_the_loss_is_the_flows_and_the_distance_to_the_frozen_original(world: Path, tmp_path: Path) -> None:
    """Both written out for a batch of mixed budgets; at the full budget a fresh conversion is the original."""
    state, parts, data = started(config_of(world, tmp_path, budget__mixed=0.5, flow__shift=2.22, **ELASTIC))
    assert parts.start.aims.distill == 20  # the paper's
    batch = draw_batch(parts.draws, data, 3)
    assert sorted(set(batch.budget.tolist())) == [0.25, 0.75, 1.0] or len(set(batch.budget.tolist())) == 3
    with torch.no_grad():
        summands = state.objective.summands(state.model, batch)
        dense = read_transformer(find_host(str(world / "sd3")))
        told = batch.labels.text
        args = {"encoder_hidden_states": told.tokens, "pooled_projections": told.pooled, "timestep": 1000 * batch.flow.t}
        original = dense(batch.flow.x_t, **args).sample.double()
        velocity = torch.stack(
            [state.model(batch.flow.x_t[i : i + 1], batch.flow.t[i : i + 1], batch.labels.rows(torch.tensor([i])), b)[0]
             for i, b in enumerate(batch.budget.tolist())]
        ).double()  # fmt: skip
    torch.testing.assert_close(
        summands["flow"].double(), (velocity - batch.flow.velocity).square().mean(), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        summands["distillation"].double(), 20 * (velocity - original).square().mean(), rtol=1e-5, atol=0
    )
    full = velocity[[i for i, b in enumerate(batch.budget.tolist()) if b == 1]]
    same = original[[i for i, b in enumerate(batch.budget.tolist()) if b == 1]]
    assert (full - same).abs().max() < 1e-4 < (velocity - original).abs().max()
    assert not any(p.requires_grad for p in state.objective.teacher.parameters())


def test_times_are_shifted_and_prompts_dropped(world: Path, tmp_path: Path) -> None:
    """t' = s t / (1 + (s - 1) t); a dropped prompt is the empty one. All else of the batch stays what it was."""
    plain = config_of(world, tmp_path, prompts__dropout=0.0)
    _, parts, data = started(plain)
    _, other, _ = started(config_of(world, tmp_path, prompts__dropout=1.0, flow__shift=2.22))
    a, b = draw_batch(parts.draws, data, 1), draw_batch(other.draws, data, 1)
    torch.testing.assert_close(b.flow.t, 2.22 * a.flow.t / (1 + 1.22 * a.flow.t))
    assert torch.equal(b.labels.text.pooled, data.prompts.nothing.pooled.expand(4, -1))
    assert not torch.equal(a.labels.text.pooled, b.labels.text.pooled)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shifted(shifted(t, 2.22), 1 / 2.22), t)
    assert all(torch.equal(x.flow.velocity, a.flow.velocity) for x in (b,))
    law = TimeLaw.UNIFORM  # P(t' > s) = P(t > s / (shift + (1 - shift) s)), here 1 - that
    from elit.flow import FlowPath
    from elit.training.flows import share_above

    drawn = shifted(torch.rand(200_000, generator=torch.Generator().manual_seed(0)), 2.22)
    assert abs((drawn > 0.6).float().mean() - share_above(FlowPath.LINEAR, law, 0.6, 2.22)) < 5e-3


def test_the_interface_learns_first(world: Path, tmp_path: Path) -> None:
    state, parts, data = started(config_of(world, tmp_path, finetune__interface_first=2, **ELASTIC))
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    for step in range(3):
        train_step(parts.rules, state, draw_batch(parts.draws, data, step))
        moved = {name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])}
        if step < 2:
            assert moved and all(name.startswith("transformer.elit.") for name in moved)
    assert any("transformer_blocks" in name for name in moved)


def test_loras_leave_the_transformer_as_it_is(world: Path, tmp_path: Path) -> None:
    """Fresh they change nothing; trained, a checkpoint holds them and the interface and nothing else."""
    config = config_of(world, tmp_path / "run", lora__rank=2, steps=3, **ELASTIC)
    state, _, data = started(config)
    dense = HostModel(read_transformer(find_host(str(world / "sd3"))), (8, 8))
    x, t, told = torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.8]), data.told(torch.tensor([0, 1]))
    with torch.no_grad():
        torch.testing.assert_close(state.model(x, t, told), dense(x, t, told), rtol=1e-4, atol=1e-4)
    last = finetune(config)
    kept = weights(last)
    assert all(name.startswith("transformer.elit.") or ".lora_" in name for name in kept)
    assert sum("to_q.lora_B" in name for name in kept) == 4
    trained = load_host_model(tmp_path / "run")
    of_base = {
        name.replace(".base_layer", ""): p for name, p in trained.transformer.state_dict().items() if ".lora_" not in name
    }
    assert all(torch.equal(of_base[name], value) for name, value in dense.transformer.state_dict().items())
    with torch.no_grad():
        assert (trained(x, t, told) - dense(x, t, told)).abs().max() > 1e-3
    assert kept["transformer.transformer_blocks.0.attn.to_q.lora_B.elit.weight"].abs().max() > 0
    served = opened(Settings(model=str(tmp_path / "run")), "cpu")  # by its own prompts, pixels and guidance
    assert (
        served.words.names == tuple(TEXTS) and served.card.encoding == Pixels() and served.card.sampling.guidance_scale == 3
    )
    assert served.flops[4] > served.flops[1] > 0


# Runs


def kill_at(folder: Path, process: int) -> None:
    """SIGKILL as soon as a checkpoint is there."""
    while not folder.is_dir():
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    assert wait_for([process]) == [-signal.SIGKILL]


@pytest.mark.parametrize("lora", [0, 2], ids=["whole", "lora"])
def test_a_killed_run_goes_on_to_the_same_bytes(world: Path, tmp_path: Path, lora: int) -> None:
    """Elastic, distilled, with mixed budgets, the interface first, by Muon."""
    values = {
        **ELASTIC, "lora__rank": lora, "steps": 10, "log__checkpoint_every": 2, "log__keep": 9, "budget__mixed": 0.5,
        "finetune__interface_first": 3, "optimizer__name": "muon", "prompts__held_out": 0.25,
    }  # fmt: skip
    run, log = tmp_path / "killed", tmp_path / "log"

    def elit_finetune() -> None:
        sys.exit(main(["finetune", *options(world, run, **values)]))

    kill_at(run / "checkpoints" / "step_00000004", start_ranks(1, elit_finetune, log)[0])
    assert not (run / "checkpoints" / "step_00000010").exists()
    assert run_ranks(1, elit_finetune, log) == [0], log.read_text()
    straight = finetune(config_of(world, tmp_path / "straight", **values))
    for folder in (run / "checkpoints").iterdir():
        for file in ("model.safetensors", "training.json", "config.json"):
            assert (folder / file).read_bytes() == (straight.parent / folder.name / file).read_bytes(), (folder, file)


def test_two_processes_train_as_one(world: Path, tmp_path: Path) -> None:
    """Sharded: the same weights up to the order of sums."""
    values = {**ELASTIC, "steps": 3, "budget__mixed": 0.5}
    one = finetune(config_of(world, tmp_path / "one", **values))
    log = tmp_path / "log"
    codes = run_ranks(2, lambda: sys.exit(main(["finetune", *options(world, tmp_path / "two", **values)])), log)
    assert codes == [0, 0], log.read_text()
    two = weights(tmp_path / "two" / "checkpoints" / one.name)
    # AdamW moves a weight by up to 3 steps x 3e-3, whose sign is that of a gradient that may be all but nothing
    torch.testing.assert_close(two, weights(one), rtol=1e-3, atol=2e-4)


def test_a_drawn_transformer_is_trained_and_its_run_is_known(world: Path, tmp_path: Path) -> None:
    """Nothing elastic, from a config.json alone, with a sheet of samples; another seed or prompts are another run."""
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((world / "qwen" / "config.json").read_text())
    values = {"host__transformer": tmp_path / "bare", "host__fresh": True, "steps": 2, "log__preview_every": 2}
    last = finetune(config_of(world, tmp_path / "run", **values))
    assert (tmp_path / "run" / "previews" / "step_00000002.png").is_file()
    loaded = load_host_model(tmp_path / "run").transformer
    assert all(torch.equal(p, weights(last)[f"transformer.{name}"]) for name, p in loaded.named_parameters())
    with pytest.raises(UserError, match="holds a run of another config"):
        finetune(config_of(world, tmp_path / "run", **values, seed=5))
    prepare_prompts(TEXTS[::-1], load_text_encoder(str(world / "encoder")), tmp_path / "turned", tokens=3)
    with pytest.raises(UserError, match=r"prompts.source is .* there and"):
        finetune(config_of(world, tmp_path / "run", **values, prompts__source=tmp_path / "turned"))


# Pipelines


def test_an_exported_run_is_a_pipeline_that_draws_what_the_run_does(world: Path, tmp_path: Path) -> None:
    """By diffusers' own sampler at its own steps, dense, and elastic after one line of ours, at every budget."""
    finetune(config_of(world, tmp_path / "run", **ELASTIC))
    for words in ([], ["--overwrite"]):
        assert (
            main(["export", str(tmp_path / "run"), "--pipeline", "--dtype", "fp32", "--out", str(tmp_path / "pipe"), *words])
            == 0
        )
    assert main(["export", str(tmp_path / "run"), "--pipeline", "--out", str(tmp_path / "pipe")]) == 2
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        tmp_path / "pipe", **dict.fromkeys(others_of("SD3Transformer2DModel"))
    )
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    pipe.set_progress_bar_config(disable=True)
    model, told, noise = load_host_model(tmp_path / "run"), prompts_of(world, 2), image_noise(0, (1, 3, 8, 8))

    def drawn() -> Tensor:
        text = told.text
        return pipe(
            prompt_embeds=text.tokens, pooled_prompt_embeds=text.pooled, latents=noise.clone(),
            sigmas=[1.0, 0.75, 0.5, 0.25], guidance_scale=1.0, height=64, width=64, num_inference_steps=4,
            output_type="latent",
        ).images  # fmt: skip

    dense = drawn()
    elit.load_elastic(pipe.transformer, tmp_path / "pipe" / "elastic")
    torch.testing.assert_close(drawn(), elit.sample(model, told, steps=4, noise=noise), rtol=1e-3, atol=1e-3)
    assert (drawn() - dense).abs().max() > 1e-4  # the interface learned
    for budget in (0.25, 0.5):
        with elit.budget(pipe.transformer, budget):
            mine = elit.sample(model, told, steps=4, noise=noise, budget=budget)
            torch.testing.assert_close(drawn(), mine, rtol=1e-3, atol=1e-3)
    again = config_of(
        world, tmp_path / "again", host__transformer=tmp_path / "pipe", elastic__start=tmp_path / "pipe" / "elastic"
    )
    assert again.shape(1).levels.latents == 4
    state, _, _ = started(again)
    with torch.no_grad():
        x, t = torch.randn(1, 3, 8, 8), torch.tensor([0.5])
        torch.testing.assert_close(state.model(x, t, told, 0.25), model(x, t, told, 0.25), rtol=1e-4, atol=1e-5)


def test_loras_are_exported_too(world: Path, tmp_path: Path) -> None:
    """Into the elastic folder, or of a dense transformer into one of their own."""
    for name, more in (("elastic", ELASTIC), ("dense", {"host__transformer": world / "qwen"})):
        finetune(config_of(world, tmp_path / name, lora__rank=2, steps=2, **more))
        out = tmp_path / f"{name}-pipe"
        assert main(["export", str(tmp_path / name), "--pipeline", "--dtype", "fp32", "--out", str(out)]) == 0
        model = load_host_model(tmp_path / name)
        missing = dict.fromkeys(others_of(type(model.transformer).__name__))
        transformer = diffusers.DiffusionPipeline.from_pretrained(out, **missing).transformer
        if name == "elastic":
            elit.load_elastic(transformer, out / "elastic")
        else:
            transformer.load_lora_adapter(str(out / "lora"), prefix=None, weight_name=LORA_FILE)
        told, x, t = prompts_of(world, 0, 1), torch.randn(2, 3, 8, 8), torch.tensor([0.3, 0.8])
        with torch.no_grad():
            for again in (HostModel(transformer.eval(), (8, 8)), load_host_model(out)):
                torch.testing.assert_close(again(x, t, told), model(x, t, told), rtol=1e-5, atol=1e-5)


def test_a_pipelines_own_encoders_and_parts_are_used_and_kept(world: Path, tmp_path: Path) -> None:
    """Flux, with CLIP and T5: prompts as its encode_prompt has them, and what is beside the transformer in its export."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    torch.manual_seed(4)
    clip = CLIPTextConfig(
        vocab_size=9, hidden_size=12, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=20, bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    t5 = T5Config(vocab_size=9, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    made = diffusers.FluxPipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(shift=1.7), None, CLIPTextModel(clip).eval(), tokenizer(20),
        T5EncoderModel(t5).eval(), tokenizer(20), TINY["FluxTransformer2DModel"].made(),
    )  # fmt: skip
    made.save_pretrained(tmp_path / "flux")
    words = ["prepare", "prompts", str(world / "captions.txt"), "--encoder", str(tmp_path / "flux"), "--out"]
    assert main([*words, str(tmp_path / "prompts")]) == 2  # which has to be told how many tokens
    assert main([*words, str(tmp_path / "prompts"), "--tokens", "6"]) == 0
    with torch.no_grad():
        tokens, pooled, _ = made.encode_prompt(TEXTS[3], None, max_sequence_length=6)
    kept = open_prompts(tmp_path / "prompts").of(torch.tensor([3])).text
    torch.testing.assert_close(kept.tokens, tokens, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(kept.pooled, pooled, rtol=2e-3, atol=2e-3)
    pictures = with_prompts(open_data(str(world / "pictures"), 8), open_prompts(tmp_path / "prompts"))
    with pytest.raises(UserError, match="have 3 channels and this FluxTransformer2DModel takes 2"):
        check_widths(find_host(str(tmp_path / "flux")), pictures)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    source = find_host(str(tmp_path / "flux"))
    elastic = elit.elasticize(read_transformer(source), 2, 1, 2)
    about = HostCheckpoint(str(source.folder), source.digest(), elastic.elit.config, Lora(), 8, 8)
    describe_checkpoint(checkpoint, about, source.config)
    save_file({f"transformer.{name}": p for name, p in elastic.state_dict().items()}, checkpoint / "model.safetensors")
    assert main(["export", str(checkpoint), "--pipeline", "--dtype", "fp32", "--out", str(tmp_path / "out")]) == 0
    opened = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out", vae=None)
    assert opened.scheduler.config.shift == 1.7
    elit.load_elastic(opened.transformer, tmp_path / "out" / "elastic")
    with torch.no_grad():
        assert torch.equal(opened.encode_prompt(TEXTS[3], None, max_sequence_length=6)[0], tokens)


def test_the_benchmark_measures_both_and_draws_a_sheet(world: Path, tmp_path: Path) -> None:
    """A conversion that was hardly trained is the dense one at the full budget, and worse below it."""
    sizes = {**SD3, "joint_attention_dim": 384, "pooled_projection_dim": 384}
    (tmp_path / "bare").mkdir()
    text = {"_class_name": "SD3Transformer2DModel", **sizes}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(text))
    values = {"data__source": "emoji", "prompts__source": "emoji", "prompts__held_out": 0.1, "steps": 1, "batch_size": 2}
    finetune(config_of(world, tmp_path / "dense", host__transformer=tmp_path / "bare", host__fresh=True, **values))
    assert main(["export", str(tmp_path / "dense"), "--pipeline", "--dtype", "fp32", "--out", str(tmp_path / "pipe")]) == 0
    more = {"host__transformer": tmp_path / "pipe", "optimizer__lr": 1e-9, **ELASTIC}
    finetune(config_of(world, tmp_path / "elastic", **values, **more))
    path = Path(__file__).parents[2] / "benchmarks" / "host_finetune.py"
    spec = importlib.util.spec_from_file_location("host_finetune", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = [str(tmp_path / "dense"), str(tmp_path / "elastic"), "--count", "3", "--steps", "1", "--prompts", "red apple"]
    found = module.main([*given, "--picture", str(tmp_path / "sheet.png")])
    assert list(found) == ["dense", "1/4", "2/4", "4/4"]
    torch.testing.assert_close(found["4/4"].of_each, found["dense"].of_each, rtol=1e-4, atol=1e-6)
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    model, table = load_host_model(tmp_path / "dense"), open_prompts("emoji")
    data = load_images("emoji", 8)
    row = torch.arange(len(data))[9::10][0]  # the first that was held out, at the first of the times
    x = to_float(data.images[row][None])
    noise = image_noise(0, x.shape, "held out noise")
    total = 0.0
    for t in (0.1, 0.3, 0.5, 0.7, 0.85, 0.95):
        with torch.no_grad():
            velocity = model((1 - t) * x + t * noise, torch.tensor([t]), table.of(row[None]))
        total += (velocity - (noise - x)).double().square().mean().item() / 6
    assert found["dense"].of_each[0].item() == pytest.approx(total, rel=1e-4)


# Mistakes


def test_mistakes_are_one_sentence(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_elastic(TINY["QwenImageTransformer2DModel"].elastic(), tmp_path / "of-qwen")
    torch.manual_seed(0)
    deeper = diffusers.SD3Transformer2DModel(**{**SD3, "num_layers": 5})
    save_elastic(elit.elasticize(deeper, 1, 1, 2), tmp_path / "deeper")
    prepare_prompts(TEXTS, load_text_encoder(str(save_encoder(tmp_path / "wide", 32))), tmp_path / "wide-prompts")
    (tmp_path / "wan").mkdir()
    (tmp_path / "wan" / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel"}))
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((world / "sd3" / "config.json").read_text())
    cases: list[tuple[dict[str, Any], str]] = [
        ({"elastic__start": tmp_path / "of-qwen"}, "is of a QwenImageTransformer2DModel, not of a SD3Transformer2DModel"),
        ({"elastic__start": tmp_path / "deeper"}, "with 5 blocks of width 32 and 2 heads; this one has 4, 32 and 2"),
        ({"elastic__start": tmp_path}, "holds no elastic.json"),
        ({"elastic__head": 1}, "elastic.head and elastic.tail go together"),
        ({"elastic__head": 2, "elastic__tail": 2}, "leave no core in the 4 blocks"),
        ({"prompts__source": tmp_path / "wide-prompts"}, "and this SD3Transformer2DModel takes 16 and 16"),
        ({"prompts__source": tmp_path}, "holds no prompts.json"),
        ({"host__transformer": tmp_path / "wan"}, "cannot be trained here; those that can: SD3"),
        ({"host__transformer": tmp_path / "bare"}, "holds no weights; give one that does, or draw them with --host.fresh"),
        ({"host__transformer": tmp_path}, "holds no transformer of diffusers"),
        ({"lora__rank": 2, "lora__targets": ["to_z"]}, "no linear of a SD3Transformer2DModel is called so; there are"),
        ({"lora__rank": 2, "host__fresh": True}, "host.fresh draws them; leave one of them out"),
        ({"finetune__distill": 2.0}, "needs an original to learn from"),
        ({"finetune__interface_first": 2}, "needs an elastic transformer"),
        ({"data__size": 14}, "more than the 6 patches a side"),
        ({"elastic__heads": 2}, "unknown option --elastic.heads; did you mean --elastic.head"),
        ({"budget__mixed": 0.5}, "has nothing to mix, for a dense model has one budget"),
    ]
    for values, sentence in cases:
        given = options(world, tmp_path / "run", **values)
        assert main(["finetune", *given]) == 2, values
        said = " ".join(capsys.readouterr().err.split())
        assert sentence in said, (sentence, said)
        assert "Traceback" not in said
        assert not (tmp_path / "run").exists()
    assert main(["finetune"]) == 2
    assert main(["export", str(world / "sd3"), "--pipeline", "--out", str(tmp_path / "out")]) == 2


def test_loras_need_peft_and_a_class_that_takes_them(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="a DiTTransformer2DModel of diffusers takes no LoRA"):
        add_lora(TINY["DiTTransformer2DModel"].made(), Lora(rank=2))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="LoRA needs peft; install it with pip install"):
        add_lora(TINY["SD3Transformer2DModel"].made(), Lora(rank=2))


def test_the_recipes_of_hosts_load() -> None:
    """Each names its own command, and a transformer of a few million parameters that its pictures fit."""
    root = Path(__file__).parents[2]
    recipes = sorted((root / "configs" / "hosts").glob("*.yaml"))
    assert len(recipes) == 4
    for recipe in recipes:
        config, text = load_host_config(recipe, []), recipe.read_text(encoding="utf8")
        assert f"elit finetune --config configs/hosts/{recipe.name}\n" in text
        assert config.out == f"runs/{recipe.stem}"
        if config.elastic.asked:
            dense = load_host_config(recipe.with_name(recipe.name.replace("-elastic", "")), [])
            assert config.steps == dense.steps / 10 and config.data == dense.data and config.prompts == dense.prompts
            continue
        with torch.device("meta"):
            made = drawn_transformer(find_host(str(root / config.host.transformer)).config)
        assert 3e6 < sum(p.numel() for p in made.parameters()) < 6e6
        HostModel(made, (config.data.size, config.data.size))
