"""Set-up scripts; not installed with the project."""
