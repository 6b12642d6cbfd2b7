"""Fréchet distances during training: of the averaged weights, at every budget asked for, and without a trace in the run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from by_config import load_data, make_evaluator, make_state
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from elit.backbones.dit import DiT
from elit.codec import PixelCodec
from elit.evaluation.metrics import frechet_distance, mean_and_covariance
from elit.evaluation.squeezenet import load_squeezenet, squeezenet_features
from elit.generation import tile_images
from elit.labels import LabelRule
from elit.pixels import to_uint8
from elit.recipe import Recipe
from elit.training.config import TrainConfig
from elit.training.loop import train
from elit.weights import load_model, read_tensors

MakeConfig = Callable[..., TrainConfig]
TOLD = {"evaluate__every": 2, "evaluate__count": 6, "evaluate__budgets": "[0.25, 1.0]", "evaluate__features": "squeezenet"}
NAME = "FD (SqueezeNet) at "


def expected_distance(config: TrainConfig, model: DiT, budget: float) -> float:
    """From scratch: balanced labels, 20 steps, the noise of the run's seed; beside all images of the run."""
    recipe = Recipe(steps=20, budget=budget, seed=config.seed)
    images = to_uint8(
        torch.cat([tile_images(model, recipe, LabelRule("balanced", 2), PixelCodec(), tile) for tile in range(1)])
    )[:6]
    real, network = load_data(config).images, load_squeezenet()
    with torch.inference_mode():
        both = [mean_and_covariance(squeezenet_features(some, network)) for some in (images, real)]
    (mean_a, cov_a), (mean_b, cov_b) = both
    return frechet_distance(mean_a, cov_a, mean_b, cov_b)


def test_a_run_logs_the_distances_of_its_averaged_weights(make_config: MakeConfig) -> None:
    """At every second step and the last, those of the checkpoint's weights, which are the averaged ones; the run's weights
    are those of a run that measures nothing."""
    config = make_config(steps=3, **TOLD)
    final = train(config)
    events = EventAccumulator(str(Path(config.out) / "tensorboard"))
    events.Reload()
    for budget in (0.25, 1.0):
        logged = events.Scalars(f"{NAME}{budget:g}")
        assert [event.step for event in logged] == [2, 3]
        assert logged[1].value == pytest.approx(expected_distance(config, load_model(final), budget), rel=1e-3)
        assert logged[0].value != logged[1].value
    plain = train(make_config(steps=3, out=Path(config.out).with_name("plain")))
    for file in sorted(plain.glob("*.safetensors")):
        ours, theirs = read_tensors(final / file.name), read_tensors(file)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_state_is_left_as_it_was_and_the_reference_kept(make_config: MakeConfig, device: torch.device) -> None:
    """Weights, mode and random numbers; the reference's statistics are made once, and a file serves in their place."""
    config = make_config(**TOLD)
    Path(config.out).mkdir()
    data, state = load_data(config), make_state(config, device)
    for name in state.ema:
        state.ema[name] += 0.1
    state.model.train()
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    random = torch.random.get_rng_state()
    found = make_evaluator(config, data, state, PixelCodec(), device).distances(state)
    assert list(found) == [f"{NAME}0.25", f"{NAME}1"]
    assert state.model.training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(p, before[name]) for name, p in state.model.named_parameters())
    (kept,) = Path(config.out).glob("reference-*.npz")
    when = kept.stat().st_mtime_ns
    assert make_evaluator(config, data, state, PixelCodec(), device).distances(state) == found
    assert kept.stat().st_mtime_ns == when
    other = make_config(**TOLD, evaluate__reference=kept, out=Path(config.out).with_name("other"))
    assert make_evaluator(other, data, state, PixelCodec(), device).distances(state) == found


def test_what_cannot_be_measured_is_refused(make_config: MakeConfig, device: torch.device) -> None:
    with pytest.raises(ValueError, match=r"evaluate\.count is 1; it should be at least 2"):
        make_config(**{**TOLD, "evaluate__count": 1})
    latent = make_config(**TOLD, model__in_channels=4)
    with pytest.raises(ValueError, match=r"evaluate\.every measures pictures, and the data are latents: give data\.codec"):
        make_evaluator(latent, load_data(make_config()), make_state(latent, device), None, device)


def test_a_mistake_is_told_before_the_first_step_and_mended_in_the_same_folder(make_config: MakeConfig) -> None:
    """A reference that is not there, features that are not known, a budget out of range; then the run goes on."""
    for wrong, sentence in (
        ({"evaluate__reference": "/nowhere"}, "there are no images at /nowhere"),
        ({"evaluate__features": "resnet"}, "there are no features 'resnet'"),
        ({"evaluate__budgets": "[2.0]"}, "budgets.0 is 2.0; it should be at most 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            train(make_config(**{**TOLD, **wrong}))
    assert not list((Path(make_config().out) / "checkpoints").glob("*"))
    train(make_config(steps=4, **{**TOLD, "evaluate__every": 4}))
