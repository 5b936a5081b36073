"""A sweep's trials under Ray Tune."""
