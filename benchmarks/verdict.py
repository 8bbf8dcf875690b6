"""Compare the results of `gpu_check` with the goals. Pure functions."""

from collections.abc import Mapping, Sequence

from benchmarks.report import Row, Spread
from benchmarks.speed import keep_ratio_name

LARGE = 64
OF_MACS_RATIO = 0.90
OF_IDEAL = 0.90
OF_COMPILED = 0.95


def verdict(
    results: Mapping[str, Sequence[Row]], batch_sizes: Sequence[int], ratios: Sequence[float]
) -> list[Row]:
    """Return a row for each goal: the measured and the required value, and whether the goal is met. A goal
    without a measurement is not met."""
    goals = [_of_tests(results.get("tests", ()))]
    dense, mixed = results.get("dense", ()), results.get("mixed", ())
    large = sorted(size for size in batch_sizes if size >= LARGE)
    for size in large:
        for ratio in ratios:
            if ratio < 1:
                share = _figure(dense, size, "share_of_macs_ratio", contestant=keep_ratio_name(ratio))
                goals.append(_goal(f"ratio {ratio:g}, batch {size}: of the MACs ratio", share, OF_MACS_RATIO))
    for size in sorted(batch_sizes):
        times = _figure(dense, size, "times_compiled", contestant=keep_ratio_name(1))
        goals.append(_goal(f"ratio 1, batch {size}: of timm compiled", times, OF_COMPILED))
    for size in large:
        for way in ("same", "new"):
            share = _figure(mixed, size, "share_of_ideal", ratios=way)
            goals.append(_goal(f"mixed, {way} ratios, batch {size}: of the ideal", share, OF_IDEAL))
    return goals


def _of_tests(rows: Sequence[Row]) -> Row:
    goal = "tests: all pass, none skips"
    if not rows or "passed" not in rows[0]:
        return {"goal": goal, "measured": "not measured", "asked": "", "met": False}
    counts = {name: rows[0][name] for name in ("passed", "failed", "skipped")}
    told = ", ".join(f"{number} {name}" for name, number in counts.items())
    met = bool(counts["passed"]) and not counts["failed"] and not counts["skipped"]
    return {"goal": goal, "measured": told, "asked": "", "met": met}


def _goal(goal: str, measured: Spread | None, asked: float) -> Row:
    told = "not measured" if measured is None else str(measured)
    met = measured is not None and measured.median >= asked
    return {"goal": goal, "measured": told, "asked": asked, "met": met}


def _figure(rows: Sequence[Row], batch: int, key: str, **like: object) -> Spread | None:
    wanted = {"batch": batch, **like}
    for row in rows:
        figure = row.get(key)
        if isinstance(figure, Spread) and all(row.get(name) == value for name, value in wanted.items()):
            return figure
    return None
