"""LoRA ops with x, A or B frozen: gradients against fp64 truth, and what is kept for them."""

from collections.abc import Callable

import torch
from errors_and_seeds import fresh_seed
from lora_checks import Group, assert_close, make_group, names, truth

from liftcore.kernels.lora import lora_gate_up, lora_linear, lora_qkv

OPS = {"linear": lora_linear, "qkv": lora_qkv, "gate_up": lora_gate_up}
# What is frozen: x, and the members whose A and whose B.
FROZEN = {
    "A": (False, "all", ""),
    "x and A": (True, "all", ""),
    "x": (True, "", ""),
    "B": (False, "", "all"),
    "the first A": (False, "first", ""),
    "the first B": (False, "", "first"),
}
LONG, ONE = (33, 21, 17, 5), (1, 20, 24, 4)  # T, K, N, R
CASES = [(op, frozen, LONG) for op in OPS for frozen in FROZEN] + [(op, "A", ONE) for op in OPS]


def make_frozen(op: str, shape: tuple[int, ...], frozen: str) -> tuple[Group, list[torch.Tensor]]:
    """A group for the op, and the gradients of its outputs."""
    t, k, n, r = shape
    g = fresh_seed()
    widths = {"linear": (n,), "qkv": (n, n - 5, 3), "gate_up": (n, n)}[op]
    group = make_group(g, t, k, widths, [r + i for i in range(len(widths))])
    x, of_a, of_b = FROZEN[frozen]
    group.x.requires_grad_(not x)
    for tensors, which in ((group.lora_a, of_a), (group.lora_b, of_b)):
        for tensor in tensors[: {"": 0, "first": 1, "all": 3}[which]]:
            tensor.requires_grad_(False)
    outputs = widths[:1] if op == "gate_up" else widths
    return group, [torch.randn(t, width, generator=g) for width in outputs]


def call(op: str, group: Group) -> list[torch.Tensor]:
    out = OPS[op](*(group.single if op == "linear" else group.args))
    return [out] if isinstance(out, torch.Tensor) else list(out)


def check_frozen(op: str, group: Group, dys: list[torch.Tensor]) -> None:
    """The frozen have no gradient, all others that of the plain formula in fp64.

    What is kept from the forward is right to the byte: S for dB, x for dA, and the outputs of gate
    and up; of the parameters W and A, which cost nothing, for dx alone.
    """
    outs: list[torch.Tensor] = []
    kept = kept_by(lambda: outs.extend(call(op, group)))
    need_x, need_a, need_b = needs(group)
    of_dx = {t.data_ptr() for t in (*group.weights, *group.lora_a)}
    assert of_dx & set(kept) == (of_dx if need_x else set())
    own = of_dx | {b.data_ptr() for b in group.lora_b}
    columns = need_a * group.x.shape[1] + need_b * sum(a.shape[0] for a in group.lora_a)
    columns += 2 * group.weights[0].shape[0] if op == "gate_up" else 0
    expected = columns * group.x.shape[0] * group.x.element_size()
    assert sum(size for at, size in kept.items() if at not in own) == expected

    torch.autograd.backward(outs, dys)
    labels = names(group, len(outs))
    ours = dict(zip(labels, [*outs, *(t.grad for t in group.trained)], strict=True))
    for label, tensor in zip(labels[len(outs) :], group.trained, strict=True):
        assert (ours[label] is None) == (not tensor.requires_grad), label
    name = "lora_gate_up" if op == "gate_up" else "lora_qkv"
    right = dict(zip(labels, truth(name, group, dys), strict=True))
    some = [label for label in labels if ours[label] is not None]
    assert_close([ours[label] for label in some], [right[label] for label in some], some)


def needs(group: Group) -> tuple[bool, bool, bool]:
    """Whether x, any A and any B takes a gradient."""
    a, b = (any(t.requires_grad for t in ts) for ts in (group.lora_a, group.lora_b))
    return group.x.requires_grad, a, b


def kept_by(forward: Callable[[], object]) -> dict[int, int]:
    """Address -> bytes of the storages that autograd keeps of a forward."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return kept
