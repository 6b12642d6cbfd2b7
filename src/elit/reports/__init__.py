"""Pictures and tables of what a budget costs and gives."""
