"""Queries and keys rotated in the rows of a whole batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.attend.rows import placed_rows, rotates_pairs, turns
from models.families.eva import TimmEva
from models.ragged import Packing, Tokens
from tests.models.families.test_eva import TIMM_NAMES, make
from tests.support.examples import examples

HEADS, WIDTH, PLACES = 3, 10, 7


def tokens_at(ids: list[int], rotations: Tensor) -> Tokens:
    """One image whose tokens stand there."""
    packing = Packing((len(ids),), rows=len(ids) + 2)
    rows = torch.zeros(len(ids) + 2, HEADS * WIDTH)
    return Tokens(rows, packing, (len(ids),), torch.tensor(ids), rotations=rotations)


class _Attention(nn.Module):
    """What the functions here ask of an attention of timm's."""

    num_heads, head_dim = HEADS, WIDTH
    scale, fused_attn = 1.0, False

    def __init__(self, norm: nn.Module, *, half: bool) -> None:
        super().__init__()
        self.q_norm = self.k_norm = norm
        self.rotate_half = half
        self.attn_drop = nn.Dropout(0.0)


@settings(max_examples=examples(10))
@given(
    st.lists(st.integers(-1, PLACES - 2), min_size=1, max_size=6),
    st.sampled_from([1, HEADS]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 99),
)
def test_each_row_is_turned_by_its_place(
    ids: list[int], heads: int, normed: bool, dtype: torch.dtype, seed: int
) -> None:
    """Pair by pair, by the angle of its patch, in every head by the same or by its own; other tokens not at
    all. Queries may be some of the tokens."""
    made = torch.Generator().manual_seed(seed)
    angles = torch.rand((2, PLACES, heads, WIDTH // 2), generator=made) * 6
    angles[:, 0] = 0  # not turned
    both = angles.repeat_interleave(2, dim=-1)
    rotations = torch.cat((both.sin(), both.cos()), dim=-1)
    source = tokens_at(ids, rotations)
    tokens = source if seed % 2 else tokens_at(ids[:1], rotations)
    norm = nn.LayerNorm(WIDTH, elementwise_affine=False) if normed else nn.Identity()
    q, k, v = (
        torch.randn((len(some.rows), HEADS * WIDTH), generator=made).to(dtype)
        for some in (tokens, source, source)
    )
    found = placed_rows(_Attention(norm, half=False), (q, k, v), tokens, source, 3)
    assert found[2] is v or torch.equal(found[2], v)
    for part, some, given_rows in ((found[0], tokens, q), (found[1], source, k)):
        assert part.dtype == dtype
        for row, place in enumerate(some.ids.tolist()):
            for head in range(HEADS):
                vector = norm(given_rows[row].view(HEADS, WIDTH)[head]).float()
                for pair in range(WIDTH // 2):
                    x, y = vector[2 * pair], vector[2 * pair + 1]
                    angle = angles[1, place + 1, head % heads, pair]
                    expected = torch.stack(
                        (x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos())
                    )
                    turned = part[row].view(HEADS, WIDTH)[head, 2 * pair : 2 * pair + 2].float()
                    torch.testing.assert_close(turned, expected.to(dtype).float(), rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_pairs_have_one_angle_in_every_network_that_turns_pairs(name: str) -> None:
    """Which `turns` relies on: sines and cosines of neighbours are the same."""
    eva = make(name, lambda network: network)
    if not rotates_pairs(eva.blocks[0].attn):
        return
    with torch.inference_mode():
        _, rotations = TimmEva(eva).embed(torch.rand(1, 3, *eva.patch_embed.img_size), None)
    if rotations is None:
        return
    assert torch.equal(rotations[..., ::2], rotations[..., 1::2])
    tokens = Tokens(torch.zeros(1), Packing((1,)), (1,), torch.tensor([0]), rotations=rotations)
    assert turns(tokens, 1).shape == (1, rotations.shape[2], rotations.shape[3] // 4)
