"""Random damage to files and JSON values, from a seed, for tests that many kinds of bad input are one line each."""

from __future__ import annotations

import copy
import random
from typing import Any

NASTY_BYTES = (
    b"", b"\0", b"\xff", b"\xc3", b'"', b"'", b"[", b"]", b"{", b"}", b"<", b">", b"&", b":", b",", b"\n", b"\r\n",
    b"\t-", b" ", b"#", b"!!python/object/apply:os.system [ls]", b"NaN", b"-1", b"1e999", b"1" * 40, b"0x1f", b"null",
    b"../../x", b"\xe2\x80\xa8",
)  # fmt: skip
NASTY_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, 2**31, 2**63, 2**64, -(2**70), 10**400, 1e308, float("nan"), float("inf"),
    "", " ", "\0", "\n", "a\nb", "\ud800", "é", "/", "..", "../x", "x" * 300, "1", "auto", [], [1], [[]], ["a"], {},
    {"a": 1}, [None], [1, 2, 3, 4], [-1, -1, 5, 5], [0, 0, 1e9, 1e9], {"size": [48, 40], "counts": "abc"},
)  # fmt: skip


def damaged_bytes(rng: random.Random, content: bytes) -> bytes:
    """The content cut off, or with one to four places of it replaced, removed or repeated."""
    if rng.random() < 0.15:
        return content[: rng.randrange(len(content) + 1)]
    edited = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(edited) + 1)
        end = min(len(edited), start + rng.choice([0, 1, 1, 3, 10]))
        edited[start:end] = rng.choice([rng.choice(NASTY_BYTES), bytes(edited[start:end]) * 2, rng.randbytes(1)])
    return bytes(edited)


def damaged_tree(rng: random.Random, tree: Any) -> Any:
    """A JSON value in which one to three values or keys are replaced, removed or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = _places(tree)
        if not places:
            return rng.choice(NASTY_VALUES)
        parent, key = rng.choice(places)
        kind = rng.random()
        if kind < 0.7:
            parent[key] = copy.deepcopy(rng.choice(NASTY_VALUES))
        elif kind < 0.85:
            del parent[key]
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[rng.choice(["x", "", "id", "\n"])] = parent.pop(key)
    return tree


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """The container and key of every value in the tree."""
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [x for key, value in items for x in [(tree, key), *_places(value)]]
