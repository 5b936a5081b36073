"""Ablation grids: which runs a table needs, and the command that runs them."""
