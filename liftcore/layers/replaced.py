"""What stands in the place of a module's own: put there, compared, known again, undone."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from liftcore.errors import LiftError


@contextmanager
def replaced(module: nn.Module, **attributes: object) -> Generator[None]:
    """Within it this one module has other attributes, such as `forward`; its own come back."""
    own = vars(module)
    before = {name: own[name] for name in attributes if name in own}
    own.update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            own.pop(name, None)
        own.update(before)


class Bound:
    """What a method is, and what a pickled or copied module keeps.

    A method would be pickled as the name "forward" of its module, and come back as the forward
    of the class. `__func__` and `__self__` are there for those who wrap methods.
    """

    def __init__(self, function: Callable, module: nn.Module):
        self.__func__, self.__self__ = function, module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)


def held(module: nn.Module) -> Callable | None:
    """The function that stands in for the forward of the module's class; None: there is none."""
    forward = vars(module).get("forward")
    return getattr(forward, "__func__", forward)


def put_back(module: nn.Module, function: Callable) -> None:
    """Gives a module the forward of its class again, if `function` stands in for it."""
    if held(module) is function:
        del module.forward


def innermost(function: Callable | None) -> Callable | None:
    """The function under wrappers that name it, as those of Accelerate do."""
    while inner := getattr(function, "__wrapped__", None):
        function = inner
    return function


def off_by(ours: Tensor, own: Tensor) -> float:
    """The relative difference of two results; inf for other shapes."""
    if ours.shape != own.shape:
        return float("inf")
    return float((ours.float() - own.float()).norm() / own.float().norm().clamp_min(1e-30))


def check_device(x: Tensor | None, weight: Tensor) -> None:
    """Raises LiftError when x lies on another GPU than the module that a function is bound to."""
    if x is not None and x.device.type == weight.device.type and x.device != weight.device:
        raise LiftError(
            f"an accelerated model on {weight.device} got an input on {x.device}: nn.DataParallel "
            "runs the first GPU's model on every GPU; use DistributedDataParallel, or "
            "liftcore.restore(model)"
        )
