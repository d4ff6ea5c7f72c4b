"""A function bound to a module in place of its forward, and how to know it again."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from liftcore.errors import LiftError


class Bound:
    """What a method is, and what a pickled or copied module keeps.

    A method would be pickled as the name "forward" of its module, and come back as the forward
    of the class. `__func__` and `__self__` are there for those who wrap methods.
    """

    def __init__(self, function: Callable, module: nn.Module):
        self.__func__, self.__self__ = function, module

    def __call__(self, *args, **kwargs):
        return self.__func__(self.__self__, *args, **kwargs)


def held(module: nn.Module) -> Callable | None:
    """The function that stands in for the forward of the module's class; None: there is none."""
    forward = vars(module).get("forward")
    return getattr(forward, "__func__", forward)


def innermost(function: Callable | None) -> Callable | None:
    """The function under wrappers that name it, as those of Accelerate do."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def check_device(x: Tensor | None, weight: Tensor) -> None:
    """Raises LiftError when x lies on another GPU than the module that a function is bound to."""
    if x is not None and x.device.type == weight.device.type and x.device != weight.device:
        raise LiftError(
            f"an accelerated model on {weight.device} got an input on {x.device}: nn.DataParallel "
            "runs the first GPU's model on every GPU; use DistributedDataParallel, or "
            "liftcore.restore(model)"
        )
