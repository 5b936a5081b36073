"""What finished trials of a sweep have left of their trainings."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ablations.trial_config import TEACHERS
from lgd.errors import InputError
from lgd.results.cost_meter import HEARTBEAT_FILE
from lgd.results.record import FILE, load
from lgd.storage.mirror import CHECKPOINTS
from lgd.storage.outputs import names_in
from lgd.training.resume import remove_resume_files


def remove_finished_resume_files(directory: Path) -> None:
    """:func:`lgd.training.resume.remove_resume_files` for every trial and teacher of a sweep that has its result.

    For the command that has the results directory to itself.
    """
    for folder in (directory / "trials", directory / TEACHERS):
        # One listing, where it is a store: of few trials there is anything to remove.
        parts = (name.split("/") for name in names_in(folder))
        for name in sorted({x[0] for x in parts if len(x) > 1 and x[1] in (CHECKPOINTS, HEARTBEAT_FILE)}):
            # One that cannot be read has no result.
            with suppress(InputError):
                if (folder / name / FILE).exists():
                    remove_resume_files(folder / name, load(folder / name / FILE))
