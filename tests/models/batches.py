"""Batches that hypothesis draws."""

from hypothesis import strategies as st

from models.schedule import CRITERIA, REDUCERS, Pruning


def batches(*, by_mass: bool = True) -> st.SearchStrategy[list[Pruning]]:
    """Prunings of up to six images; ratios that coincide are as likely as not. ``by_mass``: some of them by
    the mass that they keep."""
    share = st.sampled_from([1.0, 0.7, 0.5, 0.03]) | st.floats(0.01, 1)
    criterion, seed = st.sampled_from(CRITERIA), st.integers(0, 2**31)
    drawn = st.builds(
        Pruning, keep_ratio=share, criterion=criterion, reducer=st.sampled_from(REDUCERS), seed=seed
    )
    if by_mass:
        reducer = st.sampled_from(["drop", "fuse", "transform"])
        drawn |= st.builds(Pruning, keep_mass=share, criterion=criterion, reducer=reducer, seed=seed)
    return st.lists(drawn, min_size=1, max_size=6)
