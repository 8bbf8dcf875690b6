"""Whether a tensor has only finite values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from models.finite import all_finite

VALUES = st.sampled_from((0.0, -1.5, 6e4, -6e4, 3e38, -3e38, np.inf, -np.inf, np.nan))


@given(nps.arrays(np.float32, nps.array_shapes(min_side=0, max_side=5), elements=VALUES))
def test_it_says_what_a_look_at_each_value_says(values: np.ndarray) -> None:
    """Also where the sum overflows, and where infinities cancel each other out."""
    assert all_finite(torch.from_numpy(values)) == bool(np.isfinite(values).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_holds_in_every_precision(dtype: torch.dtype) -> None:
    """A sum beyond half precision's range is no infinite value."""
    tensor = torch.full((7, 300), 3e4, dtype=dtype)
    assert all_finite(tensor)
    tensor[5, 11] = torch.nan
    assert not all_finite(tensor)
