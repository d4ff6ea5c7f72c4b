"""The Triton kernels of many adapters in one batch against fp64 truth, in fp32."""

import pytest
import torch
from errors_and_seeds import fresh_seed, rel
from many_checks import MANY, Many, check_gate_up, check_group

from liftcore.kernels.lora_many_triton import own_outer, own_rows


@pytest.mark.parametrize("number", range(len(MANY)))
def test_against_truth(number):
    case, bias = MANY[number], number % 2 == 1
    many = Many(fresh_seed(), *case, bias=bias)
    check_group(many)
    if len(many.weights) == 2:
        check_gate_up(many, "gelu_tanh" if bias else "silu")


def test_the_tails_write_their_own_places_alone_and_the_same_bits_again():
    """Columns of a wider buffer; a depth of many spans; a block of rows of five adapters."""
    many = Many(fresh_seed(), (1, 2, 0, 1, 1), 13, 300, (48,), (20,))
    a, b = many.lora_a[0], many.lora_b[0]
    wide = torch.full((65, 30), 7.0)
    s = own_rows(wide[:, 5:25], many.x, a, many.owners, "nt", 2.0)
    mine = many.owners.long().repeat_interleave(13)
    right = 2.0 * torch.einsum("tk,trk->tr", many.x.double(), a.double()[mine])
    assert rel(s, right) < 1e-5
    assert (wide[:, :5] == 7).all() and (wide[:, 25:] == 7).all()
    again = own_rows(torch.empty(65, 20), many.x, a, many.owners, "nt", 2.0)
    assert torch.equal(again, s)
    db = own_outer(torch.empty_like(b), many.dys[0], again, many.owners)
    assert torch.equal(db, own_outer(torch.empty_like(b), many.dys[0], again, many.owners))
    assert not db[2].any() and db[[0, 1, 3, 4]].flatten(1).any(1).all()
