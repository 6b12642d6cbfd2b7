"""Serving: a page, and a server that lowers budgets instead of making people wait."""
