"""Fine-tuning: what a model takes from another, what it computes then, distillation, and the interface learning first."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_config import batch_loss, draw_batch, load_data, make_state, train_step
from safetensors.torch import load_file

from elit import DiT, DiTConfig
from elit.backbones.layers import unpatchify
from elit.card import Card, save_card
from elit.console import console
from elit.cost import count_flops
from elit.elastic.core import Layout
from elit.elastic.grouping import group, ungroup
from elit.elastic.rope import token_rope
from elit.flow import FlowPath
from elit.training.config import TrainConfig
from elit.training.dry_run import dry_run, step_flops
from elit.training.finetune import start_from
from elit.training.loop import train
from elit.weights import load_model, save_weights
from models import inputs_of
from randomised import randomised
from ranks import run_ranks

Make = Callable[..., TrainConfig]


def saved(model: DiT, folder: Path, path: FlowPath = FlowPath.LINEAR) -> Path:
    """A model folder."""
    folder.mkdir()
    save_weights(model, folder)
    save_card(Card(path=path), folder)
    return folder


@pytest.fixture
def dense(make_config: Make, tmp_path: Path) -> Path:
    """A dense model's folder that `make_config`'s elastic one may start from."""
    return saved(randomised(DiT(make_config(model__group_size=None).model)), tmp_path / "dense")


@pytest.fixture
def make_tuned(make_config: Make, dense: Path) -> Make:
    """`make_config` that starts from the dense model."""
    return lambda **values: make_config(**{"init_from": dense, **values})


def raw_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Raw weights and moments."""
    return {name: tensor for file in checkpoint.glob("shard-*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("options", [{}, {"rope": True, "qk_norm": True}, {"write_sees_dropped": True, "write_depth": 2}])
def test_a_converted_model_is_the_dense_one_without_its_core(
    make_dit: Callable[..., DiT], tmp_path: Path, options: dict[str, object], device: torch.device
) -> None:
    """At every budget: its head, the two fresh tables of token positions, and its tail, stated block by block."""
    size = {"depth": 5, "head_depth": 2, "tail_depth": 1}
    dense = make_dit(group_size=None, **size, **options)
    torch.manual_seed(1)
    model = DiT(DiTConfig(**{**vars(dense.config), "group_size": 2}))
    start_from(model, saved(dense, tmp_path / "dense"), "linear")
    x, t, y = inputs_of(dense.config)
    seen: dict[int, torch.Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda _m, _a, out, i=i: seen.update({i: out})) for i, block in enumerate(dense.blocks)
    ]
    dense(x, t, y)
    for hook in hooks:
        hook.remove()
    core, grid = model.core, model.config.grid
    tables = core.read.token_positions + core.write.token_positions
    h = ungroup(group(seen[1], grid, core.window) + tables, grid, core.window)
    rope = token_rope(grid, dense.config.width // dense.config.heads, device) if dense.config.rope else None
    c = dense.time_embedding(t) + dense.label_embedding(y)
    expected = unpatchify(dense.final(dense.blocks[4](h, c, Layout(grid, rope)), c), grid, dense.config.patch_size)
    for budget in (1.0, 0.5, 0.25):
        torch.testing.assert_close(model(x, t, y, budget), expected)


def test_every_tensor_of_the_dense_model_is_taken(make_tuned: Make, dense: Path, device: torch.device) -> None:
    """Block i becomes block i wherever it stands; Read and Write alone are fresh, as from scratch; all is told."""
    with console.capture() as captured:
        state = make_state(make_tuned(model__depth=3), device)
    source, own = load_file(dense / "model.safetensors"), state.model.state_dict()
    moved = {"blocks.0.": "blocks.0.", "blocks.1.": "blocks.1.blocks.0.", "blocks.2.": "blocks.2."}
    taken = set()
    for name, tensor in source.items():
        place = next((ours + name.removeprefix(theirs) for theirs, ours in moved.items() if name.startswith(theirs)), name)
        assert torch.equal(own[place], tensor), name
        assert torch.equal(state.ema[place], tensor), name
        taken.add(place)
    fresh = own.keys() - taken - {"positions"}
    assert fresh == {name for name in own if name.startswith(("blocks.1.read.", "blocks.1.write."))}
    told = " ".join(captured.get().split())
    assert f"{len(source)} tensors are taken from {dense}" in told
    assert all(name in told for name in fresh)
    scratch = make_state(make_tuned(init_from=None), device).model.state_dict()
    assert all(torch.equal(scratch[name], own[name]) for name in fresh)


def test_an_elastic_model_starts_warm(make_dit: Callable[..., DiT], tmp_path: Path) -> None:
    """From one of the same architecture everything is taken: the velocities are the same at every budget."""
    source = make_dit()
    model = DiT(source.config)
    start_from(model, saved(source, tmp_path / "elastic"), "linear")
    x, t, y = inputs_of(source.config)
    for budget in (0.25, 1.0):
        assert torch.equal(model(x, t, y, budget), source(x, t, y, budget))


def test_a_sharp_conversion_loses_nothing(make_tuned: Make, dense: Path, device: torch.device) -> None:
    """At the full budget the converted run's model is the dense one, before its first step."""
    state = make_state(make_tuned(model__depth=3, model__anchor="sharp"), device)
    original = load_model(dense)
    x, t, y = inputs_of(original.config)
    expected = original(x, t, y)
    assert (state.model(x, t, y) - expected).norm() < 1e-4 * expected.norm()


def test_a_dense_model_starts_one_of_another_size_of_input(make_dit: Callable[..., DiT], tmp_path: Path) -> None:
    """Its positions are computed; an elastic model's are learned for one grid."""
    folder = saved(make_dit(group_size=None), tmp_path / "dense")
    start_from(make_dit(input_size=16), folder, "linear")
    with pytest.raises(ValueError, match=r"model\.input_size is 8 there and 16 here"):
        start_from(make_dit(input_size=16), saved(make_dit(), tmp_path / "elastic"), "linear")


@pytest.mark.parametrize(
    ("theirs", "ours", "told"),
    [
        ({"width": 64}, {}, r"patch_embedding\.weight is \(64, 12\) there and \(32, 12\) here"),
        ({"num_classes": 9}, {}, r"label_embedding\.weight is \(10, 32\) there and \(8, 32\) here"),
        ({"depth": 4}, {}, r"blocks\.3\.attention\.qkv\.weight has no place here"),
        ({"depth": 2, "head_depth": 0}, {}, r"blocks\.2\.attention\.qkv\.weight is not there"),
        ({"qk_norm": True}, {}, r"q_norm\.weight has no place here"),
        ({"heads": 4}, {}, r"model\.heads is 4 there and 2 here"),
        ({"rope": True}, {}, r"model\.rope is True there and False here"),
        ({"group_size": 2}, {"group_size": None}, r"read\.queries has no place here"),
        ({"group_size": 4}, {}, r"read\.queries is \(16, 32\) there and \(4, 32\) here"),
        ({"group_size": 2, "head_depth": 0}, {}, r"model\.head_depth is 0 there and 1 here"),
    ],
)
def test_what_does_not_fit_is_listed(
    make_dit: Callable[..., DiT], tmp_path: Path, theirs: dict[str, object], ours: dict[str, object], told: str
) -> None:
    """Tensors of other shapes, missing or left over, and settings that no shape tells; nothing is changed."""
    folder, model = saved(make_dit(**{"group_size": None, **theirs}), tmp_path / "source"), make_dit(**ours)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=told):
        start_from(model, folder, "linear")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_another_path_and_no_model_are_refused(make_dit: Callable[..., DiT], tmp_path: Path) -> None:
    folder = saved(make_dit(group_size=None), tmp_path / "cosine", FlowPath.COSINE)
    with pytest.raises(ValueError, match=r"set flow\.path cosine"):
        start_from(make_dit(), folder, "linear")
    with pytest.raises(ValueError, match="is not a model folder"):
        start_from(make_dit(), tmp_path / "nothing", "linear")


def test_settings_without_anything_to_work_on_are_refused(make_config: Make, make_tuned: Make) -> None:
    for options in ({"finetune__distill": 1.0}, {"finetune__interface_first": 3}):
        with pytest.raises(ValueError, match="--init-from"):
            make_config(**options)
    with pytest.raises(ValueError, match="interface_first needs an elastic model"):
        make_tuned(model__group_size=None, finetune__interface_first=3)
    with pytest.raises(ValueError, match="it should be at least 0"):
        make_tuned(finetune__distill=-1)


def test_distillation_is_the_mean_squared_difference_from_the_original(
    make_tuned: Make, dense: Path, device: torch.device
) -> None:
    """loss = flow + weight x distillation; the original runs at its full budget, on the same points, times and labels."""
    config = make_tuned(finetune__distill=3.0, budget__highest=0.25)
    state, original, data = make_state(config, device), load_model(dense), load_data(config)
    for step in range(3):
        batch = draw_batch(config, data, step)
        with torch.no_grad():
            velocity = state.model(batch.flow.x_t, batch.flow.t, batch.labels, batch.budget)
            wanted = original(batch.flow.x_t, batch.flow.t, batch.labels)
        flow, far = (velocity - batch.flow.velocity).square().mean().item(), (velocity - wanted).square().mean().item()
        assert batch_loss(config, state, batch, device)[0].item() == pytest.approx(flow + 3 * far, rel=1e-5)
        train_step(config, state, batch, device)
    teacher = state.objective.teacher.state_dict()
    assert all(torch.equal(teacher[name], tensor) for name, tensor in original.state_dict().items())
    assert make_state(make_tuned(), device).objective.teacher is None


def test_a_dry_run_knows_of_the_original(make_tuned: Make, dense: Path, tmp_path: Path) -> None:
    """Distillation adds a forward of the original, at its full budget, to a step, and its weights to what is held."""
    model = load_model(dense)
    forward, weights = 1e-9 * count_flops(model), 4 * sum(p.numel() for p in model.parameters())
    config = make_tuned(budget__highest=0.25)
    plain, distilled = dry_run(config), dry_run(make_tuned(finetune__distill=3.0, budget__highest=0.25))
    for name in ("step_gflops_mean", "step_gflops_highest"):
        beside = getattr(distilled, name) - getattr(plain, name)
        assert beside == pytest.approx(config.batch_size * forward)
    assert step_flops(config) == pytest.approx(1e9 * plain.step_gflops_mean)
    assert step_flops(make_tuned(finetune__distill=3.0, budget__highest=0.25)) == pytest.approx(
        1e9 * distilled.step_gflops_mean
    )
    assert distilled.state_bytes - plain.state_bytes == distilled.rank_state_bytes - plain.rank_state_bytes == weights
    away = make_tuned(finetune__distill=3.0, init_from=str(tmp_path / "later"))  # of which nothing is known yet
    assert dry_run(away).step_gflops_mean > dry_run(make_tuned()).step_gflops_mean


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_interface_learns_first(make_tuned: Make, optimizer: str, device: torch.device) -> None:
    """For so many steps nothing but Read and Write changes, weight decay or not; from the next on everything does."""
    config = make_tuned(finetune__interface_first=2, optimizer__name=optimizer, optimizer__weight_decay=0.1, steps=9)
    state, data = make_state(config, device), load_data(config)
    start = {name: p.detach().clone() for name, p in state.model.named_parameters()}

    def changed() -> set[str]:
        return {name for name, p in state.model.named_parameters() if not torch.equal(p, start[name])}

    for step in range(2):
        train_step(config, state, draw_batch(config, data, step), device)
        assert changed() and changed() <= state.model.interface_parameters().keys()
        assert all(torch.equal(average, start[name]) for name, average in state.ema.items() if name not in changed())
    train_step(config, state, draw_batch(config, data, 2), device)
    assert not changed() <= state.model.interface_parameters().keys()


def test_adam_counts_what_was_held_from_its_own_first_update(make_tuned: Make, device: torch.device) -> None:
    """The first update of a held weight is AdamW's first: lr times the gradient's sign, after however many steps."""
    config = make_tuned(finetune__interface_first=5, optimizer__clip=1e9, optimizer__lr=1e-3, steps=9)
    state, data = make_state(config, device), load_data(config)
    held = state.model.final.linear.weight
    before = held.detach().clone()
    for step in range(6):
        train_step(config, state, draw_batch(config, data, step), device)
    moved = (held.detach() - before).abs()
    assert moved[moved > 0].median().item() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("lost", [2, 4])
def test_a_run_goes_on_exactly(make_tuned: Make, lost: int) -> None:
    """Whether it stopped while the interface learned alone or after, and with what it distils from."""
    options = {"finetune__interface_first": 3, "finetune__distill": 1.0, "steps": 6, "log__checkpoint_every": 2}
    config = make_tuned(**options, log__keep=9)
    last = train(config)
    expected = raw_of(last)
    for folder in last.parent.glob("step_*"):
        if int(folder.name.removeprefix("step_")) > lost:
            shutil.rmtree(folder)
    assert train(config) == last
    again = raw_of(last)
    assert expected.keys() == again.keys()
    assert [name for name in expected if not torch.equal(expected[name], again[name])] == []
    assert json.loads((last / "training.json").read_text())["held"] == 3


def test_two_processes_hold_what_one_does(make_tuned: Make, tmp_path: Path, device: torch.device) -> None:
    """Muon on shards leaves what is held as it was, to the bit, and moves Read and Write."""
    config = make_tuned(finetune__interface_first=2, optimizer__name="muon", steps=2, log__every=0)
    assert run_ranks(2, lambda: train(config), tmp_path / "log") == [0, 0], (tmp_path / "log").read_text()
    start = make_state(config, device).model
    moved = load_file(Path(config.out) / "checkpoints" / "step_00000002" / "model.safetensors")
    changed = {name for name, p in start.state_dict().items() if not torch.equal(p, moved[name])}
    assert changed and changed <= start.interface_parameters().keys()
