"""The options of a search. Loads little before they are read."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lgd.results.sweep_spec import SearchSpec, SweepSpec


def add_search(parser: argparse.ArgumentParser, *, of_method: bool = True) -> None:
    """of_method: with ``--method``, which a command may have already."""
    group = parser.add_argument_group("the search")
    if of_method:
        group.add_argument("--method", metavar="NAME", help="whose settings are searched (default: lgd)")
    group.add_argument("--samples", type=int, metavar="N", help="trials in the results directory (default: 20)")
    group.add_argument("--objectives", metavar="A,B", help="AP (default), or AP,gpu_hours for a Pareto front")
    group.add_argument("--early-stop", action="store_true", help="end trials that fall behind in AP (ASHA)")
    group.add_argument(
        "--search-space", action="append", default=[], metavar="SPACE",
        help="KEY=LOW:HIGH or KEY=A,B (repeatable); --set fixes KEY",
    )  # fmt: skip
    group.add_argument("--study", metavar="URL", help="place of Optuna's study, if elsewhere")
    group.add_argument("--study-name", metavar="NAME", help="its name there (default: lgd)")


def search_options(options: argparse.Namespace) -> SearchSpec:
    """The search that the options describe. Its method, where it is code, is imported, for the command names it.

    Raises InputError for what cannot be searched for.
    """
    from ablations.plan import search_spec
    from ablations.search.search_space import normalized
    from lgd.config.method import DEFAULT, import_named

    import_named([], options.method)
    objectives = [x.strip() for x in (options.objectives or "AP").split(",")]
    samples = 20 if options.samples is None else options.samples
    method = options.method or DEFAULT
    found = search_spec(samples, objectives, options.early_stop, options.study, options.study_name, method)
    return found.model_copy(update={"space": normalized(options.search_space)})


def print_space(spec: SweepSpec) -> None:
    """Print what a sweep's search varies, where it has one. Raises InputError where that is nothing."""
    if spec.search is None:
        return
    from ablations.plan import search_base
    from ablations.search.search_space import space_of

    method = search_base(spec).method
    print(space_of(spec.overrides, spec.search.space, method).described(method))
