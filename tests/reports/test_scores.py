"""Measured quality as people read it."""

from elit.reports.page import Table
from elit.reports.scores import without_empty


def test_columns_that_nothing_was_measured_for_are_left_out() -> None:
    """One figure keeps a column; a column of dashes and blanks goes, with its cells."""
    sheet = without_empty(Table("t", ["scale", "FD", "KID", ""], [["1", "3.5", "-", ""], ["2", "-", "-", ""]], "note"))
    assert (list(sheet.columns), list(sheet.rows)) == (["scale", "FD"], [["1", "3.5"], ["2", "-"]])
    assert (sheet.title, sheet.note) == ("t", "note")
