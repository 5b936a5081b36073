"""Sweeps: what they are made of, how Ray Tune runs them, and the commands."""
