"""The elastic latent interface: windows, budgets, Read, Write and the latent core. Imports torch only."""

from elit.elastic.budget import Schedule, draw_budget, level_of, levels
from elit.elastic.core import LatentCore, Layout
from elit.elastic.grouping import Grid, Window, group, token_index, ungroup
from elit.elastic.interface import CrossAttention, Read, Write, init_interface

__all__ = [
    "CrossAttention",
    "Grid",
    "LatentCore",
    "Layout",
    "Read",
    "Schedule",
    "Window",
    "Write",
    "draw_budget",
    "group",
    "init_interface",
    "level_of",
    "levels",
    "token_index",
    "ungroup",
]
