"""Labels of several factors: their numbers, names and embeddings, how training drops them, and guidance towards one."""

import itertools
from collections.abc import Callable

import pytest
import torch

from elit import DiT, DiTConfig, Guidance, UserError
from elit.condition import Labels, factors_of, labels_of, opened
from elit.guidance import guided_velocity
from elit.labels import factor_names, joined_names, joined_number, labels_in_full, parse_labels
from elit.seeding import generator_for
from elit.training.batch import drop_labels

SIZES = (3, 2)
NAMES = joined_names(("cat", "dog", "frog"), ("flat", "round"))
NULL = 11  # 4 x 3 values, the last of which leaves both open


def test_labels_count_through_all_values_the_last_factor_fastest() -> None:
    every = list(itertools.product(range(4), range(3)))
    labels = torch.arange(12)
    assert [tuple(pair) for pair in torch.stack(factors_of(labels, SIZES), 1).tolist()] == every
    assert torch.equal(labels_of(factors_of(labels, SIZES), SIZES), labels)
    assert [joined_number(pair, SIZES) for pair in every] == labels.tolist()
    assert [factors[1].tolist() for factors in (factors_of(opened(labels, SIZES, 1), SIZES),)] == [[2] * 12]
    assert factors_of(opened(labels, SIZES, 1), SIZES)[0].tolist() == [first for first, _ in every]


def test_names_are_pairs_with_a_star_for_any() -> None:
    assert NAMES[:4] == ("cat/flat", "cat/round", "cat/*", "dog/flat")
    assert NAMES[-1] == "*/round" and len(NAMES) == NULL
    assert factor_names(NAMES) == [["cat", "dog", "frog"], ["flat", "round"]]
    assert labels_in_full(NAMES) == [0, 1, 3, 4, 6, 7]
    assert factor_names(("a/b", "c/d")) == factor_names(("cat", "dog")) == factor_names(()) == []


def test_an_embedding_is_the_sum_of_its_factors_rows(make_dit: Callable[..., DiT]) -> None:
    model = make_dit(num_classes=NULL, label_factors=SIZES)
    rows = model.label_embedding.weight
    assert rows.shape == (4 + 3, 32)
    for label, (first, second) in enumerate(itertools.product(range(4), range(3))):
        expected = rows[first] + rows[4 + second]
        torch.testing.assert_close(model.label_embedding(torch.tensor([label]))[0], expected)


def test_a_config_whose_factors_do_not_make_its_classes_is_refused() -> None:
    with pytest.raises(UserError, match=r"\[3, 2\] make 11 labels.*num_classes is 12; set num_classes 11"):
        DiTConfig(num_classes=12, label_factors=SIZES)


def test_training_drops_the_whole_label_or_one_factor_alone() -> None:
    u = torch.arange(1000) / 1000
    label = joined_number((1, 0), SIZES)
    dropped = drop_labels(torch.full((1000,), label), u, 0.1, SIZES)
    for bounds, expected in {(0, 100): NULL, (100, 200): 9, (200, 300): 5, (300, 1000): label}.items():
        assert set(dropped[slice(*bounds)].tolist()) == {expected}
    assert drop_labels(torch.tensor([-1, -1]), torch.tensor([0.15, 0.9]), 0.1, SIZES).tolist() == [NULL, NULL]
    assert drop_labels(torch.tensor([2, 2]), torch.tensor([0.05, 0.15]), 0.1, (7,)).tolist() == [7, 2]


def test_guidance_leaves_one_factor_open(make_dit: Callable[..., DiT]) -> None:
    model = make_dit(num_classes=NULL, label_factors=SIZES)
    x, labels = torch.randn(3, 3, 8, 8, generator=generator_for("factors")), torch.tensor([0, 4, 6])
    for factor, weak in ((1, [9, 10, 9]), (2, [2, 5, 8])):
        guidance = Guidance(scale=2.5, weak_label=factor)
        with torch.no_grad():
            made = guided_velocity(model, Labels(labels, NULL), None, guidance)(x, 0.5)
            strong, other = (model(x, torch.full((3,), 0.5), torch.as_tensor(y)) for y in (labels, weak))
        torch.testing.assert_close(made, other + 2.5 * (strong - other))


def test_guidance_refuses_a_factor_that_is_not_there(make_dit: Callable[..., DiT]) -> None:
    several, one = make_dit(num_classes=NULL, label_factors=SIZES), make_dit()
    for model, factor, count in ((several, 3, 2), (one, 1, 1)):
        with pytest.raises(UserError, match=f"weak_label {factor} .* have {count} factors"):
            guided_velocity(model, Labels(torch.tensor([0]), model.null_class), None, Guidance(2.0, weak_label=factor))
    with pytest.raises(UserError, match="weak_label 0 is neither"):
        Guidance(2.0, weak_label=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat/flta", r"no label 'cat/flta': no 'flta'; did you mean flat\\?"),
        ("frgo/flat", r"no 'frgo'; did you mean frog\\?"),
        ("frog", r"labels have 2 parts, such as cat/flat, and 'frog' has 1; did you mean frog/\*"),
        ("frgo", r"'frgo' has 1; did you mean frog/\*"),
        ("round", r"'round' has 1; did you mean \*/round"),
        ("cat/flat/red", r"and 'cat/flat/red' has 3; did you mean"),
        ("qqq", r"'qqq' has 1; write \* for any"),
        ("*/*", r"leaves everything open"),
    ],
)
def test_a_wrong_pair_is_told_by_its_part(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_labels(text, NULL, NAMES)


def test_drawn_labels_leave_nothing_open() -> None:
    assert parse_labels("dog/round,*/flat", NULL, NAMES).values == (4, 9)
    drawn = {parse_labels("uniform", NULL, NAMES).label(0, i) for i in range(100)}
    assert drawn == set(labels_in_full(NAMES))
    assert [parse_labels("balanced", NULL, NAMES).label(0, i) for i in range(7)] == [0, 1, 3, 4, 6, 7, 0]
