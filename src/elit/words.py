"""Words for people: suggestions for a mistyped name, and picks spread over a list."""

import difflib
from collections.abc import Sequence


def suggest(wrong: str, known: list[str], otherwise: str | None = None) -> str:
    """The end of an error about an unknown name: the nearest known ones; or else `otherwise`, or all."""
    folded = {name.lower(): name for name in known}
    near = [folded[name] for name in difflib.get_close_matches(wrong.lower(), folded, n=4, cutoff=0.5)]
    return f"did you mean {' or '.join(near)}?" if near else otherwise or f"known: {', '.join(known)}"


def spread(count: int, total: int) -> Sequence[int]:
    """`count` indices spread evenly over range(total); all of them where there are fewer."""
    count = min(count, total)
    return [i * total // count for i in range(count)]


def one_line(text: str) -> str:
    """A text on one line, its white space single."""
    return " ".join(text.split())


def shown(value: object) -> str:
    """A value of any kind as an error repeats it: on one line, and cut where it is long."""
    text = one_line(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
