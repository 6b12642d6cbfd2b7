"""Elastic hosts beside what diffusers offers: compilation, LoRA, caches, offloading."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig

import elit
from elit import UserError
from elit.backbones.hosts import budgets
from elit.backbones.hosts.table import HOSTS
from tiny_hosts import TINY, inputs, out

FLUX, QWEN, WAN = TINY["FluxTransformer2DModel"], TINY["QwenImageTransformer2DModel"], TINY["WanTransformer3DModel"]
BUDGETS = (1.0, 0.5, 0.25, 0.75)
whole_graphs = pytest.mark.skipif(not budgets.WHOLE_GRAPHS, reason="graphs of a whole transformer need torch 2.12")


class Graphs:
    """A backend of torch.compile that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, example: Any) -> Any:
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def shallow(name: str, **layers: int) -> Any:
    """A tiny host of few blocks, which is quicker to trace."""
    config = {key: value for key, value in TINY[name].made().config.items() if not key.startswith("_")}
    torch.manual_seed(0)
    return getattr(diffusers, name)(**(config | layers)).eval()


@whole_graphs
def test_one_graph_of_the_whole_transformer_serves_all_budgets_and_passes():
    """fullgraph; at most one graph more for all budgets than for one, and passes told by cache_context share it."""
    wan, arguments = shallow("WanTransformer3DModel", num_layers=3), inputs(WAN)
    elit.elasticize(wan, head=1, tail=1, window=(1, 4, 2))
    graphs, counts = Graphs(), []
    compiled = torch.compile(wan, fullgraph=True, backend=graphs)
    with torch.no_grad():
        for budget in (0.5, 0.25, 0.75):
            with elit.budget(compiled, budget):
                torch.testing.assert_close(out(compiled, arguments), out(wan, arguments), rtol=1e-4, atol=1e-5)
            counts.append(graphs.count)
        with elit.budget(compiled, 0.5, unconditional=0.25):
            for name in ("cond", "uncond"):
                with compiled.cache_context(name):
                    torch.testing.assert_close(out(compiled, arguments), out(wan, arguments), rtol=1e-4, atol=1e-5)
    assert counts[0] == 1 and graphs.count <= 2


@whole_graphs
@pytest.mark.parametrize("name", ["SD3", "Flux", "QwenImage", "LTXVideo"])
def test_a_host_is_one_graph(name):
    """fullgraph, below the full budget, with what the eager transformer makes; Flux is told its grid."""
    name = next(host for host in TINY if host.startswith(f"{name}Transformer"))
    layers = {"num_layers": 1, "num_single_layers": 1} if name.startswith("Flux") else {"num_layers": 2}
    transformer, arguments, graphs = shallow(name, **layers), inputs(TINY[name]), Graphs()
    elit.elasticize(transformer, head=1, tail=0, window=(1, 2, 2))
    compiled = torch.compile(transformer, fullgraph=True, backend=graphs)
    grid = TINY[name].grid() if "img_ids" in arguments else None
    with torch.no_grad(), elit.budget(compiled, 0.5, grid=grid):
        torch.testing.assert_close(out(compiled, arguments), out(transformer, arguments), rtol=1e-4, atol=1e-5)
    assert graphs.count == 1


@whole_graphs
def test_a_graph_of_the_whole_transformer_follows_a_schedule():
    """Its time is read outside of the graph, which serves every level; and after it the full budget is back."""
    wan, arguments = shallow("WanTransformer3DModel", num_layers=3), inputs(WAN, batch=1)
    elit.elasticize(wan, head=1, tail=1, window=(1, 4, 2))
    graphs, schedule, made = Graphs(), elit.Schedule(((0.6, 0.25), (0.3, 0.5)), 1.0), []
    compiled = torch.compile(wan, fullgraph=True, backend=graphs)
    with torch.no_grad():
        for time in (900.0, 500.0, 100.0, 700.0):
            now = {**arguments, "timestep": torch.tensor([time])}
            with elit.budget(compiled, schedule):
                made.append(out(compiled, now))
            with elit.budget(wan, schedule.at(time / 1000)):
                torch.testing.assert_close(made[-1], out(wan, now), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(out(compiled, now), out(wan, now), rtol=1e-4, atol=1e-5)
    assert graphs.count <= 3 and not compiled._forward_pre_hooks


def test_repeated_blocks_compile_once_for_all_budgets():
    """Of each class of blocks a graph for the tokens, and one for any number of latents."""
    flux, arguments = shallow("FluxTransformer2DModel", num_layers=1, num_single_layers=3), inputs(FLUX)
    elit.elasticize(flux, head=1, tail=1, window=2)
    graphs, counts, eager = Graphs(), [], {}
    with torch.no_grad():
        for budget in BUDGETS:
            with elit.budget(flux, budget):
                eager[budget] = out(flux, arguments)
        flux.compile_repeated_blocks(fullgraph=True, backend=graphs)
        for budget in (0.5, 1.0, 0.25, 0.75):
            with elit.budget(flux, budget):
                torch.testing.assert_close(out(flux, arguments), eager[budget], rtol=1e-4, atol=1e-5)
            counts.append(graphs.count)
    assert counts[0] >= 2 and counts[-1] <= counts[0] + 1


@pytest.mark.parametrize("first", ["adapter", "core"])
def test_lora_sits_on_the_blocks_wherever_they_run(first):
    """Added before or after, under the names that it has without a core; trained beside the interface."""
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    arguments, dense, elastic = inputs(FLUX), FLUX.made(), FLUX.made()
    for transformer in (dense, elastic):
        if transformer is elastic and first == "core":
            elit.elasticize(elastic, head=2, tail=1, window=2)
        torch.manual_seed(4)
        transformer.add_adapter(config)
    if first == "adapter":
        elit.elasticize(elastic, head=2, tail=1, window=2)
    names = [name for name, _ in dense.named_parameters() if "lora" in name]
    assert [name for name, _ in elastic.named_parameters() if "lora" in name] == names
    with torch.no_grad():
        torch.testing.assert_close(out(elastic, arguments), out(dense, arguments), rtol=1e-3, atol=1e-4)
        adapted = out(elastic, arguments)
        elastic.disable_adapters()
        assert (out(elastic, arguments) - adapted).abs().max() > 1e-3
    elastic.enable_adapters()
    with elit.budget(elastic, 0.25):
        out(elastic, arguments).square().mean().backward()
    learned = {name for name, p in elastic.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert set(names) <= learned
    elastic.set_adapters("default", 0.5)  # scales are of each adapter; the core passes them on


def test_first_block_cache_runs_the_core_when_the_first_block_changes():
    """With a threshold that nothing reaches, once in four steps of whatever budget; disabled, every time."""
    elastic, arguments, runs = FLUX.elastic(head=1, tail=1), inputs(FLUX), []
    elastic.elit.middle()[0].register_forward_pre_hook(lambda module, args: runs.append(1))

    def steps() -> list[torch.Tensor]:
        made = []
        for budget in (0.5, 1.0, 0.25, 0.5):
            with torch.no_grad(), elit.budget(elastic, budget), elastic.cache_context("cond"):
                made.append(out(elastic, arguments))
        return made

    elastic.enable_cache(diffusers.FirstBlockCacheConfig(threshold=1e9))
    cached = steps()
    assert len(runs) == 1
    assert all((one - cached[0]).abs().max() < 1e-5 for one in cached)
    elastic.disable_cache()
    runs.clear()
    plain = steps()
    assert len(runs) == 4
    torch.testing.assert_close(cached[0], plain[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("budget", [1.0, 0.25])
def test_mag_cache_leaves_the_core_out_beside_budgets(budget):
    """Of ten steps the first two run, and of the others every fourth; a reused one is the last change added again."""
    elastic, arguments, runs, made = FLUX.elastic(head=1, tail=1), inputs(FLUX), [], []
    elastic.elit.middle()[0].register_forward_pre_hook(lambda module, args: runs.append(len(made)))
    elastic.enable_cache(diffusers.MagCacheConfig(num_inference_steps=10, mag_ratios=[1.0] * 10))
    with torch.no_grad(), elit.budget(elastic, budget), elastic.cache_context("cond"):
        for _ in range(10):
            made.append(out(elastic, arguments))
    assert runs == [0, 1, 5, 9]
    elastic.disable_cache()
    with torch.no_grad(), elit.budget(elastic, budget):
        plain = out(elastic, arguments)
    for one in made:  # the inputs are alike, and so is what is added again
        torch.testing.assert_close(one, plain, rtol=1e-4, atol=1e-5)


def test_caches_of_attention_are_refused_below_the_full_budget():
    elastic, arguments = FLUX.elastic(), inputs(FLUX)
    elastic.enable_cache(
        diffusers.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(0, 1000),
            current_timestep_callback=lambda: 500,
        )
    )
    with torch.no_grad(), elastic.cache_context("cond"):
        out(elastic, arguments)
        with elit.budget(elastic, 0.5), pytest.raises(UserError, match=r"PyramidAttentionBroadcast keeps .*FirstBlockCache"):
            out(elastic, arguments)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_groups_of_blocks_are_offloaded(offload_type):
    """As far as a CPU shows it: hooks of every block and of the core run, and nothing changes."""
    elastic, arguments = QWEN.elastic(), inputs(QWEN)
    with torch.no_grad(), elit.budget(elastic, 0.5):
        before = out(elastic, arguments)
        cpu = torch.device("cpu")
        apply_group_offloading(elastic, cpu, cpu, offload_type=offload_type, num_blocks_per_group=2)
        assert torch.equal(out(elastic, arguments), before)


def test_model_offloading_moves_an_elastic_transformer():
    """To the device of execution and back: on a CPU the same one, but by accelerate's hooks."""
    pipe = diffusers.FluxPipeline(diffusers.FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, FLUX.elastic())
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.set_progress_bar_config(disable=True)
    with elit.budget(pipe.transformer, 0.5, unconditional=0.25):
        arguments = inputs(FLUX)
        made = pipe(
            prompt_embeds=arguments["encoder_hidden_states"],
            pooled_prompt_embeds=arguments["pooled_projections"],
            height=64,
            width=96,
            num_inference_steps=2,
            output_type="latent",
        ).images
    assert torch.isfinite(made).all()


def test_context_parallelism_is_refused():
    elastic = FLUX.elastic()
    elastic._parallel_config = diffusers.ParallelConfig(
        context_parallel_config=diffusers.ContextParallelConfig(ring_degree=2)
    )
    with pytest.raises(UserError, match="context parallelism cuts the tokens"):
        out(elastic, inputs(FLUX))


@whole_graphs
def test_what_a_graph_cannot_read_is_told():
    """Flux's grid, and the time that a schedule asks for."""
    flux = torch.compile(FLUX.elastic(), fullgraph=True, backend="eager")
    with torch.no_grad(), pytest.raises(Exception, match=r"grid=\(rows, columns\)"), elit.budget(flux, 0.5):
        out(flux, inputs(FLUX))
    wan = WAN.elastic()
    wan.compile(fullgraph=True, backend="eager")  # in place: nothing is left outside of the graph
    schedule = elit.Schedule(((0.5, 0.25),), 1.0)
    with torch.no_grad(), pytest.raises(Exception, match="compile_repeated_blocks"), elit.budget(wan, schedule):
        out(wan, inputs(WAN))


def test_graphs_of_a_whole_transformer_are_refused_where_they_would_miss_the_budget(monkeypatch):
    """As torch before 2.12 does, whose graph never sees what the thread was asked for."""
    monkeypatch.setattr(budgets, "WHOLE_GRAPHS", False)
    wan = torch.compile(WAN.elastic(), fullgraph=True, backend="eager")
    with (
        torch.no_grad(),
        pytest.raises(Exception, match=r"needs torch 2\.12.*compile_repeated_blocks"),
        elit.budget(wan, 0.5),
    ):
        out(wan, inputs(WAN))


def test_the_page_says_which_hosts_take_adapters_and_caches():
    """The columns of the table in docs/hosts.md, as diffusers has it."""
    page = (Path(__file__).parents[2] / "docs/hosts.md").read_text(encoding="utf8")
    for host in HOSTS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{host.transformer}`"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        cls = getattr(diffusers, host.transformer)
        assert (cells[4] == "yes") == hasattr(cls, "add_adapter"), host.transformer
        assert (cells[5] == "yes") == hasattr(cls, "enable_cache"), host.transformer
        assert (cells[3] == "one batch") == (host.halves is not None)
