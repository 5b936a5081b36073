"""Differences and ratios over seeds with their intervals, power, repeated looks, bootstrap. Knows no records."""
