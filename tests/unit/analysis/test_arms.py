from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from analysis.load import Run
from analysis.render import markdown, print_table
from analysis.table_builders.arms import arms_table, arms_text, notes
from analysis.table_builders.build import build
from lgd.errors import InputError
from lgd.results.record import Contention, Record, Scores

from .conftest import MakeRecord

TEACHER = Scores(AP=30.0, AP50=None, AP75=None, APs=None, APm=None, APl=None)

ARMS = ["baseline", "LGD", "without encoder", "without mapper"]


@pytest.fixture
def records(make_record: MakeRecord) -> list[Record]:
    """LGD gains 1, 2, 3 on seeds 0, 1, 2: the interval of tests/unit/analysis/test_stats.py."""
    return [
        *(make_record("baseline", seed, 20.0 + 10 * seed, 50.0) for seed in range(3)),
        *(make_record("LGD", seed, 21.0 + 11 * seed, 90.0 + seed) for seed in range(3)),
        make_record("without encoder", 0, 19.5, 80.0),
        make_record("without encoder", 1, status="diverged", reason="loss_cls became nan"),
        make_record("without mapper", 0, status="failed", reason="RuntimeError: a | b\n<class 'int'> __init__"),
    ]


def _markdown(records: list[Record], arms: list[str], reference: str) -> str:
    return markdown(arms_text(records, arms, reference), title=False)


GOLDEN = r"""
| arm             |   seeds |   AP |   AP50 |   AP75 |   difference to baseline |   cost |   train s |   host MiB |
|:----------------|--------:|-----:|-------:|-------:|-------------------------:|-------:|----------:|-----------:|
| baseline        |       3 | 30.0 |   50.0 |   25.0 |                reference |  1.00x |      50.0 |        500 |
| LGD             |       3 | 32.0 |   52.0 |   27.0 |        +2.0 [-0.5, +4.5] |  1.82x |      91.0 |        500 |
| without encoder |       1 | 19.5 |   39.5 |   14.5 |                     -0.5 |  1.60x |      80.0 |        500 |
| without mapper  |       – |    – |      – |      – |                        – |      – |         – |          – |

- Numbers from preset nano: not a reproduction of the paper.
- Differences are means over the seeds that an arm and baseline both finished, with the two-sided 95% Student t interval of the paired differences (per arm, not corrected for the number of arms); one without an interval has one seed in common, which says nothing about the spread between seeds.
- Preset nano; data shapes; 600 steps of 8 images.
- Hardware: A processor, 2 cores, 8 GiB, no GPU.
- Versions: torch 2.11.0, detectron2 0.6; git commit 0123456789ab+changes.
- diverged: without encoder, seed 1: loss_cls became nan
- failed: without mapper, seed 0: RuntimeError: a \| b \<class 'int'> \_\_init\_\_
"""  # noqa: E501


def test_golden_markdown(records: list[Record]) -> None:
    assert _markdown(records, ARMS, "baseline") == GOLDEN.lstrip("\n")


def test_order_of_records_does_not_matter(records: list[Record]) -> None:
    table = arms_table(records, ARMS, "baseline")
    pd.testing.assert_frame_equal(arms_table(records[::-1], ARMS, "baseline"), table)


def test_table_values_and_types(records: list[Record]) -> None:
    table = arms_table(records, ARMS, "baseline").set_index("arm")
    lgd = table.loc["LGD"]
    assert lgd["AP_difference"] == pytest.approx(2.0)
    assert lgd["AP_difference_low"] == pytest.approx(2 - 2.484138, abs=1e-5)
    assert lgd["AP_difference_high"] == pytest.approx(2 + 2.484138, abs=1e-5)
    assert lgd["training_cost"] == pytest.approx(91 / 50)
    assert list(table["pairs"].fillna(-1)) == [-1, 3, 1, 0]
    assert list(table["seeds"]) == [3, 3, 1, 0]
    assert table.loc["without mapper"].drop(["seeds", "pairs"]).isna().all()
    assert set(map(str, table.dtypes)) == {"Int64", "Float64"}
    assert "teacher_AP" not in table


def test_only_common_seeds_are_compared(make_record: MakeRecord) -> None:
    records = [
        make_record("baseline", 0, 20.0, 10.0),
        make_record("baseline", 1, 90.0, 1000.0),
        make_record("LGD", 0, 22.0, 15.0),
        make_record("LGD", 2, 10.0, 1.0),
    ]
    row = arms_table(records, ["LGD"], "baseline").iloc[0]
    assert row["AP"] == 16.0
    assert (row["AP_difference"], row["pairs"], row["training_cost"]) == (2.0, 1, 1.5)
    assert any("baseline has no result for seed 2" in note for note in notes(records, ["LGD"], "baseline"))


def test_one_seed_makes_no_claim(make_record: MakeRecord) -> None:
    records = [make_record("baseline", 0, 20.0, 50.0), make_record("LGD", 0, 22.14, 91.5)]
    text = _markdown(records, ["baseline", "LGD"], "baseline")
    assert "|                     +2.1 |  1.83x |" in text
    assert "one seed in common, which says nothing about the spread" in text
    assert "t interval" not in text


def test_without_a_reference_there_is_no_difference(make_record: MakeRecord) -> None:
    records = [make_record("LGD", seed, 22.0, 10.0) for seed in range(2)]
    rows = [line.split("|")[1:-1] for line in _markdown(records, ["baseline", "LGD"], "baseline").splitlines()[:4]]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert cells[2] == ["baseline", *["–"] * 8]
    assert cells[3] == ["LGD", "2", "22.0", "42.0", "17.0", "–", "–", "10.0", "500"]
    assert "no difference to show" in _markdown(records, ["baseline", "LGD"], "baseline")


def test_no_records_at_all() -> None:
    text = _markdown([], ["baseline", "LGD"], "baseline")
    assert "| LGD      |       – |" in text


def test_teacher_ap_shows_when_measured(make_record: MakeRecord) -> None:
    teacher = Scores(AP=45.25, AP50=None, AP75=None, APs=None, APm=None, APl=None)
    records = [make_record("baseline", 0, 20.0, 1.0), make_record("LGD", 0, 22.0, 2.0, teacher=teacher)]
    table = arms_table(records, ["baseline", "LGD"], "baseline")
    assert list(table["teacher_AP"].fillna(-1.0)) == [-1.0, 45.25]
    lines = _markdown(records, ["baseline", "LGD"], "baseline").splitlines()
    assert "|   teacher AP |" in lines[0]
    assert "|            – |" in lines[2]
    assert "|         45.2 |" in lines[3]


def test_gpu_memory_is_the_one_shown(make_record: MakeRecord) -> None:
    records = [
        make_record("baseline", 0, 20.0, peak_memory_mib={"host": 900.0, "device": 4000.0}),
        make_record("baseline", 1, 20.0, peak_memory_mib={"host": 900.0, "device": 4096.0}),
        make_record("LGD", 0, 20.0, peak_memory_mib={"host": 900.0}),
    ]
    table = arms_table(records, ["baseline", "LGD"], "baseline")
    assert table["peak_memory_mib[device]"].fillna(-1.0).tolist() == [4096.0, -1.0]
    assert "GPU MiB" in _markdown(records, ["baseline"], "baseline")


def test_small_numbers_have_no_negative_zero(make_record: MakeRecord) -> None:
    records = [make_record("baseline", 0, 20.04), make_record("LGD", 0, 20.0)]
    assert "| +0.0 |" in " ".join(_markdown(records, ["LGD"], "baseline").split())


@pytest.mark.parametrize(("preset", "marked"), [("paper", False), ("small", True), ("", True)])
def test_only_the_paper_preset_counts_as_reproduction(make_record: MakeRecord, preset: str, marked: bool) -> None:
    text = _markdown([make_record("baseline", 0, 20.0, preset=preset)], ["baseline"], "baseline")
    assert ("not a reproduction of the paper" in text) is marked


def test_one_trial_of_another_preset_is_marked(make_record: MakeRecord) -> None:
    records = [make_record("baseline", 0, 20.0, preset="paper"), make_record("LGD", 0, 20.0, preset="nano")]
    assert "Numbers from preset nano: not a reproduction" in _markdown(records, ["LGD"], "baseline")


def test_names_cannot_break_the_table(make_record: MakeRecord) -> None:
    name = "a|b\n\n# *c* <br> `d` my_arm"
    text = _markdown([make_record(name, 0, 20.0)], [name], "baseline")
    row = text.splitlines()[2]
    assert row.startswith(r"| a\|b # \*c\* \<br> \`d\` my_arm |")
    widths = {len(line) for line in text.splitlines()[:3]}
    assert len(widths) == 1


def test_different_hardware_is_said(make_record: MakeRecord) -> None:
    gpu = {"cpu": "A processor", "cores": "16", "memory_gib": "64", "gpu": "1 x H100, 80 GiB"}
    records = [make_record("baseline", 0, 20.0), make_record("LGD", 0, 20.0, hardware=gpu)]
    said = "\n".join(notes(records, ["baseline", "LGD"], "baseline"))
    assert "GPU 1 x H100, 80 GiB" in said
    assert "different hardware" in said
    assert "different hardware" not in "\n".join(notes(records[:1], ["baseline"], "baseline"))


def test_arms_left_out_are_said(records: list[Record]) -> None:
    said = notes(records, ["baseline", "LGD"], "baseline")
    assert "Recorded here, but not in the table: without encoder, without mapper." in said


def test_ambiguous_pairs_are_refused(make_record: MakeRecord) -> None:
    records = [make_record("baseline", 0, 20.0), make_record("baseline", 0, 21.0)]
    with pytest.raises(InputError, match="two finished records"):
        arms_table(records, ["baseline"], "baseline")


def _printed(width: int, records: list[Record], arms: list[str], reference: str) -> str:
    stream = io.StringIO()
    print_table(arms_text(records, arms, reference), Console(file=stream, width=width))
    return stream.getvalue()


def test_terminal_table_fits_80_columns(records: list[Record]) -> None:
    text = _printed(80, records, ARMS, "baseline")
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.startswith("LGD"))
    assert row.split() == ["LGD", "3", "32.0", "52.0", "27.0", "+2.0", "[-0.5,", "+4.5]", "1.82x", "91.0", "500"]
    assert "not a reproduction" in text


def test_a_narrow_terminal_leaves_out_what_is_missed_least(make_record: MakeRecord) -> None:
    """With every column there is, and long names, the table fits all the same."""
    busy = Contention(own_cores=1.0, other_cores=0.8, cores=2)
    records = [
        make_record(arm, seed, 31.2 + seed, 1234.5, contention=busy, teacher=TEACHER, peak_memory_mib={"host": 12345})
        for arm in ("baseline", "LGD residual (ours)", "baseline at the cost of LGD residual (ours)")
        for seed in range(2)
    ]
    arms = list(dict.fromkeys(record.arm for record in records))
    table = arms_text(records, arms, "baseline", images=dict.fromkeys(arms[1:], (-1.25, 12.5)))
    for width in (80, 70):
        stream = io.StringIO()
        print_table(table, Console(file=stream, width=width))
        text = stream.getvalue()
        assert max(map(len, text.splitlines())) <= width
        # No number is broken, and no heading.
        assert {"31.7", "1.00x", "30.0", "cost", "seeds", "[-1.2,"} <= set(text.split())
    assert "Left out for want of room: host MiB" in text
    wide = io.StringIO()
    print_table(table, Console(file=wide, width=140))
    assert "Left out" not in wide.getvalue()


def test_terminal_shows_markup_as_it_is(make_record: MakeRecord) -> None:
    record = make_record("[red]arm[/red]", 0, status="failed", reason="[bold]x[/nothing]")
    text = _printed(120, [record], ["[red]arm[/red]"], "baseline")
    assert "[red]arm[/red]   " in text
    assert "[bold]x[/nothing]" in text


def test_cost_counts_every_device(make_record: MakeRecord) -> None:
    """Four devices that are done in half the time cost twice as much."""
    base = make_record("baseline", 0, 30.0, 64.0, device_seconds={"training": 64.0})
    lgd = make_record("LGD", 0, 30.0, 32.0, devices=4, device_seconds={"training": 128.0})
    row = arms_table([base, lgd], ["baseline", "LGD"], "baseline").set_index("arm").loc["LGD"]
    assert (row["training_cost"], row["training_seconds"]) == (2.0, 32.0)


def test_an_arm_on_other_data_is_refused(make_record: MakeRecord) -> None:
    records = [make_record(arm, 0, 30.0, data={"fingerprint": arm}) for arm in ("baseline", "LGD")]
    with pytest.raises(InputError, match="other data than baseline seed 0"):
        arms_table(records, ["baseline", "LGD"], "baseline")


def test_load_of_other_work_stands_beside_the_cost(make_record: MakeRecord) -> None:
    busy = Contention(own_cores=1.0, other_cores=0.5, cores=2)
    records = [make_record("baseline", 0, 20.0, 50.0), make_record("LGD", 0, 22.0, 91.5, contention=busy)]
    table = arms_table(records, ["baseline", "LGD"], "baseline")
    assert table["other_load"].fillna(-1.0).tolist() == [-1.0, 0.25]
    text = arms_text(records, ["baseline", "LGD"], "baseline")
    column = list(text.header).index("other load")
    assert [row[column] for row in text.rows] == ["–", "25 %"]
    assert text.header[column - 2 : column] == ["cost", "train s"]
    assert any("other load" in note and "own other trials included" in note for note in text.notes)
    quiet = arms_text(records[:1], ["baseline"], "baseline")
    assert "other load" not in [*quiet.header, *quiet.notes]


def test_spread_of_the_steps_stands_with_the_cost(make_record: MakeRecord) -> None:
    """In the table of arms, and with the other work in the table of hours."""
    records = [
        make_record(arm, 0, 20.0, 50.0, contention=Contention(own_cores=1, other_cores=x, cores=2, step_spread=spread))
        for arm, x, spread in (("baseline", 0.1, 0.04), ("LGD", 0.5, 0.31))
    ]
    table = arms_table(records, ["baseline", "LGD"], "baseline")
    assert table["step_spread"].tolist() == [0.04, 0.31]
    notes = arms_text(records, ["baseline", "LGD"], "baseline").notes
    (note,) = [x for x in notes if "spread of the step times" in x]
    assert "4% (baseline) to 31% (LGD)" in note
    hours = build("gpu-hours", [Run(x, Path(x.arm)) for x in records])[1].notes
    assert note in hours
    (load,) = [x for x in hours if "own other trials included" in x]
    assert "5% (baseline) to 25% (LGD)" in load
    # No record says: no column, no note.
    older = [x.model_copy(update={"contention": None}) for x in records]
    assert "step_spread" not in arms_table(older, ["baseline", "LGD"], "baseline")
    assert not [x for x in build("gpu-hours", [Run(x, Path(x.arm)) for x in older])[1].notes if "other trials" in x]


def test_memory_of_older_records_is_left_out(make_record: MakeRecord) -> None:
    """It grew with the order of a worker's trials."""
    older = arms_table([make_record("baseline", 0, 20.0, fingerprint_version=1)], ["baseline"], "baseline")
    assert not any("memory" in str(name) for name in older)
    assert "peak_memory_mib[host]" in arms_table([make_record("baseline", 0, 20.0)], ["baseline"], "baseline")
