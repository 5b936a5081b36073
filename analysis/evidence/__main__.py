"""``python -m analysis.evidence``."""

from __future__ import annotations

import sys

from lgd.signals import exit_on_interrupt

with exit_on_interrupt():
    from analysis.evidence.page import main

if __name__ == "__main__":
    sys.exit(main())
