"""What is checked before time is spent: that every arm can be built, and that records are of this data and code."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ablations.display import say
from ablations.plan import Sweep
from lgd.config.grids import Trial
from lgd.errors import InputError
from lgd.results.record import FILE
from lgd.results.sweep_spec import SWEEP_FILE, CodeVersion, SweepSpec
from lgd.training.resume import existing_record

if TYPE_CHECKING:
    from ablations.optuna_search import Search


@dataclass(frozen=True)
class Checked:
    """A sweep that can run. missing: the trials without a record. fingerprints: by arm, of what it trains."""

    missing: list[Trial]
    fingerprints: dict[str, str]
    search: Search | None

    @property
    def planned(self) -> list[Trial]:
        """The trials to come; for those of a search, what they vary."""
        return [*self.missing, *([Trial("", self.search.base, self.search.output)] if self.search else [])]


def check(sweep: Sweep, accept_other_code: bool, console: Console) -> Checked:
    """Refuse what cannot run. Raises InputError, one line."""
    for line in dict.fromkeys(t.experiment.schedule.lr_warning for t in sweep.trials):
        if line:
            print(f"warning: {line}", file=sys.stderr)
    search = None
    if sweep.spec.search:
        # Here, not at the top: it loads Optuna.
        from ablations.optuna_search import search_of

        search = search_of(sweep.spec, sweep.directory)
    missing = missing_trials(sweep.trials)
    fingerprints = build_arms(sweep, missing)
    check_records(sweep, fingerprints)
    if not accept_other_code:
        check_code(sweep.directory)
    for arm in sweep.grid.arms:
        if arm.skipped:
            say(console, f"skipped: {arm.name}: {arm.skipped}")
    return Checked(missing, fingerprints, search)


def missing_trials(trials: Sequence[Trial]) -> list[Trial]:
    """Those that have no record, or the record of a training that failed."""
    return [t for t in trials if existing_record(t.directory, t.experiment) is None]


def build_arms(sweep: Sweep, missing: Sequence[Trial]) -> dict[str, str]:
    """Build every arm once, and return their fingerprints.

    What cannot be built is refused now, and so are two arms that are the same. An arm that has trials ``missing`` must
    find all that training needs; one that has none may do without.
    """
    # Here, not at the top: it loads torch and detectron2.
    from lgd.training.build import dry_build

    found: dict[str, str] = {}
    names: dict[str, str] = {}
    to_train = {trial.arm for trial in missing}
    for trial in sweep.one_seed():
        try:
            fingerprint = dry_build(trial.experiment, to_train=trial.arm in to_train, directory=trial.directory)
        except InputError as error:
            raise InputError(f"arm {trial.arm!r}: {error}") from None
        if fingerprint in names:
            first = names[fingerprint]
            raise InputError(f"arms {first!r} and {trial.arm!r} would train the same thing ({fingerprint})")
        names[fingerprint] = trial.arm
        found[trial.arm] = fingerprint
    return found


def check_records(sweep: Sweep, fingerprints: dict[str, str]) -> None:
    """Refuse to put new trials beside records of what the code or the data no longer build."""
    for trial in sweep.one_seed():
        record = existing_record(trial.directory, trial.experiment)
        same = record is None or record.same_build(fingerprints[trial.arm])
        if same is None:
            raise InputError(
                f"{trial.directory}: its record is of an earlier version of this suite, which named what it built in"
                " another way: it can be reported and compared, but not added to: choose another --output"
            )
        if not same:
            assert record is not None
            raise InputError(
                f"{trial.directory}: its record was made from other data or code (fingerprint {record.fingerprint},"
                f" now {fingerprints[trial.arm]}; commit {record.git_commit[:12]}): choose another --output"
            )


def code_version() -> CodeVersion:
    """Versions of the packages that compute a sweep's numbers, and the files of this one by a digest."""
    import lgd
    from lgd.results import provenance

    root = Path(lgd.__file__).parent
    files = {
        path.relative_to(root.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12]
        for path in sorted(root.rglob("*.py"))
    }
    return CodeVersion(versions=provenance.versions(), files=files)


def check_code(directory: Path) -> None:
    """Refuse to mix trials of different code in one table."""
    if not (directory / SWEEP_FILE).exists() or not list(directory.glob(f"trials/*/{FILE}")):
        return
    there = SweepSpec.read(directory).code
    different = "it does not say by which" if there is None else _difference(there, code_version())
    if different:
        raise InputError(
            f"{directory} holds trials that other code ran ({different}): choose another --output, or say"
            " --accept-other-code"
        )


def _difference(there: CodeVersion, here: CodeVersion) -> str:
    """In one line; empty where there is none."""
    versions = [
        f"{name} {there.versions.get(name, 'none')} there and {here.versions.get(name, 'none')} here"
        for name in sorted({*there.versions, *here.versions})
        if there.versions.get(name) != here.versions.get(name)
    ]
    files = [x for x in sorted({*there.files, *here.files}) if there.files.get(x) != here.files.get(x)]
    shown = files[:5] + ([f"{len(files) - 5} more"] if len(files) > 5 else [])
    return ", ".join(versions + ([f"changed: {', '.join(shown)}"] if files else []))
