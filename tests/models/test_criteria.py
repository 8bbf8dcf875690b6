"""The importance of patches: against float64 numpy, and against answers worked out by hand."""

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from models import criteria as criteria_module
from models.criteria import (
    ACROSS_HEADS,
    OF_THE_IMAGE,
    OF_THE_MATRIX,
    attention_matrix,
    attention_rows,
    column_l2,
    comparators,
    iqr,
    mad,
    matrix_importance,
    matrix_importances,
    mean,
    mean_value_norm,
    most_important,
    random,
    renyi,
    renyi_entropy,
    variance,
)
from models.criteria import importance as importance_of
from models.schedule import CRITERIA, Criterion
from tests.models.reference import importance_of_all
from tests.support.examples import examples

HEADS = (1, 2, 3, 6, 12)

NUMPY = {
    "variance": lambda a: a.var(axis=1),
    "mad": lambda a: np.median(np.abs(a - np.median(a, axis=1, keepdims=True)), axis=1),
    "iqr": lambda a: np.quantile(a, 0.75, axis=1) - np.quantile(a, 0.25, axis=1),
    "mean": lambda a: a.mean(axis=1),
}


def column(*heads: float) -> Tensor:
    """Attention of one image whose patches 1 and 2 (of 0, 1, 2) get 1 and 0 from all heads."""
    weights = torch.tensor(heads)
    return torch.stack((weights, torch.ones_like(weights), torch.zeros_like(weights)), dim=1)[None]


@st.composite
def attention(draw: st.DrawFn) -> np.ndarray:
    """Weights [B, H, N] with many ties: a handful of values from each of three scales."""
    shape = (draw(st.integers(1, 3)), draw(st.sampled_from(HEADS)), draw(st.integers(1, 7)))
    values = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.integers(0, 5).map(lambda k: k / 197)
    return draw(arrays(np.float64, shape, elements=values | st.floats(0, 1, width=32)))


@pytest.mark.parametrize("criterion", NUMPY)
@given(weights=attention())
def test_matches_numpy(criterion: Criterion, weights: np.ndarray) -> None:
    """Each statistic over heads is numpy's in float64, for odd and even head counts and with ties."""
    ours = ACROSS_HEADS[criterion](torch.from_numpy(weights))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), NUMPY[criterion](weights), rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize(
    ("heads", "want"),
    [
        ((0.3,), 0.0),
        ((0.1, 0.5), 0.04),  # mean 0.3, both 0.2 away
        ((0.0, 0.3, 0.6), 0.06),  # mean 0.3: (0.09 + 0 + 0.09) / 3
        ((0.0, 0.0, 0.0, 0.0, 0.0, 0.6), 0.05),  # mean 0.1: (5 * 0.01 + 0.25) / 6
        ((0.0,) * 11 + (0.6,), 0.0275),  # mean 0.05: (11 * 0.0025 + 0.3025) / 12
    ],
)
def test_variance_by_hand(heads: tuple[float, ...], want: float) -> None:
    """The variance is the population's: it divides by the number of heads."""
    torch.testing.assert_close(variance(column(*heads)), torch.tensor([[want, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("heads", "want"),
    [
        ((0.3,), 0.0),
        ((0.1, 0.5), 0.2),  # median 0.3, deviations 0.2 and 0.2
        ((0.1, 0.2, 0.9), 0.1),  # median 0.2, deviations 0, 0.1, 0.7
        ((0.9, 0.1, 0.2), 0.1),  # the order of the heads is of no account
        # median (0.2 + 0.4) / 2 = 0.3; deviations 0.1 0.1 0.2 0.3 0.3 0.6; their median (0.2 + 0.3) / 2
        ((0.0, 0.1, 0.2, 0.4, 0.6, 0.9), 0.25),
        # median 0; deviations are the values: ten zeros
        ((0.0,) * 10 + (0.5, 0.5), 0.0),
        # six 0.2 and six 0.4: median 0.3, every deviation 0.1
        ((0.2, 0.4) * 6, 0.1),
    ],
)
def test_mad_by_hand(heads: tuple[float, ...], want: float) -> None:
    """An even count's median is the mean of the middle two, both times."""
    torch.testing.assert_close(mad(column(*heads)), torch.tensor([[want, 0.0, 0.0]]))


@pytest.mark.parametrize(
    ("heads", "want"),
    [
        ((0.3,), 0.0),
        ((0.1, 0.5), 0.2),  # quartiles 0.2 and 0.4
        ((0.1, 0.9, 0.2), 0.4),  # quartiles 0.15 and 0.55
        # quartiles at positions 1.25 and 3.75: 0.1 + 0.25 * 0.1 and 0.3 + 0.75 * 0.1
        ((0.0, 0.1, 0.2, 0.3, 0.4, 0.5), 0.25),
        # positions 2.75 and 8.25 of 0, 0.01 ... 0.11
        (tuple(k / 100 for k in range(12)), 0.055),
    ],
)
def test_iqr_by_hand(heads: tuple[float, ...], want: float) -> None:
    """Quartiles between two heads are interpolated linearly."""
    torch.testing.assert_close(iqr(column(*heads)), torch.tensor([[want, 0.0, 0.0]]))


def test_mean_and_mean_value_norm_by_hand() -> None:
    """`mean` averages over heads; `mean_value_norm` weighs each head by the length of its value vector."""
    weights = torch.tensor([[[0.2, 0.4, 0.1], [0.6, 0.0, 0.3]]])
    torch.testing.assert_close(mean(weights), torch.tensor([[0.4, 0.2, 0.2]]))
    norms = torch.tensor([[[5.0, 1.0, 2.0], [1.0, 9.0, 10.0]]])
    torch.testing.assert_close(mean_value_norm(weights, norms), torch.tensor([[0.8, 0.2, 1.6]]))


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in OF_THE_IMAGE])
def test_importance_serves_every_criterion(criterion: Criterion) -> None:
    """`importance` gives each criterion the inputs it reads, one value a patch."""
    if criterion in OF_THE_MATRIX:
        matrix = torch.rand(2, 5, 7, 7, generator=torch.Generator().manual_seed(0)).softmax(dim=3)
        of_all = matrix_importance(criterion, matrix, None)
        want = [importance_of_all(image.double().numpy(), 0, 7, criterion) for image in matrix]
        torch.testing.assert_close(of_all, torch.tensor(want))
        return
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 5, 7, generator=generator)
    norms = torch.rand(2, 5, 7, generator=generator) if criterion == "mean_value_norm" else None
    got = importance_of(criterion, weights, value_norms=norms)
    if norms is not None:
        want = (weights.double() * norms.double()).mean(dim=1)
    else:
        want = torch.from_numpy(NUMPY[criterion](weights.double().numpy()))
    torch.testing.assert_close(got, want.float())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("criterion", ACROSS_HEADS)
def test_half_precision_weights_are_computed_in_float32(criterion: Criterion, dtype: torch.dtype) -> None:
    """Half-precision attention weights lose nothing more on the way to an importance."""
    weights = torch.rand(2, 6, 37, generator=torch.Generator().manual_seed(0)).to(dtype)
    got = ACROSS_HEADS[criterion](weights)
    assert torch.equal(got, ACROSS_HEADS[criterion](weights.float()))


# Renyi entropy and Col-Ln.

ORDERS = (0.5, 0.9, 1.0, 1.1, 2.0, 7.0, 64.0, math.inf)


def test_entropy_by_hand() -> None:
    """Of 1/2, 1/4, 1/4 and 0: twice log(1/sqrt 2 + 1), 3/2 log 2, log 8/3 and log 2."""
    weights = torch.tensor([0.5, 0.25, 0.25, 0.0])
    wanted = {
        0.5: 2 * math.log(0.5**0.5 + 1),
        1.0: 1.5 * math.log(2),
        2.0: math.log(8 / 3),
        math.inf: math.log(2),
    }
    for order, entropy in wanted.items():
        assert float(renyi_entropy(weights, order)) == pytest.approx(entropy, rel=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_attention_to_m_tokens_alike_has_entropy_log_m(order: float) -> None:
    """Whatever the order, and however small the weights that are left."""
    for count in (1, 3, 200):
        weights = torch.zeros(1000)
        weights[:count] = 1 / count
        assert float(renyi_entropy(weights, order)) == pytest.approx(math.log(count), abs=1e-5)


@given(seed=st.integers(0, 2**31))
def test_entropy_falls_as_the_order_rises(seed: int) -> None:
    """As Renyi's does, from at most log T to no less than nothing; at order 1 there is no gap."""
    logits = torch.randn(13, generator=torch.Generator().manual_seed(seed)) * 4
    weights = logits.softmax(dim=0)
    entropies = [float(renyi_entropy(weights, order)) for order in ORDERS]
    assert math.log(13) + 1e-5 > entropies[0]
    assert all(low <= high + 1e-5 for high, low in pairwise(entropies))
    assert entropies[-1] > -1e-5
    exact = logits.double().softmax(dim=0)
    beside = float(renyi_entropy(exact, 1 + 1e-6))
    assert float(renyi_entropy(exact, 1.0)) == pytest.approx(beside, abs=1e-4)


def test_low_entropy_is_important_and_the_mean_is_over_heads() -> None:
    """A patch that attends to 1 token in one head and to 4 alike in the other counts as one that attends to
    2 in both: exp(-(0 + log 4) / 2) = 1/2."""
    rows = torch.zeros(1, 2, 2, 4)
    rows[0, 0, 0, 1] = 1
    rows[0, 1, 0] = 0.25
    rows[0, :, 1] = 0.25
    for order in ORDERS:
        torch.testing.assert_close(renyi(rows, order), torch.tensor([[0.5, 0.25]]))


def test_column_l2_by_hand() -> None:
    """Columns (0.6, 0.8) and (0.4, 0.2) have lengths 1 and sqrt 0.2; what a gap attends to is not seen."""
    matrix = torch.tensor([[[[0.6, 0.4], [0.8, 0.2]]]])
    torch.testing.assert_close(column_l2(matrix), torch.tensor([[1.0, 0.2**0.5]]))
    gaps = torch.tensor([[False, True]])
    torch.testing.assert_close(column_l2(matrix, gaps), torch.tensor([[0.6, 0.4]]))


@pytest.mark.parametrize("criterion", sorted(OF_THE_MATRIX))
def test_gaps_change_nothing(criterion: Criterion) -> None:
    """Tokens of a short image have the same importance among gaps as without."""
    q, k = torch.randn(2, 1, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    gaps = torch.arange(7)[None] >= 4
    alone = matrix_importance(criterion, attention_matrix(q[:, :, :4], k[:, :, :4], 0.4), None)
    among = matrix_importance(criterion, attention_matrix(q, k, 0.4, gaps), gaps)
    torch.testing.assert_close(among[:, :4], alone)


def test_no_more_than_one_images_attention_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU; and an image has the same importance, to the bit, as alone."""
    q, k = torch.randn(2, 4, 3, 7, 5, generator=torch.Generator().manual_seed(0))
    criteria = sorted(OF_THE_MATRIX)
    together = matrix_importances(criteria, q, k, 0.4, None)
    for image in range(4):
        own = slice(image, image + 1)
        alone = matrix_importances(criteria, q[own], k[own], 0.4, None)
        assert all(torch.equal(together[name][own], alone[name]) for name in criteria)
    seen: list[int] = []

    def watched(*arguments: Any) -> Tensor:
        seen.append(len(arguments[0]))
        return attention_matrix(*arguments)

    monkeypatch.setattr(criteria_module, "attention_matrix", watched)
    matrix_importances(criteria, q, k, 0.4, None)
    assert seen == [1] * 4


# The rows that the statistics read.


def explicit_attention(q: np.ndarray, k: np.ndarray, scale: float) -> np.ndarray:
    logits = np.einsum("bhqd,bhkd->bhqk", q, k) * scale
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_attention_rows_are_rows_of_the_softmax() -> None:
    """`cls` is the first row of the attention matrix, `all` the mean over its rows."""
    generator = np.random.default_rng(0)
    q, k = generator.normal(size=(2, 2, 3, 7, 5))
    matrix = explicit_attention(q, k, 0.7)
    tensors = (torch.from_numpy(q).float(), torch.from_numpy(k).float(), 0.7)
    np.testing.assert_allclose(attention_rows(*tensors, "cls"), matrix[:, :, 0], rtol=1e-5)
    np.testing.assert_allclose(attention_rows(*tensors, "all"), matrix.mean(axis=2), rtol=1e-5)


def test_attention_rows_by_hand() -> None:
    """Logits 0, ln 2 and ln 3 of the CLS query become weights 1/6, 2/6 and 3/6."""
    k = torch.tensor([1.0, 2.0, 3.0]).log().view(1, 1, 3, 1)
    q = torch.tensor([2.0, -5.0, 7.0]).view(1, 1, 3, 1)
    torch.testing.assert_close(attention_rows(q, k, 0.5, "cls"), torch.tensor([[[1 / 6, 2 / 6, 3 / 6]]]))


def test_attention_rows_of_half_precision_inputs_are_float32() -> None:
    """The softmax of bfloat16 queries and keys is not rounded to bfloat16."""
    q, k = torch.randn(2, 2, 3, 7, 5, generator=torch.Generator().manual_seed(0)).bfloat16()
    rows = attention_rows(q, k, 0.4, "cls")
    assert rows.dtype == torch.float32
    assert torch.equal(rows, attention_rows(q.float(), k.float(), 0.4, "cls"))


# The seeded random baseline.

SEEDS = st.integers(0, 2**63 - 1)


@given(
    seed=SEEDS,
    ids=st.lists(st.integers(0, 5000), min_size=1, max_size=23),
    others=st.lists(SEEDS, max_size=5),
)
def test_random_asks_nothing_of_the_batch(seed: int, ids: list[int], others: list[int]) -> None:
    """A patch's value depends on its id and its image's seed alone, not on neighbours or batch."""
    alone = [float(random(torch.tensor([[patch]]), torch.tensor([seed]))) for patch in ids]
    seeds = torch.tensor([*others, seed])
    among = random(torch.tensor([ids] * len(seeds)), seeds)[-1]
    assert among.tolist() == alone


def test_random_is_a_function_of_seed_and_patch() -> None:
    """Another seed, or another patch, is another value; the same are the same."""
    ids = torch.arange(197)[None]
    first = random(ids, torch.tensor([5]))
    assert torch.equal(first, random(ids, torch.tensor([5])))
    assert not torch.isclose(first, random(ids, torch.tensor([6]))).any()
    assert len(first.unique()) == 197


@given(seed=SEEDS)
def test_random_is_nested_over_stages(seed: int) -> None:
    """Keeping 29, then 13, then 5 of 61 patches keeps what keeping 5 at once would."""
    ids, seeds = torch.arange(61)[None], torch.tensor([seed])
    at_once = most_important(random(ids, seeds), 5)
    left = ids
    for count in (29, 13, 5):
        left = left.gather(1, most_important(random(left, seeds), count))
    assert torch.equal(left, at_once)


def test_random_is_roughly_uniform() -> None:
    """Values fill [0, 1) evenly over patches and over seeds, and every patch is kept about equally often."""
    values = random(torch.arange(196).repeat(1009, 1), torch.arange(1009))
    assert values.min() >= 0
    assert values.max() < 1
    tenths = torch.histc(values.flatten(), bins=10, min=0, max=1) / values.numel()
    assert (tenths - 0.1).abs().max() < 0.003
    # Kept 59 of 196 in 1009 draws: 303.7 +- 14.6 times; no patch lies beyond 5 standard deviations.
    kept = torch.zeros(196).index_add(0, most_important(values, 59).flatten(), torch.ones(1009 * 59))
    assert (kept - 1009 * 59 / 196).abs().max() < 73
    # Neighbouring seeds are unrelated.
    correlation = torch.corrcoef(values[:100]) - torch.eye(100)
    assert correlation.abs().max() < 0.4


# The choice.


def test_most_important_by_hand() -> None:
    """The largest values are kept, in ascending order of place; of equal ones the lower places."""
    values = torch.tensor([[0.1, 0.9, 0.5, 0.9, 0.2], [0.5, 0.5, 0.7, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert most_important(values, 1).tolist() == [[1], [2], [0]]
    assert most_important(values, 3).tolist() == [[1, 2, 3], [0, 1, 2], [0, 1, 2]]
    assert most_important(values, 5).tolist() == [[0, 1, 2, 3, 4]] * 3


@given(
    values=arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 40)),
        elements=st.sampled_from([0.0, 0.125, 0.5, 3.0]) | st.floats(0, 1, width=32),
    ),
    data=st.data(),
)
def test_most_important_matches_sorting_by_value_then_place(values: np.ndarray, data: st.DataObject) -> None:
    """The choice is that of a sort by falling value, then rising place, whatever ties there are."""
    count = data.draw(st.integers(1, values.shape[1]))
    want = [sorted(sorted(range(len(row)), key=lambda place: (-row[place], place))[:count]) for row in values]
    assert most_important(torch.from_numpy(values), count).tolist() == want


@pytest.mark.parametrize("count", range(13))
def test_comparators_sort(count: int) -> None:
    """By the 0-1 principle, a network that sorts all inputs of 0 and 1 sorts everything."""
    pairs = comparators(count)
    assert all(0 <= low < high < count for low, high in pairs)
    for bits in product((0, 1), repeat=count):
        values = list(bits)
        for low, high in pairs:
            values[low], values[high] = min(values[low], values[high]), max(values[low], values[high])
        assert values == sorted(bits)


@pytest.mark.parametrize(("count", "size"), [(2, 1), (3, 3), (4, 5), (6, 12), (8, 19), (12, 41), (16, 63)])
def test_comparators_are_as_few_as_batchers(count: int, size: int) -> None:
    """The network has the size that Knuth gives for merge exchange (volume 3, section 5.3.4, table 1)."""
    assert len(comparators(count)) == size


@settings(max_examples=examples(15))
@given(weights=attention())
def test_statistics_ignore_the_order_of_heads(weights: np.ndarray) -> None:
    """mad and iqr are the same, to the bit, whichever way round the heads stand."""
    forward, backward = torch.from_numpy(weights), torch.from_numpy(weights[:, ::-1].copy())
    assert torch.equal(mad(forward), mad(backward))
    assert torch.equal(iqr(forward), iqr(backward))
