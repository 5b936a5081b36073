"""Work that two forward passes of one detector over one batch share and need to do only once.

LGD sends the student's features and the instructive features through the same head, against the same labels. The two
passes differ in their features only, so the images are normalised and padded once, anchors are matched once (where that
does not depend on the head's outputs), and the head runs once, on both sets of features concatenated along the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from weakref import WeakSet

import torch
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lgd.detectors.poto import POTO
from lgd.methods.feature_capture import FeatureCapture, Features, patched_method

_SEPARATE: WeakSet[nn.Module] = WeakSet()
"""Heads whose output cannot be told apart by image."""


class TwoForwardPasses:
    """A detector's two forward passes over one batch; run it inside :meth:`first`, then inside :meth:`second`.

    capture: of the first pass. compute_teacher_features: called once the first pass has its features; returns those of
    the second pass. joint_head: run the head once for both passes; False lets each pass be timed by itself.
    cache_targets: keep images and labels as the first pass prepared them for the second. What a dense detector assigns
    by its predictions is always the first pass's (docs/method.md, "The losses").
    """

    def __init__(
        self,
        detector: nn.Module,
        capture: FeatureCapture,
        compute_teacher_features: Callable[[], Features],
        *,
        joint_head: bool = True,
        cache_targets: bool = True,
    ) -> None:
        self._detector, self._capture = detector, capture
        self._compute_teacher_features = compute_teacher_features
        head = head_of(detector) if joint_head else None
        self._head = None if head in _SEPARATE else head
        self._cacheable = [*(cacheable_methods(detector) if cache_targets else []), *assigning_methods(detector)]
        self._cache: dict[str, list[Any]] = {}
        self._teacher_features: Features | None = None
        self._second_output: Any = None

    @property
    def teacher_features(self) -> Features:
        """The second pass's features, computed on first access."""
        if self._teacher_features is None:
            self._teacher_features = self._compute_teacher_features()
        return self._teacher_features

    @contextmanager
    def first_pass(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in self._cacheable:
                stack.enter_context(patched_method(self._detector, name, self._caching(name)))
            if self._head is not None:
                stack.enter_context(patched_method(self._head, "forward", self._joint(self._head.forward)))
            yield

    @contextmanager
    def second_pass(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name, results in self._cache.items():
                stack.enter_context(patched_method(self._detector, name, self._from_cache(name, iter(results))))
            if self._head is not None and self._second_output is not None:
                stack.enter_context(patched_method(self._head, "forward", self._reusing_output(self._head.forward)))
            yield

    def _reusing_output(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The head's forward, whose first call returns what the first pass's first call computed for it."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            # Not kept: these are the step's largest tensors.
            output, self._second_output = self._second_output, None
            return forward(*args, **kwargs) if output is None else output

        return wrapper

    def _caching(self, name: str) -> Callable[..., Any]:
        method = getattr(self._detector, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            # One for each call: a detector may prepare image by image.
            self._cache.setdefault(name, []).append(result)
            return result

        return wrapper

    def _from_cache(self, name: str, results: Iterator[Any]) -> Callable[..., Any]:
        """The method, whose calls return in turn what those of the first pass did."""
        method = getattr(self._detector, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            missing = object()
            result = next(results, missing)
            return method(*args, **kwargs) if result is missing else result

        return wrapper

    def _joint(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The head's forward on both passes' features; returns the first pass's outputs and keeps the second's."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            names = self._level_names(args) if not kwargs else None
            if names is None or self._second_output is not None:
                return forward(*args, **kwargs)
            teacher_features = self.teacher_features
            joined = [torch.cat([own, teacher_features[name]]) for own, name in zip(args[0], names, strict=True)]
            output = forward(joined)
            if not _is_by_image(output, len(joined[0]), len(joined)):
                # A head of somebody's own: it runs once for each pass, from now on.
                _SEPARATE.add(cast(nn.Module, self._head))
                return forward(*args)
            first, self._second_output = _split_batch(output, len(args[0][0]))
            return first

        return wrapper

    def _level_names(self, args: Sequence[Any]) -> list[str] | None:
        """The levels that the head was called with; None if these are not the captured features themselves."""
        if len(args) != 1 or not isinstance(args[0], (list, tuple)):
            return None
        known = {id(x): name for name, x in self._capture.features.items()}
        names = [known.get(id(x)) for x in args[0]]
        return cast(list[str], names) if names and all(names) else None


def head_of(detector: nn.Module) -> nn.Module | None:
    """The module that all pyramid levels go through in one call: a dense detector's ``head``, R-CNN's RPN head (under
    ``proposal_generator`` in detectron2, under ``rpn`` in torchvision).

    None where there is no such module, or where it holds a batch norm, whose statistics differ for two batches in one.
    """
    dense = getattr(detector, "head", None)
    rpn = getattr(getattr(detector, "proposal_generator", None), "rpn_head", None)
    rpn = rpn or getattr(getattr(detector, "rpn", None), "head", None)
    head = dense if isinstance(dense, nn.Module) else rpn
    if not isinstance(head, nn.Module) or any(isinstance(x, _BatchNorm) for x in head.modules()):
        return None
    return head


def cacheable_methods(detector: nn.Module) -> list[str]:
    """Methods of a detector whose result for a batch depends neither on its features nor on random numbers."""
    # R-CNN samples anchors and regions anew in each pass (docs/method.md, "The losses").
    methods = ["preprocess_image", *(["label_anchors"] if isinstance(detector, (RetinaNet, FCOS)) else [])]
    return [name for name in methods if callable(getattr(detector, name, None))]


def assigning_methods(detector: nn.Module) -> list[str]:
    """Methods of a dense detector that assign objects by what its head predicts: POTO's alone."""
    return ["assign"] if isinstance(detector, POTO) else []


def _is_by_image(output: Any, images: int, levels: int) -> bool:
    """Whether a head's output for ``images`` is tensors with the image first, in lists, tuples or dicts.

    Where there are as many levels, one that has either first is not.
    """
    if isinstance(output, Tensor):
        return output.shape[:1] == (images,) and not (levels == images and output.shape[1:2] == (images,))
    if isinstance(output, Mapping):
        return all(_is_by_image(x, images, levels) for x in output.values())
    # A named tuple is not made of its parts alone.
    return type(output) in (list, tuple) and all(_is_by_image(x, images, levels) for x in output)


def _split_batch(output: Any, images: int) -> tuple[Any, Any]:
    """A head's output for the first ``images`` and for the others: tensors, in lists, tuples or dicts."""
    if isinstance(output, Tensor):
        # The gradient of a slice is a tensor of zeros with the slice filled in, contiguous whatever the memory format.
        first, second = torch.unsafe_split(output, images)
        return first, second
    if isinstance(output, Mapping):
        halves = {name: _split_batch(x, images) for name, x in output.items()}
        return tuple({name: x[i] for name, x in halves.items()} for i in range(2))  # type: ignore[return-value]
    pairs = [_split_batch(x, images) for x in output]
    return type(output)(x for x, _ in pairs), type(output)(x for _, x in pairs)
