"""Figures of what trainings gain and cost."""
