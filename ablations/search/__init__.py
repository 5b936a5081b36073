"""Searching with Optuna: the space, the study and where it lies, its results."""
