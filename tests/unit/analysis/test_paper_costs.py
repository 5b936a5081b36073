"""Table 7 of trainings on several machines."""

from __future__ import annotations

from analysis.frame import row_dicts
from analysis.load import Run
from analysis.table_builders.paper_costs import costs

from .test_paper_tables import BASE, FGFI, LGD, _run, _trials


def test_hours_of_unlike_hardware_give_no_ratio() -> None:
    """LGD's second seed ran elsewhere, and FGFI's both: twice as fast."""
    trials, runs = _trials("table7", 2), list[Run]()
    for arm, hours in ((BASE, 10.0), (LGD, 20.0), (FGFI, 30.0)):
        for seed in range(2):
            elsewhere = arm == FGFI or (arm, seed) == (LGD, 1)
            runs.append(
                _run(
                    trials[arm, seed], 40.0, device_seconds={"training": 3600 * hours / (2 if elsewhere else 1)},
                    hardware={"cpu": "fast" if elsewhere else "slow", "cores": "2", "gpu": "none"},
                )
            )  # fmt: skip
    found = {(r["method"], r["quantity"]): r["measured"] for r in row_dicts(costs(runs))}
    assert (found["LGD", "method-specific"], found["LGD", "ratio to baseline"]) == (10.0, 2.0)
    assert found["FGFI (R-101)", "overall"] == 15.0
    for name in ("method-specific", "ratio to baseline"):
        assert found["FGFI (R-101)", name] is None
    assert found["LGD", "below FGFI's method-specific"] is None
