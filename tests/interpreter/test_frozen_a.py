"""The Triton LoRA ops with x, A or B frozen: gradients, bytes kept, and the kernels launched."""

import pytest
from frozen_checks import CASES, check_frozen, make_frozen, needs

from liftcore.kernels import lora_fused, lora_triton


@pytest.mark.parametrize("op, frozen, shape", CASES, ids=str)
def test_gradients_and_what_is_kept_and_launched(op, frozen, shape, monkeypatch):
    group, dys = make_frozen(op, shape, frozen)
    launched = []
    chain, split_product = lora_triton.chain, lora_fused.split_product

    def spy_chain(*args, nt, **kwargs):
        launched.append("y" if nt else "dx")
        return chain(*args, nt=nt, **kwargs)

    def spy_split(out, p, q, layout, *scale):
        launched.append({"nt": "S", "nn": "dS", "tn": "dA or dB"}[layout])
        return split_product(out, p, q, layout, *scale)

    monkeypatch.setattr(lora_triton, "chain", spy_chain)
    monkeypatch.setattr(lora_fused, "split_product", spy_split)
    check_frozen(op, group, dys)
    n, (need_x, need_a, need_b) = len(group.weights), needs(group)
    # One product gives the S of members whose scalings are one.
    right = ["S"] * (1 if len(set(group.scalings)) == 1 else n) + ["y"] * (
        0 if op == "gate_up" else n
    )
    right += ["dx"] * need_x + ["dS"] * (n * (need_x or need_a))
    right += ["dA or dB"] * (need_a + n * need_b)
    assert sorted(launched) == sorted(right)
