"""Labels of a large sample: which image has which, and how they are written."""

from collections import Counter
from pathlib import Path

import pytest

from elit import UserError
from elit.labels import LabelRule, parse_labels

NAMES = ("face", "heart", "7", "country-flag", "1-2")


def listed(text: str, classes: int = 5) -> tuple[int, ...]:
    return parse_labels(text, classes, NAMES).values


def test_names_numbers_and_ranges() -> None:
    """A name goes before a number or a range of the same spelling."""
    assert listed("heart") == (1,)
    assert listed("3, country-flag,0-2") == (3, 3, 0, 1, 2)
    assert listed("7") == (2,)
    assert listed("1-2") == (4,)
    assert parse_labels("3-5", 9).values == (3, 4, 5)


def test_a_list_is_gone_through_over_and_over() -> None:
    rule = parse_labels("2,0", 5)
    assert [rule.label(seed, i) for seed in (0, 1) for i in range(5)] == [2, 0, 2, 0, 2] * 2


def test_balanced_counts_are_equal() -> None:
    rule = parse_labels("balanced", 5)
    assert Counter(rule.label(3, i) for i in range(50)) == dict.fromkeys(range(5), 10)


def test_uniform_depends_on_seed_and_index_and_covers_all_classes_alike() -> None:
    rule = parse_labels("uniform", 5)
    drawn = [rule.label(1, i) for i in range(1000)]
    assert drawn == [LabelRule("uniform", 5).label(1, i) for i in range(1000)]
    assert drawn != [rule.label(2, i) for i in range(1000)]
    assert all(count == pytest.approx(200, abs=50) for count in Counter(drawn).values())
    assert set(drawn) == set(range(5))


def test_a_file_has_a_label_a_line(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("heart\n\n4\n", encoding="utf8")
    assert listed(str(file)) == (1, 4)
    file.write_text("heart\n4\n5\n", encoding="utf8")
    with pytest.raises(ValueError, match=r"line 3 of .*labels\.txt.*0 to 4"):
        listed(str(file))
    file.write_text("\n", encoding="utf8")
    with pytest.raises(ValueError, match="holds no labels"):
        listed(str(file))
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file"):
        listed(str(file))


@pytest.mark.parametrize(
    ("text", "said"),
    [("hart", "heart"), ("5", "0 to 4"), ("-1", "0 to 4"), ("4-1", "backwards"), ("none.txt", "no such file"), ("", "''")],
)
def test_what_is_no_label_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        listed(text)


def test_all_the_classes_may_be_listed() -> None:
    """A long list is no path, and a file that is called as a class or a range does not stand in for it."""
    assert parse_labels(",".join(str(i) for i in range(999)), 1000).values == tuple(range(999))
    with pytest.raises(ValueError, match="no label '5'"):
        parse_labels(",".join(["5"] * 9999), 5)


def test_a_file_is_asked_for_by_a_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("heart", "3", "0-1", "labels.txt"):
        (tmp_path / name).write_text("country-flag\n")
    assert (listed("heart"), listed("3"), listed("0-1"), listed("labels.txt")) == ((1,), (3,), (0, 1), (3,))
    assert listed("@heart") == listed("@labels.txt") == (3,)
    for wrong, message in (("@nowhere", "^nowhere cannot be read: there is no such file$"), ("@", "not a plain file")):
        with pytest.raises(ValueError, match=message):
            listed(wrong)
    with pytest.raises(ValueError, match="there is no label 'hart'"):
        listed("hart")


SORTED = tuple(sorted(str(i) for i in range(12)))  # 0, 1, 10, 11, 2, ..., as folders are sorted


def test_names_that_are_numbers_are_not_mixed_with_indices() -> None:
    """A number alone is a name where there is one; a range that could be either is refused, unless both are the same."""
    assert parse_labels("2,10", 12, SORTED).values == (4, 2)
    assert parse_labels("0-1", 12, SORTED).values == (0, 1)
    assert parse_labels("0-9", 10, tuple("0123456789")).values == tuple(range(10))
    for ambiguous in ("0-2", "2-3", "10-11"):
        with pytest.raises(ValueError, match=f"{ambiguous} may mean names or indices"):
            parse_labels(ambiguous, 12, SORTED)
    for mixed in ("7,3", "7,0-1", "heart,7,3"):
        with pytest.raises(ValueError, match=r"7 is the name of class 2, and . is no name"):
            listed(mixed)


def test_names_beyond_the_classes_are_no_labels() -> None:
    """As of a card that was edited by hand."""
    with pytest.raises(UserError, match="no label 'c'"):
        parse_labels("c", 2, ("a", "b", "c"))


def test_a_name_with_a_comma_is_a_name(tmp_path: Path) -> None:
    assert parse_labels("tench, Tinca tinca", 3, ("cat", "tench, Tinca tinca", "dog")).values == (1,)


@pytest.mark.parametrize("text", ["9" * 5000, "0-" + "9" * 5000, "\u0663", "0-99999999", "-", "--"])
def test_absurd_numbers_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="label"):
        listed(text)
