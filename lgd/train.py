"""``python -m lgd.train``: the same as ``lgd train`` (see lgd/training/__main__.py)."""

from lgd.signals import run_command

if __name__ == "__main__":
    run_command("lgd.training.__main__")
