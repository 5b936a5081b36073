"""Measurements of what training costs, and results that are quoted."""

import lgd  # noqa: F401  silences libraries, before any of them is imported
