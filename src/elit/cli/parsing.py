"""What several commands parse and print alike."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from elit.console import console
from elit.errors import UserError

if TYPE_CHECKING:
    import torch

    from elit.reports.report import Report

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def finish(report: "Report", out: Path) -> None:
    """Writes a report, prints its tables, and says where it is."""
    from elit.reports.report import write_report, written_files

    write_report(report, out)
    console.print(f"pictures and figures are in {out}: {written_files(report)}")


def out_folder(text: str, option: str = "--out") -> Path:
    """The folder to write to, ~ resolved. Raises UserError for an empty text, which would be the current folder."""
    if not text.strip():
        raise UserError(f"{option} is empty; give a folder, or . for the current one")
    return Path(text).expanduser()


def split_labels(text: str | None) -> list[str] | None:
    """Comma-separated labels; None where none are given."""
    return None if text is None else [label.strip() for label in text.split(",")]


def parse_numbers(text: str) -> list[float]:
    """ "1, 1.5" to numbers. Raises UserError for what is none."""
    out = []
    for part in text.split(","):
        try:
            out.append(float(part))
        except ValueError:
            raise UserError(f"{part.strip()!r} is not a number; write numbers such as 0.5,1,1.5") from None
    return out


def parse_budgets(text: str) -> list[float]:
    """ "1/16, 0.5" to fractions. Raises UserError for what is not a fraction in (0, 1]."""
    from elit.target import parse_fraction

    return [parse_fraction(part) for part in text.split(",")]


def torch_dtype(name: str) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
