"""All faults, by name."""

from __future__ import annotations

from ablations.drill.cluster import CLUSTER
from ablations.drill.damages import FILES
from ablations.drill.drill import Fault
from ablations.drill.faults import RUNNING
from ablations.drill.store_faults import STORE

FAULTS: dict[str, Fault] = {fault.name: fault for fault in (*RUNNING, *CLUSTER, *FILES, *STORE)}
"""In the order in which they are drilled."""
