"""The training step and what it draws, and the loop around it."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from by_config import draw_batch, load_data, make_state, save_preview, train_step
from PIL import Image
from torch import Tensor

from elit.codec import PixelCodec
from elit.data.images import LabelledImages
from elit.flow import FlowPath
from elit.pixels import to_uint8
from elit.training.batch import Batch
from elit.training.checkpoint import TrainState, checkpoints, load_checkpoint
from elit.training.config import OptimizerConfig, TrainConfig
from elit.training.dry_run import dry_run
from elit.training.loop import train

Make = Callable[..., TrainConfig]


def pictures_of(batch: Batch) -> list[int]:
    """Which pictures a linear batch was made of: x = x_t - t v, whose red is the picture's number."""
    t = batch.flow.t.view(-1, 1, 1, 1)
    return to_uint8(batch.flow.x_t - t * batch.flow.velocity)[:, 0, 0, 0].tolist()


def numbers_of(batch: Batch) -> list[Tensor]:
    return [batch.flow.x_t, batch.flow.velocity, batch.flow.t, batch.labels, torch.tensor(batch.budget)]


def test_a_batch_depends_on_seed_and_step_alone(make_config: Make) -> None:
    """Whatever was drawn before, and whatever the global generator; another seed or step is another batch."""
    config = make_config()
    data = load_data(config)
    torch.manual_seed(1)
    first = [numbers_of(draw_batch(config, data, step)) for step in range(6)]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    for step in (5, 0, 3):
        again = numbers_of(draw_batch(config, data, step))
        assert all(torch.equal(a, b) for a, b in zip(again, first[step], strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    other_seed = numbers_of(draw_batch(make_config(seed=1), data, 3))
    for other in (first[4], other_seed):
        assert not any(torch.equal(a, b) for a, b in zip(first[3][:3], other[:3], strict=True))


@pytest.mark.parametrize("batch_size", [4, 10, 23])
def test_every_epoch_visits_every_picture_once(make_config: Make, batch_size: int) -> None:
    """Epochs follow one another without a gap, across and within batches, each in an order of its own."""
    config = make_config(batch_size=batch_size, flow__label_dropout=0)
    data = load_data(config)
    batches = [draw_batch(config, data, step) for step in range(math.ceil(50 / batch_size))]
    seen = [picture for batch in batches for picture in pictures_of(batch)]
    orders = [seen[i : i + 10] for i in range(0, 50, 10)]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    labels = [label for batch in batches for label in batch.labels.tolist()]
    assert labels == [int(picture >= 6) for picture in seen]


def test_noise_is_new_in_every_step(make_config: Make) -> None:
    """Noise, x_t + (1 - t) v on the linear path, is standard normal and independent of the last step's."""
    config = make_config(batch_size=64)
    data = load_data(config)
    flows = [draw_batch(config, data, step).flow for step in range(2)]
    noise = [(flow.x_t + (1 - flow.t.view(-1, 1, 1, 1)) * flow.velocity).flatten() for flow in flows]
    for values in noise:
        assert values.mean().item() == pytest.approx(0, abs=0.04)
        assert values.std().item() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(torch.stack(noise))[0, 1].abs() < 0.04


@pytest.mark.parametrize("law", ["uniform", "logit-normal"])
def test_times_follow_the_law_of_the_config(make_config: Make, law: str) -> None:
    """A quarter of uniform times is above 3/4, of logit-normal ones an eighth: P(n > log 3)."""
    config = make_config(batch_size=4096, flow__time_law=law)
    t = draw_batch(config, load_data(config), 0).flow.t
    above = 0.5 * math.erfc(math.log(3) / math.sqrt(2))
    assert (t > 0.75).double().mean().item() == pytest.approx({"uniform": 0.25, "logit-normal": above}[law], abs=0.02)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_labels_are_dropped_at_the_rate_of_the_config(make_config: Make, rate: float) -> None:
    """A dropped label is the null class, the model's number of classes; no other label changes."""
    config = make_config(batch_size=1000, flow__label_dropout=rate, model__num_classes=5)
    data = load_data(config)
    batches = [draw_batch(config, data, step) for step in range(4)]
    labels = torch.cat([batch.labels for batch in batches])
    pictures = torch.tensor([picture for batch in batches for picture in pictures_of(batch)])
    dropped = labels == 5
    assert dropped.double().mean().item() == pytest.approx(rate, abs=0.03 if 0 < rate < 1 else 0)
    assert torch.equal(labels[~dropped], (pictures >= 6).long()[~dropped])


def test_budget_is_uniform_over_the_levels_of_the_config(make_config: Make) -> None:
    """Every level from the lowest to the highest, about equally often; a dense model has none."""
    config = make_config(budget__lowest=0.5, budget__highest=1.0)
    data = load_data(config)
    drawn = [draw_batch(config, data, step).budget for step in range(900)]
    assert set(drawn) == {0.5, 0.75, 1.0}
    assert all(drawn.count(level) == pytest.approx(300, abs=60) for level in set(drawn))
    assert draw_batch(make_config(model__group_size=None), data, 0).budget is None


def test_weights_come_from_the_seed(make_config: Make, device: torch.device) -> None:
    """The same seed makes the same weights, and neither uses nor moves the global generator."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make_state(make_config(seed=3), device)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = (dict(make_state(make_config(seed=seed), device).model.named_parameters()) for seed in (3, 4))
    for name, p in first.model.named_parameters():
        assert torch.equal(p, second[name])
        assert torch.equal(p, first.ema[name])
    assert any(not torch.equal(p, other[name]) for name, p in first.model.named_parameters())


def literal_adamw(config: OptimizerConfig, weights: list[Tensor], gradients: list[list[Tensor]]) -> list[Tensor]:
    """AdamW on clipped gradients, in float64: Loshchilov and Hutter's algorithm 2, with the loop's learning rates."""
    weights = [w.double() for w in weights]
    m, v = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for k, step in enumerate(gradients):
        norm = math.sqrt(sum(g.double().square().sum().item() for g in step))
        lr = config.lr * (k + 1) / config.warmup_steps
        for i, gradient in enumerate(step):
            g = gradient.double() * min(1.0, config.clip / norm)
            m[i] = config.beta1 * m[i] + (1 - config.beta1) * g
            v[i] = config.beta2 * v[i] + (1 - config.beta2) * g**2
            m_hat, v_hat = m[i] / (1 - config.beta1 ** (k + 1)), v[i] / (1 - config.beta2 ** (k + 1))
            weights[i] = weights[i] * (1 - lr * config.weight_decay) - lr * m_hat / (v_hat.sqrt() + 1e-8)
    return weights


def test_a_step_is_adamw_on_clipped_gradients(make_config: Make, device: torch.device) -> None:
    """Three steps are the algorithm written out, with the schedule, both betas, weight decay and clip of the config."""
    options = {"lr": 0.01, "beta1": 0.8, "beta2": 0.95, "weight_decay": 0.1, "clip": 0.3, "warmup_steps": 5}
    config = make_config(**{f"optimizer__{key}": value for key, value in options.items()})
    data, state = load_data(config), make_state(config, device)
    start, gradients = [p.detach().clone() for p in state.model.parameters()], []
    for step in range(3):
        batch = draw_batch(config, data, step)

        def velocity(x: Tensor, t: Tensor, batch: Batch = batch) -> Tensor:
            return state.model(x, t, batch.labels, batch.budget)

        loss = FlowPath.LINEAR.loss(velocity(batch.flow.x_t, batch.flow.t), batch.flow)
        gradients.append(list(torch.autograd.grad(loss, list(state.model.parameters()))))
        assert train_step(config, state, batch, device).loss.item() == pytest.approx(loss.item(), rel=1e-6)
    norms = [math.sqrt(sum(g.square().sum().item() for g in step)) for step in gradients]
    assert min(norms) > config.optimizer.clip  # so that clipping matters
    for p, expected in zip(state.model.parameters(), literal_adamw(config.optimizer, start, gradients), strict=True):
        moved = (p.double() - expected).abs()
        assert moved.max() < 1e-4  # of steps of 0.002 to 0.006
    assert state.step == 3


def test_parts_of_a_batch_count_by_their_samples(make_config: Make, device: torch.device) -> None:
    """Seven samples in parts of two and one: the loss, the gradient and its summands are those of the whole."""
    taken = []
    for parts in (1, 4):
        config = make_config(batch_size=7, accumulate=parts)
        taken.append(train_step(config, make_state(config, device), draw_batch(config, load_data(config), 0), device))
    whole, cut = taken
    for found, wanted in ((cut.loss, whole.loss), (cut.norm, whole.norm), (cut.summands["flow"], whole.summands["flow"])):
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("decay", [0.9, 0.9999])
def test_ema_is_that_of_a_float64_loop(make_config: Make, decay: float, device: torch.device) -> None:
    """ema <- d ema + (1 - d) weights after every step, where d is the lower of the decay and (1 + k) / (10 + k)."""
    config = make_config(optimizer__ema_decay=decay, optimizer__lr=0.02)
    data, state = load_data(config), make_state(config, device)
    expected = {name: p.detach().double() for name, p in state.model.named_parameters()}
    for k in range(1, 121):
        train_step(config, state, draw_batch(config, data, k - 1), device)
        d = min(decay, (1 + k) / (10 + k))
        for name, p in state.model.named_parameters():
            expected[name] = d * expected[name] + (1 - d) * p.detach().double()
    far = max((p - state.ema[name]).abs().max().item() for name, p in state.model.named_parameters())
    assert far > 0.01  # the average is not the weights
    for name, average in state.ema.items():
        torch.testing.assert_close(average.double(), expected[name], rtol=1e-4, atol=1e-5)


def four_pictures() -> LabelledImages:
    images = np.random.default_rng(1).integers(0, 2, (4, 3, 8, 8)).astype(np.uint8) * 255
    return LabelledImages(torch.from_numpy(images), torch.tensor([0, 0, 1, 1]), ("a", "b"))


def held_loss(config: TrainConfig, state: TrainState, budget: float) -> float:
    """The loss of the averaged weights on batches that training does not draw."""
    raw = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    state.model.load_state_dict(state.ema)
    losses = []
    with torch.no_grad():
        for step in range(10_000, 10_004):
            batch = draw_batch(config, four_pictures(), step)
            losses.append(
                FlowPath.LINEAR.loss(state.model(batch.flow.x_t, batch.flow.t, batch.labels, budget), batch.flow).item()
            )
    state.model.load_state_dict(raw)
    return sum(losses) / len(losses)


def test_a_tiny_model_overfits_four_pictures(make_config: Make, device: torch.device) -> None:
    """The loss starts near E|noise - x|^2 = 2 and falls far below, of the averaged weights and at every budget."""
    config = make_config(batch_size=32, model__width=32, optimizer__lr=8e-3, optimizer__ema_decay=0.98)
    state, data = make_state(config, device), four_pictures()
    before = [held_loss(config, state, budget) for budget in (0.25, 1.0)]
    assert before == pytest.approx([2, 2], abs=0.15)
    for step in range(150):
        train_step(config, state, draw_batch(config, data, step), device)
    after = [held_loss(config, state, budget) for budget in (0.25, 1.0)]
    assert max(after) < 0.7


def test_a_run_from_end_to_end(make_config: Make, device: torch.device) -> None:
    """Checkpoints as often as asked, of which the last few stay; previews; and the last step is always saved."""
    config = make_config(steps=7, log__checkpoint_every=2, log__keep=3, log__preview_every=4, log__preview_budgets="[1]")
    final = train(config)
    run = Path(config.out)
    assert [folder.name for folder in checkpoints(run)] == ["step_00000004", "step_00000006", "step_00000007"]
    assert final == checkpoints(run)[-1]
    assert sorted(p.name for p in (run / "previews").iterdir()) == ["step_00000004.png", "step_00000007.png"]
    with Image.open(run / "previews" / "step_00000007.png") as sheet:
        assert len(sheet.getcolors(1 << 20)) > 10
    state = make_state(config, device)
    load_checkpoint(final, state)
    assert state.step == 7
    assert train(config) == final  # a finished run is left as it is


def test_no_scalars_no_checkpoints_and_no_previews_on_the_way(make_config: Make) -> None:
    """0 means none, for each of the three; the end is saved all the same."""
    final = train(make_config(steps=3, log__every=0, log__checkpoint_every=0, log__preview_every=0))
    assert final.name == "step_00000003"


def test_preview_leaves_the_training_weights_alone(make_config: Make, tmp_path: Path, device: torch.device) -> None:
    """It shows the averaged weights, whatever the raw ones, which are back in place to the bit."""
    config = make_config()
    state = make_state(config, device)
    state.ema = {name: p + 0.05 for name, p in state.ema.items()}
    save_preview(config, state, PixelCodec(), device, tmp_path / "previews" / "a.png")
    with torch.no_grad():
        for p in state.model.parameters():
            p.mul_(3)
    raw = [p.detach().clone() for p in state.model.parameters()]
    save_preview(config, state, PixelCodec(), device, tmp_path / "previews" / "b.png")
    assert all(torch.equal(p, kept) for p, kept in zip(state.model.parameters(), raw, strict=True))
    assert (tmp_path / "previews" / "a.png").read_bytes() == (tmp_path / "previews" / "b.png").read_bytes()


@pytest.mark.parametrize(("every", "checkpoint_every"), [(1, 1), (50, 1), (50, 0)])
def test_a_loss_that_is_not_finite_stops_the_run(
    make_config: Make, every: int, checkpoint_every: int, device: torch.device
) -> None:
    """However seldom the loss is logged, the run stops with FloatingPointError, and no broken weights are saved."""
    config = make_config(
        steps=6, optimizer__lr=1e30, log__every=every, log__checkpoint_every=checkpoint_every, log__keep=9, skip_limit=3
    )
    with pytest.raises(FloatingPointError, match=r"last 3 steps, up to step 4; lower optimizer\.lr"):
        train(config)
    for folder in checkpoints(Path(config.out)):
        state = make_state(config, device)
        load_checkpoint(folder, state)
        assert all(p.isfinite().all() for p in state.model.parameters())


@pytest.mark.parametrize(("group_size", "optimizer"), [(2, "adamw"), (None, "adamw"), (2, "muon")])
def test_dry_run_counts_what_a_run_holds(
    make_config: Make, group_size: int | None, optimizer: str, device: torch.device
) -> None:
    """Parameters are the model's; the state's bytes those of weights, gradients, moments and the average."""
    config = make_config(model__group_size=group_size, optimizer__name=optimizer)
    cost, state = dry_run(config), make_state(config, device)
    assert cost.parameters == sum(p.numel() for p in state.model.parameters())

    batch = draw_batch(config, load_data(config), 0)
    train_step(config, state, batch, device)
    FlowPath.LINEAR.loss(state.model(batch.flow.x_t, batch.flow.t, batch.labels, batch.budget), batch.flow).backward()
    parameters = list(state.model.parameters())
    kept = [values for o in state.optimizers for values in o.state.values()]
    moments = [value for values in kept for key, value in values.items() if key != "step"]
    held = [*parameters, *(p.grad for p in parameters if p.grad is not None), *moments, *state.ema.values()]
    assert cost.state_bytes == sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert cost.step_gflops_highest == pytest.approx(3 * 4 * cost.forward_gflops_highest)


def test_dry_run_knows_budgets_and_checkpointing(make_config: Make) -> None:
    """Fewer latents cost fewer FLOPs and less memory; recomputing activations costs less memory yet."""
    cost, low = dry_run(make_config()), dry_run(make_config(budget__highest=0.25))
    assert low.forward_gflops_lowest == low.forward_gflops_highest == cost.forward_gflops_lowest
    assert low.forward_gflops_highest < cost.forward_gflops_highest
    assert low.activation_bytes_highest < cost.activation_bytes_highest
    saving = dry_run(make_config(checkpointing="true"))
    assert saving.activation_bytes_highest < 0.7 * cost.activation_bytes_highest
    assert saving.parameters == cost.parameters


def test_dry_run_knows_the_mesh(make_config: Make, device: torch.device) -> None:
    """A rank of 2 x 4 holds a quarter of the state, gathers less than the weights, and runs an eighth of a batch."""
    alone = dry_run(make_config(batch_size=16))
    assert (alone.ranks, alone.rank_state_bytes, alone.rank_gathered_bytes) == (1, alone.state_bytes, 0)
    mesh = {"batch_size": 16, "parallel__replicate": 2, "parallel__shard": 4}
    cost = dry_run(make_config(**mesh))
    assert cost.ranks == 8
    assert cost.rank_state_bytes == alone.state_bytes / 4
    assert cost.activation_bytes_highest == dry_run(make_config(batch_size=2)).activation_bytes_highest
    state = make_state(make_config(), device)
    sizes = {name: p.numel() for name, p in state.model.named_parameters()}
    two = sum(size for name, size in sizes.items() if name.startswith(("blocks.0.", "blocks.1.read.layers")))
    rest = sum(
        size
        for name, size in sizes.items()
        if not name.startswith(("blocks.0.", "blocks.2.", "blocks.1.blocks")) and ".layers." not in name
    )
    assert 4 * (two + rest) <= cost.rank_gathered_bytes < 4 * cost.parameters
    held = dry_run(make_config(accumulate=2, **mesh))
    assert held.rank_gathered_bytes == cost.rank_gathered_bytes + 4 * cost.parameters
    assert held.activation_bytes_highest == dry_run(make_config(batch_size=1)).activation_bytes_highest


def test_data_that_does_not_fit_the_model_is_refused(make_config: Make) -> None:
    """Another size or more classes than the model's: the message says which setting to change."""
    with pytest.raises(ValueError, match=r"set data\.size 8, or model\.input_size 16"):
        load_data(make_config(data__size=16))
    with pytest.raises(ValueError, match=r"set model\.in_channels 3$"):
        load_data(make_config(model__in_channels=4))
    with pytest.raises(ValueError, match=r"set model\.num_classes 2"):
        load_data(make_config(model__num_classes=1))
    config = make_config(model__num_classes=1)
    with pytest.raises(ValueError, match="num_classes"):
        train(config)
    assert not Path(config.out).exists()
