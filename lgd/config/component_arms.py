"""Arms of the grid ``components``: what each of LGD's components is worth, and what our additions to it are.

Each compares two arms that differ in one thing, so that three effects of a method come apart: more training (the
baseline at equal cost), a second detection loss through the shared head (*without imitation* over the baseline), and
imitation (the arm over its *without imitation*).
"""

from __future__ import annotations

from typing import Any

from lgd.config.arms import Arm, Grid

BASELINE = Arm("baseline", {"method.name": "baseline"}, "the detector alone")

LGD = Arm("LGD", {}, "encoder, adapter and mapper", answers=True)

PAPER_COMPONENTS = (
    BASELINE,
    LGD,
    Arm("without encoder", {"method.encoder": False}, "keys and values are appearance embeddings"),
    Arm("without adapter", {"method.adapter": False}, "no exchange between objects"),
    Arm("without mapper", {"method.mapper": False}, "nothing written into boxes, the context object only"),
    Arm("appearance only", {"method.variant": "appearance_only"}, "appearance embeddings, no attention"),
    Arm("label only", {"method.variant": "label_only"}, "label embeddings, no attention"),
    Arm("label queries", {"method.variant": "label_queries"}, "queries are labels, keys and values appearance"),
)

WITHOUT_IMITATION = Arm(
    "without imitation", {"method.distill_weight": 0.0}, "the teacher's effect through what it shares with the student"
)
"""Separates two effects of LGD. Its difference to the baseline is what training the teacher does to the student through
what both share (the head; the backbone too unless ``detach_appearance``); LGD's difference to it is what imitation
does."""

OURS: dict[str, Any] = {"method.residual": True, "method.own_label_start": True, "method.lr_factor": 3.0}
"""Settings of *LGD residual (ours)*: both additions, and the teacher at three times the student's learning rate."""

LGD_RESIDUAL = Arm("LGD residual (ours)", OURS, "the teacher adds to the student's features", answers=True)

_ADDITIONS = (
    Arm("own-label start (ours)", {"method.own_label_start": True}, "objects attend to their own label at first"),
    Arm("residual teacher (ours)", {"method.residual": True}, "the teacher starts as good as its student"),
    Arm("centred labels (ours)", {"method.centred_labels": True}, "the teacher goes on telling classes apart"),
    Arm("teacher-led imitation (ours)", {"schedule.distill_from": "auto"}, "it imitates while the teacher is ahead"),
)

_OURS_WITHOUT = tuple(
    Arm(f"ours without {what}", {**OURS, **changes}, question)
    for what, changes, question in (
        ("imitation", {"method.distill_weight": 0.0}, "what LGD residual gains by its second loss alone"),
        ("encoder", {"method.encoder": False}, "LGD residual, keys and values are appearance"),
        ("adapter", {"method.adapter": False, "method.own_label_start": False}, "LGD residual, no exchange"),
        ("mapper", {"method.mapper": False}, "LGD residual, the context object only"),
    )
)

OURS_WITHOUT_IMITATION = _OURS_WITHOUT[0]

COMPONENTS = Grid(
    name="components",
    title="LGD's components on RetinaNet: worth and cost of each",
    arms=(*PAPER_COMPONENTS, WITHOUT_IMITATION, LGD_RESIDUAL, *_ADDITIONS, *_OURS_WITHOUT),
)

ANSWERING_ARMS = (BASELINE.name, LGD.name, LGD_RESIDUAL.name, _ADDITIONS[0].name, *(arm.name for arm in _OURS_WITHOUT))
"""The eight arms that the grid trains at the CPU's presets unless ``--arms`` names others: LGD as the paper has it and
with our additions, and that with each part switched off."""
