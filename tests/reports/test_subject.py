"""What a report is about: labels by name where the data are known, by number everywhere, and a plain word where not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import DENSE, EMOJI, LATENT, model_folder, subject_of

from elit.card import load_card, save_card
from elit.errors import UserError
from elit.pixels import to_float
from elit.reports.subject import DEMO_LABELS, Subject, load_subject, require_known


@pytest.fixture(scope="module")
def emoji(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("emoji") / "model", EMOJI)


@pytest.fixture(scope="module")
def subject(emoji: Path) -> Subject:
    return load_subject(emoji, "heart,3", seed=7, steps=9)


def test_labels_of_the_emoji_go_by_name_and_by_number(subject: Subject) -> None:
    assert subject.data is not None and subject.label_names == ["heart", subject.data.label_names[3]]
    assert [subject.data.label_names[i] for i in subject.labels] == subject.label_names
    assert (subject.seed, subject.recipe.steps, subject.recipe.guidance.scale) == (7, 9, 2.0)
    require_known(subject)
    assert subject.notes() == []


def test_real_examples_carry_their_label(subject: Subject) -> None:
    examples = subject.real_examples(3)
    assert examples.shape == (3, 2, 3, 32, 32) and subject.data is not None
    for column, label in enumerate(subject.labels):
        known = to_float(subject.data.images[subject.data.labels == label])
        assert all(any(torch.equal(image, one) for one in known) for image in examples[:, column])


def test_the_dozen_is_shown_where_no_labels_are_given(emoji: Path) -> None:
    assert load_subject(emoji).label_names == list(DEMO_LABELS)


def test_another_model_has_numbers_for_labels(tmp_path: Path) -> None:
    subject = subject_of(tmp_path, LATENT)
    assert subject.data is None
    assert (subject.labels, subject.label_names) == ([0, 1, 2, 3, 4], ["0", "1", "2", "3", "4"])
    assert load_subject(tmp_path / "model", "4,0,4").labels == [4, 0], "each once"
    notes = " ".join(subject.notes())
    assert "no measured quality" in notes and "codec" in notes
    assert "4 x 8 x 12" in subject.describe()
    with pytest.raises(ValueError, match="a model of the emoji"):
        require_known(subject)


def test_a_model_of_as_many_classes_by_other_names_is_not_the_emojis(tmp_path: Path) -> None:
    """A fresh one has no names at all; only the emoji's own, in their order, make its data known."""
    folder = model_folder(tmp_path / "model", EMOJI)
    names = load_card(folder).label_names
    assert load_subject(folder).data is not None
    for others in ((), tuple(f"class {i}" for i in range(99)), names[::-1]):
        save_card(replace(load_card(folder), label_names=others), folder)
        subject = load_subject(folder, "0,3")
        assert subject.data is None and "not known" in subject.notes()[0]
        assert subject.label_names == ([others[0], others[3]] if others else ["0", "3"])
        with pytest.raises(UserError, match="by the names in its card"):
            require_known(subject)


def test_labels_are_names_numbers_and_ranges_as_elsewhere(tmp_path: Path) -> None:
    """With the names of the card, for any model; each label is shown once."""
    folder = model_folder(tmp_path / "model", LATENT)
    save_card(replace(load_card(folder), label_names=("a", "b", "c", "d", "e")), folder)
    subject = load_subject(folder, "c,0-1,2")
    assert (subject.labels, subject.label_names) == ([2, 0, 1], ["c", "a", "b"])
    for wrong in ("balanced", "uniform"):
        with pytest.raises(UserError, match="labels that are listed"):
            load_subject(folder, wrong)
    large = model_folder(tmp_path / "large", replace(LATENT, num_classes=1000))
    with pytest.raises(UserError, match="at most 100 labels"):
        load_subject(large, "0-100")


def test_a_wrong_label_or_count_of_steps_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", DENSE)
    for wrong in ("heart", "5", "-1"):
        with pytest.raises(ValueError, match="0 to 4"):
            load_subject(folder, wrong)
    with pytest.raises(ValueError, match="at least 1"):
        load_subject(folder, steps=0)
