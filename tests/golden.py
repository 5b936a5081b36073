"""Makes golden_trace.json anew: ``python -m tests.golden``."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from lgd import train
from lgd.files import write_text
from tests.test_train import GOLDEN, golden_experiment

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        record = train.run(golden_experiment(), Path(directory))
    trace = {name: [round(value, 6) for _, value in curve] for name, curve in record.losses.items()}
    write_text(GOLDEN, json.dumps(trace, indent=1) + "\n")
