"""What the wheel carries."""

from __future__ import annotations

from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[3]


def test_the_wheel_carries_settings_and_templates_and_no_results() -> None:
    files = {x.distribution_path for x in WheelBuilder(str(ROOT)).recurse_included_files()}
    assert "lgd/config/paper.yaml" in files
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "analysis" / "templates").iterdir()}
    assert len(templates) >= 4
    assert templates <= files
    assert [name for name in sorted(files) if name.startswith(("benchmarks/results", "tests", "docs"))] == []
    assert sum(path.stat().st_size for path in map(ROOT.joinpath, files)) < 3_000_000
