"""Representation alignment: its formula, whose tokens it takes, and that it costs nothing when it is off."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from by_config import batch_loss, draw_batch, load_data, make_state, train_step
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from elit.data.dataset import DataInfo, PreparedData
from elit.data.loader import read_part
from elit.data.published_layout import PublishedLatents
from elit.data.shards import Preparation
from elit.elastic.core import Layout
from elit.elastic.grid import Grid
from elit.encoder import load_encoder
from elit.pixels import to_uint8
from elit.training.alignment import Projector, alignment_loss, resample_tokens, stored_features
from elit.training.config import TrainConfig, alignment_depth
from elit.training.loop import train
from randomised import randomised
from ranks import difference_of_two

Make = Callable[..., TrainConfig]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """A tiny DINOv2 with drawn weights: 8 x 8 pictures are 4 x 4 of its patches."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=8, patch_size=2
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "tiny-dino")
    return tmp_path / "tiny-dino"


@pytest.fixture
def make_aligned(make_config: Make, encoder: Path) -> Make:
    """`make_config` with alignment on."""
    on = {"alignment__enabled": "true", "alignment__encoder": encoder, "alignment__width": 8}
    return lambda **values: make_config(**{**on, **values})


def triangle(size: int, to: int) -> Tensor:
    """(to, size) weights, stated: a triangle around each new place, as wide as the coarser grid's cells; rows sum to 1."""
    ratio = size / to
    reach = max(ratio, 1.0)
    weight = torch.tensor(
        [[max(0.0, 1 - abs((i + 0.5) * ratio - (j + 0.5)) / reach) for j in range(size)] for i in range(to)]
    )
    return weight / weight.sum(1, keepdim=True)


@pytest.mark.parametrize(("grid", "to"), [((4, 6), (2, 2)), ((2, 3), (4, 6)), ((3, 4), (5, 2)), ((1, 1), (2, 3))])
def test_tokens_are_resampled_with_a_triangle(grid: tuple[int, int], to: tuple[int, int]) -> None:
    """Bilinear upwards, a triangle as wide as the new cells downwards; on the same grid nothing changes."""
    tokens = torch.randn(2, grid[0] * grid[1], 5)
    image = tokens.view(2, *grid, 5)
    rows, columns = triangle(grid[0], to[0]), triangle(grid[1], to[1])
    expected = torch.einsum("ih,jw,bhwd->bijd", rows, columns, image).flatten(1, 2)
    torch.testing.assert_close(resample_tokens(tokens, Grid(*grid), Grid(*to)), expected)
    assert resample_tokens(tokens, Grid(*grid), Grid(*grid)) is tokens


def test_the_loss_is_minus_the_mean_cosine() -> None:
    """Of every token of every sample, in float64; it is -1 where all point alike, whatever their lengths."""
    a, b = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    cosines = [
        (x @ y / (x.norm() * y.norm())).item()
        for x, y in zip(a.double().flatten(0, 1), b.double().flatten(0, 1), strict=True)
    ]
    assert alignment_loss(a, b).item() == pytest.approx(-sum(cosines) / 6, rel=1e-5)
    assert alignment_loss(a, 3 * a).item() == pytest.approx(-1)


def test_the_projector_is_three_linears_with_silu_between() -> None:
    """linear-SiLU-linear-SiLU-linear, stated; biases start at zero."""
    projector = Projector(6, 20, 4)
    x = torch.randn(3, 6)
    w = [p.double() for p in projector.parameters()]
    y = x.double()
    for i in range(3):
        y = y @ w[2 * i].T + w[2 * i + 1]
        y = y / (1 + (-y).exp()) if i < 2 else y
    torch.testing.assert_close(projector(x).double(), y, rtol=1e-5, atol=1e-6)
    assert [tuple(p.shape) for p in w[::2]] == [(20, 6), (20, 20), (4, 20)]
    assert not any(p.any() for p in w[1::2])


def expected_alignment(config: TrainConfig, depth: int, encoder: Path, device: torch.device) -> tuple[float, float]:
    """(flow, alignment) of the first batch, with the model's first blocks run by hand on the pictures' own pixels."""
    state, data = make_state(config, device), load_data(config)
    randomised(state.model)
    batch = draw_batch(config, data, 0)
    flow = (state.model(batch.flow.x_t, batch.flow.t, batch.labels, batch.budget) - batch.flow.velocity).square().mean()
    model = state.model
    patches = batch.flow.x_t.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 4, 5, 1).flatten(1, 2).flatten(2)
    h = model.patch_embedding(patches) + model.positions
    c = model.time_embedding(batch.flow.t) + model.label_embedding(batch.labels)
    for block in list(model.blocks)[:depth]:
        h = block(h, c, Layout(model.config.grid))
    t = batch.flow.t.view(-1, 1, 1, 1)
    pixels = to_uint8(batch.flow.x_t - t * batch.flow.velocity)
    target = load_encoder(str(encoder)).encoder_tokens(pixels)
    side = round(target.shape[1] ** 0.5)
    target = resample_tokens(target, Grid(side, side), model.config.grid)
    projected = state.objective.projector(h)
    cosine = torch.nn.functional.normalize(projected, dim=-1) * torch.nn.functional.normalize(target, dim=-1)
    return flow.item(), -cosine.sum(-1).mean().item()


@pytest.mark.parametrize(
    ("options", "depth"),
    [
        ({}, 1),
        ({"model__depth": 5, "model__head_depth": 3}, 3),
        ({"model__depth": 5, "model__head_depth": 3, "alignment__depth": 2}, 2),
        ({"model__group_size": None}, 3),
    ],
    ids=["the head's depth", "a deeper head's", "a given depth", "dense"],
)
def test_a_batchs_loss(
    make_aligned: Make, encoder: Path, options: dict[str, object], depth: int, device: torch.device
) -> None:
    """The flow's loss minus half the mean cosine of block `depth`'s projected tokens with the encoder's of the pictures."""
    config = make_aligned(**options)
    flow, alignment = expected_alignment(config, depth, encoder, device)
    state = make_state(config, device)
    randomised(state.model)
    loss, summands = batch_loss(config, state, draw_batch(config, load_data(config), 0), device)
    assert loss.item() == pytest.approx(flow + 0.5 * alignment, rel=1e-4)
    assert {name: part.item() for name, part in summands.items()} == {
        "flow": pytest.approx(flow, rel=1e-4),
        "alignment": pytest.approx(0.5 * alignment, rel=1e-4),
    }


def test_eight_blocks_deep_unless_the_head_is_shallower(make_aligned: Make) -> None:
    """The default depth is 8 in a deep dense model; 0, or one beyond the head, is refused."""
    deep = make_aligned(model__depth=10, model__group_size=None)
    assert alignment_depth(deep.alignment, deep.model) == 8
    for options in ({"alignment__depth": 2}, {"alignment__depth": 0}, {"model__head_depth": 0}):
        with pytest.raises(ValueError, match=r"alignment\.depth"):
            make_aligned(**options)
    with pytest.raises(ValueError, match=r"alignment\.weight"):
        make_aligned(alignment__weight=-1)


def test_it_is_free_when_off(make_config: Make, device: torch.device) -> None:
    """No hook, no projector, nothing drawn for it, and no encoder is looked for."""
    config = make_config(alignment__encoder="/nowhere")
    state = make_state(config, device)
    assert state.objective.projector is None
    assert not any(module._forward_hooks for module in state.model.modules())
    assert draw_batch(config, load_data(config), 0).target is None
    assert [name for name, _ in state.trained()] == [name for name, _ in state.model.named_parameters()]


def test_the_models_weights_start_the_same_with_and_without(
    make_aligned: Make, make_config: Make, device: torch.device
) -> None:
    on, off = make_state(make_aligned(), device).model.state_dict(), make_state(make_config(), device).model.state_dict()
    assert all(torch.equal(on[name], off[name]) for name in off)


def test_an_encoder_that_is_not_there_is_named(make_aligned: Make, device: torch.device) -> None:
    with pytest.raises(ValueError, match="no vision model could be loaded from '/nowhere'"):
        make_state(make_aligned(alignment__encoder="/nowhere"), device)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_projector_learns_and_goes_on_exactly(make_aligned: Make, optimizer: str, device: torch.device) -> None:
    """A run that lost its last checkpoint ends in the same bits; the exported model holds no projector."""
    config = make_aligned(steps=4, log__checkpoint_every=2, log__keep=9, optimizer__name=optimizer)
    start = {name: p.detach().clone() for name, p in make_state(config, device).trained()}
    last = train(config)
    raw = {name: tensor for file in last.glob("shard-*.safetensors") for name, tensor in load_file(file).items()}
    projector = [name for name in raw if name.startswith("model.projector.")]
    assert len(projector) == 6 and all((raw[name] - start[name.removeprefix("model.")]).any() for name in projector)
    assert len([name for name in raw if name.startswith("optimizer.exp_avg.projector.")]) == 6
    exported = load_file(last / "model.safetensors")
    assert exported.keys() == make_state(config, device).model.state_dict().keys()
    shutil.rmtree(last)
    assert train(config) == last
    again = {name: tensor for file in last.glob("shard-*.safetensors") for name, tensor in load_file(file).items()}
    assert raw.keys() == again.keys() and all(torch.equal(raw[name], again[name]) for name in raw)


def test_alignment_rises(make_aligned: Make, device: torch.device) -> None:
    """Forty steps on four pictures turn the tokens towards the encoder's, and not by the projector's biases alone."""
    config = make_aligned(steps=40)
    state, data = make_state(config, device), load_data(config)
    seen = []
    for step in range(40):
        taken = train_step(config, state, draw_batch(config, data, step % 2), device)
        seen.append(taken.summands["alignment"].item())
    assert seen[-1] < seen[0] - 0.1


def test_processes_align_as_one_does(make_aligned: Make, tmp_path: Path) -> None:
    """Two processes with accumulation end where one does, the projector sharded among them."""
    options = {"steps": 4, "batch_size": 6, "log__every": 0}
    alone = make_aligned(out=tmp_path / "alone", **options)
    assert difference_of_two(alone, make_aligned(out=tmp_path / "two", **options, accumulate=2), tmp_path / "log") < 1e-4


@pytest.fixture
def latents(tmp_path: Path) -> PreparedData:
    """Ten prepared latents of 4 x 4 x 4 with 2 x 3 features: row i holds i everywhere, and 100 + i where it is mirrored."""
    info = DataInfo(
        "latents", 0, (4, 4), ("a", "b"), channels=4, values="samples", mirror=True, features={"tiny-dino": (2, 3, 5)}
    )
    column = {
        f"{mirrored}{name}": [[float(i + base)] * size for i in range(10)]
        for mirrored, base in (("", 0), ("mirrored.", 100))
        for name, size in (("latent", 64), ("feature.tiny-dino", 30))
    }
    column["mirrored"] = column.pop("mirrored.latent")
    column |= {"label": [i % 2 for i in range(10)], "key": [str(i) for i in range(10)]}
    with Preparation(tmp_path / "latents", {"of": "the test"}) as preparation:
        preparation.write(0, info.schema, {name: column[name] for name in info.columns()})
        preparation.finish(info, 1)
    return PreparedData(tmp_path / "latents")


def test_latents_are_aligned_with_their_stored_features(
    make_aligned: Make, latents: PreparedData, device: torch.device
) -> None:
    """No encoder is loaded; every sample gets its own row's features, mirrored where its latents are."""
    config = make_aligned(alignment__encoder="/nowhere/tiny-dino", model__in_channels=4, model__input_size=4)
    batches = [draw_batch(config, latents, step) for step in range(5)]
    for batch in batches:
        t = batch.flow.t.view(-1, 1, 1, 1)
        clean = (batch.flow.x_t - t * batch.flow.velocity).flatten(1)[:, 0]
        assert batch.target.shape == (4, 6, 5)
        torch.testing.assert_close(batch.target.flatten(1)[:, 0], clean, rtol=0, atol=1e-3)
    seen = torch.cat([batch.target.flatten() for batch in batches])
    assert (seen < 50).any() and (seen >= 100).any()
    stored = stored_features(config.alignment, latents)
    assert stored == (2, 3, 5)
    state = make_state(config, device, stored)
    assert state.objective.aligner.encoder is None
    loss = state.objective.aligner.loss
    state.model(batches[0].flow.x_t, batches[0].flow.t, batches[0].labels)
    tokens = state.objective.aligner.tap.tokens
    expected = 0.5 * alignment_loss(
        state.objective.projector(tokens), resample_tokens(batches[0].target, Grid(2, 3), Grid(2, 2))
    )
    assert loss(batches[0].target, Grid(2, 2)).item() == pytest.approx(expected.item())


def test_latents_without_the_encoders_features_are_refused(make_aligned: Make, latents: PreparedData) -> None:
    config = make_aligned(alignment__encoder="facebook/dinov2-base")
    with pytest.raises(ValueError, match=r"no features of facebook/dinov2-base, but tiny-dino; .* --features"):
        stored_features(config.alignment, latents)


@pytest.fixture
def published(tmp_path: Path) -> PublishedLatents:
    """Four latents of 4 x 2 x 2 in the authors' layout; the picture of row i is 16 x 16 and i everywhere."""
    for i in range(4):
        for file in (f"vae-sd/0000{i % 2}/img-mean-std-{i:08d}.npy", f"images/0000{i % 2}/img{i:08d}.png"):
            (tmp_path / "published" / file).parent.mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"published/vae-sd/0000{i % 2}/img-mean-std-{i:08d}.npy", np.full((8, 2, 2), i, np.float32))
        Image.new("RGB", (16, 16), (i, i, i)).save(tmp_path / f"published/images/0000{i % 2}/img{i:08d}.png")
    return PublishedLatents(tmp_path / "published")


def test_the_published_layout_is_aligned_with_its_pictures(
    make_aligned: Make, published: PublishedLatents, encoder: Path, device: torch.device
) -> None:
    """Every sample's own picture, paired by folder and digits; without alignment no picture is looked at."""
    options = {"data__source": published.folder, "model__in_channels": 4, "model__input_size": 2}
    config = make_aligned(**options, model__patch_size=1)
    assert stored_features(config.alignment, published) is None
    rows, _, _ = read_part(published, config.seed, 4, 1, range(4))
    batch = draw_batch(config, published, 1)
    assert batch.target.dtype == torch.uint8 and batch.target.shape == (4, 3, 16, 16)
    numbers = torch.tensor([int(Path(published.files[row]).stem[-8:]) for row in rows])
    assert torch.equal(batch.target, numbers.view(4, 1, 1, 1).expand(4, 3, 16, 16))
    state = make_state(config, device)
    loss, summands = batch_loss(config, state, batch, device)
    tokens = load_encoder(str(encoder)).encoder_tokens(batch.target)
    side = round(tokens.shape[1] ** 0.5)
    state.model(batch.flow.x_t, batch.flow.t, batch.labels)
    projected = state.objective.projector(state.objective.aligner.tap.take())
    expected = 0.5 * alignment_loss(projected, resample_tokens(tokens, Grid(side, side), Grid(2, 2)))
    assert summands["alignment"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() == pytest.approx(summands["flow"].item() + expected.item(), rel=1e-5)


def test_pictures_of_the_published_layout_that_are_not_there(make_aligned: Make, published: PublishedLatents) -> None:
    """Looked for only where alignment is on, and before the training: a missing, broken or unequal one is named."""
    alignment = make_aligned().alignment
    broken, missing = (published.folder / f"images/{name}.png" for name in ("00000/img00000000", "00001/img00000003"))
    Image.new("RGB", (16, 15)).save(broken)
    with pytest.raises(ValueError, match=r"is 16 x 16 and another 15 x 16; write all in one size"):
        published.pixels(torch.tensor([0, 1]))
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"img00000000\.png cannot be read \(cannot identify image file\)"):
        stored_features(alignment, published)
    missing.unlink()
    again = PublishedLatents(published.folder)
    with pytest.raises(ValueError, match=r"has no picture of 00001/img-mean-std-00000003\.npy"):
        stored_features(alignment, again)
    again.read(torch.tensor([3]), [torch.Generator()])


def test_compiled_blocks_give_their_tokens_too(make_aligned: Make, device: torch.device) -> None:
    """Traced by dynamo, the hook gives the loss and the gradients that it gives otherwise."""
    torch._dynamo.reset()  # what other tests compiled, or gave up compiling, is forgotten
    config = make_aligned()
    batch = draw_batch(config, load_data(config), 0)
    found = []
    for compiled in (False, True):
        state = make_state(config, device)
        randomised(state.model)
        for block in state.model.blocks if compiled else ():
            block.compile(backend="eager", fullgraph=True)
        loss, _ = batch_loss(config, state, batch, device)
        loss.backward()
        found.append((loss.item(), state.model.patch_embedding.weight.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1])
