"""The options of commands that name a detector."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from lgd.config.detector_source import absolute_detector
from lgd.config.presets import BUILT_IN_DETECTORS, built_in_settings
from lgd.errors import InputError


def add_detector_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The options that :func:`detector_overrides` reads."""
    parser.add_argument(
        "--detector", metavar="SPEC",
        help="train this detector: fcos or the like, a detectron2 config (.yaml, .py, or zoo:NAME), torchvision:NAME,"
        " or package.module:function (docs/own-detector.md)",
    )  # fmt: skip
    parser.add_argument(
        "--detector-set", action="append", default=[], metavar="KEY=VALUE",
        help="change a key of its config, or an argument of its function; may be given several times",
    )  # fmt: skip


def detector_overrides(options: argparse.Namespace, overrides: Sequence[str], preset: str) -> list[str]:
    """The settings, as key=value, that --detector and --detector-set give, followed by ``overrides`` (of --set).

    preset: that they change. Raises InputError, one line, where they contradict each other.
    """
    if options.detector is None:
        if options.detector_set:
            raise InputError(f"--detector-set {options.detector_set[0]} needs --detector")
        return list(overrides)
    built_in = options.detector in BUILT_IN_DETECTORS
    for assignment in overrides:
        key = assignment.partition("=")[0].strip()
        named = key == ("detector.name" if built_in else "detector.source")
        if named or (key == "detector.overrides" and options.detector_set):
            flag = "--detector" if named else "--detector-set"
            raise InputError(f"--set {assignment} contradicts {flag}: leave one of them out")
    if built_in:
        if options.detector_set:
            raise InputError(
                f"--detector-set {options.detector_set[0]}: {options.detector} has --set detector.KEY=VALUE"
            )
        return [
            *(f"{key}={json.dumps(value)}" for key, value in built_in_settings(options.detector, preset).items()),
            *overrides,
        ]
    given = [f"detector.source={absolute_detector(options.detector)}"]
    if options.detector_set:
        given.append(f"detector.overrides={json.dumps(options.detector_set)}")
    return [*given, *overrides]
