"""Makes golden_trace.json anew: ``python -m tests.golden``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from lgd.files import write_text
from lgd.training import run as training
from tests.unit.training.test_run import GOLDEN, golden_experiment

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        record = training.run(golden_experiment(), Path(directory))
    trace = {name: [round(value, 6) for _, value in curve] for name, curve in record.losses.items()}
    write_text(GOLDEN, json.dumps(trace, indent=1) + "\n")
