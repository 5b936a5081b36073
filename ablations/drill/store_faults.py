"""Faults of object storage: it refuses, is slow, loses connections, or is away. Of the server that the drill starts."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ablations.drill.commands import Running
from ablations.drill.drill import Drill, Fault
from ablations.drill.hooks import Point
from ablations.drill.s3_server import Faults
from lgd.storage.store import PATIENCE_VARIABLE

ALL = 10**9
"""Requests: every one."""

OUTAGE_S = 20.0
"""Seconds for which a store refuses, and comes back."""

PATIENCE_S = 5
"""Seconds for which a sweep waits for one that does not come back."""

SLOW_S = 0.5
"""Seconds that a slow answer takes."""


class StoreFault(Fault):
    """A fault of the store in which the sweep runs, from a moment in a trial on."""

    needs = "server"

    def faults(self, drill: Drill) -> Faults:
        assert drill.place.bucket is not None
        assert drill.place.bucket.faults is not None
        return drill.place.bucket.faults

    def begin(
        self,
        drill: Drill,
        point: Point,
        kind: str,
        requests: int = ALL,
        only: str = "",
        extra: Mapping[str, str] | None = None,
    ) -> Running:
        """Start the sweep, and from a moment in a trial on let that many requests meet a fault of that kind.

        only: those whose path has this in it. extra: environment variables.
        """
        command = drill.start(drill.at(point), extra)
        command.wait_for_moment()
        self.faults(drill).inject(kind, requests, only)
        command.go()
        return command


class Refusing(StoreFault):
    """The store answers 503 for a while: the sweep waits, and loses nothing."""

    name = "store-503"
    summary = f"the store answers 503 (slow down) to everything for {OUTAGE_S:.0f} s"

    def inject(self, drill: Drill) -> None:
        command = self.begin(drill, "step", "503")
        time.sleep(OUTAGE_S)
        self.faults(drill).clear()
        drill.check_message(command.wait(), [0], r"^written:")


class Slow(StoreFault):
    """Every answer of the store takes long."""

    name = "store-slow"
    summary = f"every answer of the store takes {SLOW_S:.1f} s"

    def inject(self, drill: Drill) -> None:
        self.faults(drill).seconds = SLOW_S
        done = self.begin(drill, "step", "slow").wait()
        self.faults(drill).clear()
        drill.check_message(done, [0], r"^written:")


class LostUpload(StoreFault):
    """The connection is lost while a checkpoint is uploaded."""

    name = "store-upload-lost"
    summary = "the connection is lost in a checkpoint's upload, five times"

    def inject(self, drill: Drill) -> None:
        drill.check_message(self.begin(drill, "checkpoint", "drop", 5, "/checkpoints/").wait(), [0], r"^written:")


class Away(StoreFault):
    """The store does not come back in time: the sweep ends with one line, and goes on when it is there again.

    On the same disk, which alone has what was trained meanwhile.
    """

    name = "store-away"
    summary = f"the store is away for longer than the sweep waits ({PATIENCE_VARIABLE})"

    def inject(self, drill: Drill) -> None:
        disk = drill.place.disk()
        done = self.begin(drill, "step", "503", extra={PATIENCE_VARIABLE: str(PATIENCE_S), **disk}).wait()
        self.faults(drill).clear()
        drill.check_message(done, [3], rf"{drill.place.results}.*: no answer for {PATIENCE_S} s", "go on with: ")
        resumed = drill.place.start(["--resume", drill.place.results, "--cpus", "1"], None, disk).wait()
        drill.check_message(resumed, [0], r"^written:")


STORE: tuple[Fault, ...] = (Refusing(), Slow(), LostUpload(), Away())
