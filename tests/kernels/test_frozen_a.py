"""The plain LoRA ops with x, A or B frozen: gradients, bytes kept, and the products that run."""

import pytest
import torch
from errors_and_seeds import fresh_seed
from frozen_checks import CASES, call, check_frozen, kept_by, make_frozen, needs
from lora_checks import assert_close, make_group, truth
from torch.utils._python_dispatch import TorchDispatchMode

from liftcore.kernels.lora import add_lora

every_case = pytest.mark.parametrize("op, frozen, shape", CASES, ids=str)


@every_case
def test_gradients_and_what_is_kept(op, frozen, shape):
    check_frozen(op, *make_frozen(op, shape, frozen))


class Products(TorchDispatchMode):
    """Counts the matrix products that run within it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        return func(*args, **(kwargs or {}))


@every_case
def test_products_of_the_backward(op, frozen, shape):
    group, dys = make_frozen(op, shape, frozen)
    outs, n = call(op, group), len(group.weights)
    with Products() as products:
        torch.autograd.backward(outs, dys)
    dx, da, db = needs(group)
    assert products.count == n * (dx or da) + (n + 1) * dx + da + n * db


def test_add_lora():
    g = fresh_seed()
    group = make_group(g, 7, 20, (24,), (4,), bias=False)
    dy = torch.randn(7, 24, generator=g)
    x, w, a, b, scaling, _ = group.single
    y = (x.detach() @ w.T).requires_grad_()
    a.requires_grad_(False)
    kept = kept_by(lambda: add_lora(x, y, a, b, scaling))
    assert x.data_ptr() not in kept and sum(kept.values()) == 4 * (7 * 4 + a.numel() + b.numel())
    out = add_lora(x, y, a, b, scaling)
    out.backward(dy)
    right_out, right_dx, _, right_db = truth("lora_qkv", group, [dy])
    right_dx = right_dx - dy.double() @ w.double()  # the base's share is another's
    assert a.grad is None and torch.equal(y.grad, dy)
    ours = [out, x.grad, b.grad]
    assert_close(ours, [right_out, right_dx, right_db], ["y", "dx", "dB"])
