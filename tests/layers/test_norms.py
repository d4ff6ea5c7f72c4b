"""Faster RMSNorms: equal to the model's own by the error rule, on the right modules, and undone."""

import copy

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from tiny import FAMILIES, tiny_model

from liftcore.layers.norms import fast_norms


def with_weights(family, g):
    """A bf16 model whose norm weights are not all one, and the paths of its norms."""
    model = tiny_model(family, dtype=torch.bfloat16)
    norms = {p: m for p, m in model.named_modules() if type(m).__name__.endswith("RMSNorm")}
    with torch.no_grad():
        for module in norms.values():
            module.weight.add_(torch.randn(module.weight.shape, generator=g) * 0.5)
    return model, norms


def values_and_gradient(norm, x, up):
    leaf = x.detach().requires_grad_()  # the same memory
    out = norm(leaf)
    out.backward(up)
    return out.detach(), leaf.grad


@pytest.mark.parametrize("family", FAMILIES)
def test_every_norm_is_replaced_and_as_good_as_the_models_own(family):
    g = fresh_seed()
    model, norms = with_weights(family, g)
    for norm in norms.values():
        k = norm.weight.shape[0]
        x = (torch.randn(2, 5, 7, k, generator=g) * 3 + 0.5).bfloat16()
        up = torch.randn(x.shape, generator=g).bfloat16()
        exact = copy.deepcopy(norm).float()
        truth = values_and_gradient(exact, x.float(), up.float())
        plain, kept = values_and_gradient(norm, x, up), x.clone()
        with fast_norms(model) as paths:
            ours = values_and_gradient(norm, x, up)
        assert sorted(paths) == sorted(norms)
        assert torch.equal(x, kept), "the input is not overwritten"
        for right, theirs, got in zip(truth, plain, ours, strict=True):
            assert rel(got, right) <= 2 * rel(theirs, right) + 1e-6


def test_what_is_not_rms_norm_is_left_alone():
    class NoMean(torch.nn.Module):
        """Looks like an RMSNorm, and is none."""

        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            x = x - x.mean(-1, keepdim=True)
            return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)

    model = torch.nn.Sequential(NoMean(), torch.nn.LayerNorm(8, bias=False)).bfloat16()
    with fast_norms(model) as paths:
        assert not paths
    with fast_norms(tiny_model()) as paths:
        assert not paths, "fp32 gains nothing"


def test_a_trained_weight_keeps_its_gradient():
    g = fresh_seed()
    model, _ = with_weights("llama", g)
    norm = model.model.norm.requires_grad_(True)
    x = torch.randn(4, 48, generator=g).bfloat16()
    with fast_norms(model):
        norm(x).sum().backward()
    assert norm.weight.grad is not None


def test_the_forwards_come_back():
    model, norms = with_weights("gemma3", fresh_seed())
    with pytest.raises(ZeroDivisionError), fast_norms(model):
        assert all("forward" in vars(m) for m in norms.values())
        raise ZeroDivisionError
    assert not any("forward" in vars(m) for m in model.modules())


class Odd(torch.nn.Module):
    """RMSNorms that are more: a gate, two results, a limit far out, a flag of the instance."""

    def __init__(self, kind, flag=False):
        super().__init__()
        self.weight, self.eps = torch.nn.Parameter(torch.rand(16) + 0.5), 1e-6
        self.kind, self.flag = kind, flag

    def forward(self, x, gate=None):
        if self.kind == "must" and gate is None:
            raise TypeError("a gate is needed")
        y = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        y = self.weight * y.to(x.dtype)
        if self.kind == "limit":
            y = torch.where(x.abs() > 60, 0, y)
        if self.flag:
            y = y * 1.5
        if gate is not None:
            y = y * torch.nn.functional.silu(gate)
        return (y, x) if self.kind == "pair" else y


@pytest.mark.parametrize("kind", ["may", "must", "pair", "limit"])
def test_a_norm_that_is_more_than_one_runs_its_own_code(kind):
    g = fresh_seed()
    norm = Odd(kind).bfloat16().requires_grad_(False)
    model = torch.nn.ModuleList([norm, Odd(kind, flag=True).bfloat16().requires_grad_(False)])
    x, gate = (torch.randn(4, 16, generator=g).bfloat16() * 30 for _ in range(2))
    calls = [(x, gate)] if kind == "must" else [(x,), (x, gate)]
    right = [module(*args) for module in model for args in calls]
    with fast_norms(model):
        got = [module(*args) for module in model for args in calls]
        assert kind != "may" or torch.equal(norm(x, gate=gate), got[1])
    for ours, own in zip(got, right, strict=True):
        both = zip(ours, own, strict=True) if kind == "pair" else [(ours, own)]
        assert all(rel(a, b) < 0.01 for a, b in both)
