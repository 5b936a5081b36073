"""Which settings say what they are, by the string below their field."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap

from pydantic import BaseModel


def undescribed(group: type[BaseModel]) -> set[str]:
    """The fields of a group of settings that no string follows, in its class or in the one that it has them from."""
    described: set[str] = set()
    for part in (x for x in group.__mro__ if issubclass(x, BaseModel) and x is not BaseModel):
        (body,) = (
            x.body for x in ast.parse(textwrap.dedent(inspect.getsource(part))).body if isinstance(x, ast.ClassDef)
        )
        described |= {
            field.target.id
            for field, below in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        }
    return set(group.model_fields) - described
