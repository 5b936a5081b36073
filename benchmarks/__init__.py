"""Benchmarks of the method's parts and of whole training steps."""
