"""Which class ``method.name`` stands for, and settings of methods as older records and sweeps wrote them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from lgd.config.base_method import DistillationMethod, Method
from lgd.errors import InputError, own_code

__all__ = [
    "BUILT_IN",
    "DEFAULT",
    "Method",
    "choose",
    "code_of",
    "default_method",
    "import_method",
    "import_named",
    "current_key",
    "known_methods",
    "make",
    "may_be_loaded",
    "method_class",
    "switched",
    "title_of",
]

DEFAULT = "lgd"

BUILT_IN = {
    "baseline": "lgd.methods.baseline:Baseline",
    "lgd": "lgd.methods.label_guided:LGD",
    "fgfi": "lgd.methods.fgfi:FGFI",
    "pkd": "lgd.methods.pkd:PKD",
    "cwd": "lgd.methods.cwd:CWD",
    "mgd": "lgd.methods.mgd:MGD",
    "fgd": "lgd.methods.fgd:FGD",
    "labelenc": "lgd.methods.labelenc:LabelEnc",
    "labelenc_stage1": "lgd.methods.labelenc:LabelEncStage1",
    "ban": "lgd.methods.ban:BAN",
    "dml": "lgd.methods.dml:DML",
    "tfkd": "lgd.methods.tf_kd:TfKD",
}
"""Module and class of each of our methods, by name."""

ENTRY_POINTS = "lgd.methods"
"""Group of the entry points by which installed packages add methods."""


def method_class(name: str) -> type[Method]:
    """The class of a method: one of BUILT_IN, an entry point's, or ``package.module:Class`` once that is imported.

    What a file says is not imported, for that would run it: :func:`import_method` is for what a command names. Raises
    InputError, one line, for a name that is none of these, a class that is no method, and a module that nobody named.
    """
    if not may_be_loaded(name):
        raise InputError(_unnamed(name))
    return import_method(name)


def _unnamed(name: str) -> str:
    return f"method {name} is Python code: say --method {name} to run it"


def import_named(assignments: Iterable[str], *names: str | None) -> None:
    """Import the methods ``package.module:Class`` that a command's own options name. Raises InputError, one line.

    assignments: ``key=value``, those of ``method.name`` among them, by its older key, too. names: what other options
    say.
    """
    pairs = (x.partition("=") for x in assignments)
    given = [value.strip(" '\"") for key, _, value in pairs if current_key(key.strip()) == "method.name"]
    for name in (*names, *given):
        if name is not None and ":" in name:
            import_method(name)


@cache
def import_method(name: str) -> type[Method]:
    """:func:`method_class` of what a command's own options name, which may be any code: its module is imported.

    Raises InputError, one line.
    """
    path = BUILT_IN.get(name) or _entry_points().get(name) or name
    module, colon, attribute = path.partition(":")
    # A line break would end up in messages.
    if not colon or not path.isprintable():
        known = known_methods()
        close = get_close_matches(name, known, n=1)
        raise InputError(
            f"no method {name!r}: choose one of {', '.join(known)}, or package.module:Class"
            + (f"; did you mean {close[0]}?" if close else "")
        )
    here = str(Path.cwd())
    if here not in sys.path:
        # As for ``python -m``: a console script's path does not have it. Ray's workers get the path of their driver.
        sys.path.append(here)
    with own_code(f"method {name}: {path} cannot be imported"):
        found = getattr(importlib.import_module(module), attribute)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise InputError(f"method {name}: {path} is no subclass of lgd.config.base_method.Method")
    if required := [key for key, field in found.model_fields.items() if field.is_required()]:
        raise InputError(f"method {name}: its setting {required[0]} has no default")
    return found


@cache
def _entry_points() -> dict[str, str]:
    return {x.name: x.value for x in entry_points(group=ENTRY_POINTS)}


def known_methods() -> tuple[str, ...]:
    """The names of our methods and of those that installed packages add."""
    return (*BUILT_IN, *_entry_points())


def check_method_named_again(names: Sequence[str], named: str | None, where: object) -> None:
    """Raise InputError where a results directory names a method ``package.module:Class`` and the command does not.

    Code is run only where the command's own options name it. names: those that the directory ``where`` names. named:
    what ``--method`` says.
    """
    for name in names:
        if ":" in name and name != named:
            raise InputError(f"{where} names the method {name}, which is Python code: say --method {name} to run it")


def code_of(method: Method) -> AbstractContextManager[None]:
    """Inside, ``method`` is asked or built: what one that is not ours raises becomes an InputError, one line."""
    return nullcontext() if method.name in BUILT_IN else own_code(f"method {method.name}")


class UnloadedMethod(Method):
    """A method ``package.module:Class`` that a record names, and no command of this process.

    What a file says is not imported, for that would run it. :func:`import_method` imports what a command names.
    """

    model_config = ConfigDict(extra="allow")

    title: ClassVar[str] = "not loaded"

    def build(self, parts: Any) -> Any:
        raise InputError(_unnamed(self.name))


def make(name: str, **settings: Any) -> Method:
    """A method with these settings, the others at their defaults."""
    return method_class(name).model_validate({"name": name, **settings})


def default_method() -> Method:
    return make(DEFAULT)


def choose(described: object) -> object:
    """Check of a method's description: an instance of the class that its ``name`` stands for."""
    if not isinstance(described, Mapping):
        return described
    described = _in_current_form({"name": DEFAULT, **described})
    name = described["name"]
    if not isinstance(name, str):
        raise ValueError("name: must be text")
    if not may_be_loaded(name):
        return UnloadedMethod.model_validate(described)
    try:
        found = method_class(name)
    except InputError as error:
        raise ValueError(str(error)) from None
    return found.model_validate(described)


def may_be_loaded(name: str) -> bool:
    """Whether a method's class is known without importing a module that nobody named."""
    module, colon, _ = name.partition(":")
    return not colon or module in sys.modules


def title_of(name: str) -> str:
    """The method in tables; its name, where it is code that is not imported."""
    return method_class(name).title if may_be_loaded(name) else name


def switched(before: Method, name: str) -> dict[str, Any]:
    """Settings of the method ``name`` at their defaults, but for what it has in common with ``before``.

    In common are the settings that both have from the same class, such as the teacher of two methods with a frozen one.
    Of an :class:`UnloadedMethod` the name alone.
    """
    if not may_be_loaded(name):
        return {"name": name}
    after, described = method_class(name), before.model_dump(mode="json")
    common = next(x for x in type(before).__mro__ if issubclass(after, x) and issubclass(x, Method))
    kept = {key: described[key] for key in common.model_fields if key != "name"}
    return make(name).model_dump(mode="json") | kept


_FGFI = "fgfi"
_OF_TEACHER = ("backbone", "steps", "seed")
"""Settings of FGFI that describe its teacher; they were ``method.fgfi.backbone`` and the like."""


def current_key(key: str) -> str:
    """A dotted setting as it is called now: FGFI's were in a group ``method.fgfi`` of every experiment."""
    prefix = f"method.{_FGFI}."
    if not key.startswith(prefix):
        return key
    rest = key.removeprefix(prefix)
    return f"method.teacher.{rest}" if rest.partition(".")[0] in _OF_TEACHER else f"method.{rest}"


def _in_current_form(described: dict[str, Any]) -> dict[str, Any]:
    """A description of a method as older records hold it: every method's settings side by side, FGFI's in a group."""
    if _FGFI not in described:
        return described
    described = dict(described)
    fgfi = described.pop(_FGFI)
    if described["name"] == "baseline":
        return {"name": "baseline"}
    if described["name"] != _FGFI or not isinstance(fgfi, Mapping):
        return described
    teacher = {key: value for key, value in fgfi.items() if key in _OF_TEACHER}
    own = {key: value for key, value in fgfi.items() if key not in _OF_TEACHER}
    kept = {key: described[key] for key in DistillationMethod.model_fields if key in described}
    return {**kept, **own, "teacher": teacher}
