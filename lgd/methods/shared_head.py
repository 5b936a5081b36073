"""What two passes of one detector over one batch need only once.

LGD sends the student's features and the instructive ones through one head, against one set of labels. Between the two
passes only the features differ: the batch's images are normalised and padded once, anchors are matched once (where
that does not depend on what the head finds), and the head runs once, on both sets of features in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lgd.methods.feature_capture import FeatureCapture, Features, patched_method


class TwoPasses:
    """A detector's two passes over one batch. ``first`` and ``second`` are the contexts to run it in.

    tap: of the first pass. teach: called when the first pass has its features; the features of the second.
    joint: with False the head runs in each pass by itself, as someone who times the passes wants it. repeats: with
    False the second pass works out all anew.
    """

    def __init__(
        self,
        detector: nn.Module,
        capture: FeatureCapture,
        teach: Callable[[], Features],
        *,
        joint: bool = True,
        repeats: bool = True,
    ) -> None:
        self._detector, self._capture, self._teach = detector, capture, teach
        self._head = head_of(detector) if joint else None
        self._repeatable = repeatable(detector) if repeats else []
        self._answers: dict[str, Any] = {}
        self._taught: Features | None = None
        self._second: Any = None

    @property
    def teacher_features(self) -> Features:
        """The second pass's features; computed at the first look, or in the first pass."""
        if self._taught is None:
            self._taught = self._teach()
        return self._taught

    @contextmanager
    def first(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in self._repeatable:
                stack.enter_context(patched_method(self._detector, name, self._keeping(name)))
            if self._head is not None:
                stack.enter_context(patched_method(self._head, "forward", self._both(self._head.forward)))
            yield

    @contextmanager
    def second(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, answer in self._answers.items():
                stack.enter_context(patched_method(self._detector, name, lambda *_, answer=answer, **__: answer))
            if self._head is not None and self._second is not None:
                stack.enter_context(patched_method(self._head, "forward", self._rest))
            yield

    def _rest(self, *_: Any, **__: Any) -> Any:
        # Given away, not kept: these are the step's largest maps.
        answer, self._second = self._second, None
        return answer

    def _keeping(self, name: str) -> Callable[..., Any]:
        method = getattr(self._detector, name)

        def called(*arguments: Any, **named: Any) -> Any:
            self._answers[name] = method(*arguments, **named)
            return self._answers[name]

        return called

    def _both(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The head's forward on both passes' features; returns the first's half and keeps the second's."""

        def called(*arguments: Any, **named: Any) -> Any:
            names = self._names(arguments) if not named else None
            if names is None or self._second is not None:
                return forward(*arguments, **named)
            teacher_features = self.teacher_features
            joined = [torch.cat([own, teacher_features[name]]) for own, name in zip(arguments[0], names, strict=True)]
            first, self._second = _halves(forward(joined), len(arguments[0][0]))
            return first

        return called

    def _names(self, arguments: Sequence[Any]) -> list[str] | None:
        """The levels that a head was given, when these are the recorded features, one for one."""
        if len(arguments) != 1 or not isinstance(arguments[0], (list, tuple)):
            return None
        known = {id(x): name for name, x in self._capture.features.items()}
        names = [known.get(id(x)) for x in arguments[0]]
        return cast(list[str], names) if names and all(names) else None


def head_of(detector: nn.Module) -> nn.Module | None:
    """What a detector sends all of its pyramid through at once: a dense one's ``head``, the RPN's in R-CNN.

    None where there is no such module, or where it holds a batch norm: to that, two batches in one are another batch.
    """
    dense = getattr(detector, "head", None)
    proposing = getattr(getattr(detector, "proposal_generator", None), "rpn_head", None)
    head = dense if isinstance(dense, nn.Module) else proposing
    if not isinstance(head, nn.Module) or any(isinstance(x, _BatchNorm) for x in head.modules()):
        return None
    return head


def repeatable(detector: nn.Module) -> list[str]:
    """Methods of a detector whose answers for a batch depend neither on its features nor on chance."""
    # R-CNN draws its samples anew in each pass (METHOD), POTO matches what the head finds.
    methods = ["preprocess_image", *(["label_anchors"] if isinstance(detector, (RetinaNet, FCOS)) else [])]
    return [name for name in methods if callable(getattr(detector, name, None))]


def _halves(answer: Any, images: int) -> tuple[Any, Any]:
    """The answers of a head for the first ``images`` and for as many more: tensors, in lists, tuples or dicts."""
    if isinstance(answer, Tensor):
        # Slices would have their gradients put into maps of zeros, in torch's own memory format, and added up.
        first, second = torch.unsafe_split(answer, images)
        return first, second
    if isinstance(answer, Mapping):
        halves = {name: _halves(x, images) for name, x in answer.items()}
        return tuple({name: x[i] for name, x in halves.items()} for i in range(2))  # type: ignore[return-value]
    if isinstance(answer, (list, tuple)):
        pairs = [_halves(x, images) for x in answer]
        return type(answer)(x for x, _ in pairs), type(answer)(x for _, x in pairs)
    raise TypeError(f"a head answered with {type(answer).__name__}: only tensors can be told apart by image")
