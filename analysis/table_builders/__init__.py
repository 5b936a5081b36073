"""The tables by name: the paper's with ours beside it, those of our own grids, AP against cost."""
