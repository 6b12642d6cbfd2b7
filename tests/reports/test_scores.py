"""Measured quality as people read it."""

from elit.reports.scores import quality_sheet


def test_columns_that_nothing_was_measured_for_are_left_out() -> None:
    """One figure keeps a column; a column of dashes and blanks goes, with its cells."""
    sheet = quality_sheet("t", ["scale", "FD", "KID", ""], [["1", "3.5", "-", ""], ["2", "-", "-", ""]], "note")
    assert (list(sheet.columns), list(sheet.rows)) == (["scale", "FD"], [["1", "3.5"], ["2", "-"]])
    assert (sheet.title, sheet.note) == ("t", "note")
