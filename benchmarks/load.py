"""Measure a real server over HTTP under up to ten times the load that it can sustain.

    python -m benchmarks.load --photographs FOLDER [--seconds 60] [--times 1 2 10] [--output FILE.json]

First, the peak rate is measured: 16 clients in a closed loop, without deadlines. Then images arrive at random
times, each with a deadline, at one, two and ten times the peak rate, and again at ten times with a minimum
keep ratio that allows brown-out. The peak is measured again after each load, because the speed of a shared
machine varies. Goodput (responses within their deadline, per second) is reported as a share of the mean of
the peaks before and after the load. Goodput cannot reach the peak, because without deadlines batches are as
large as possible and no work is wasted. Therefore, the goodput at the highest load is also reported as a
share of the highest goodput of all loads. Also reports the latency percentiles of answered images, measured
from when an image was due, and how soon the others are rejected. The load generator runs on the same cores,
at the expense of the server, so the number of cores used by each kind of process and by other programs is
reported.
"""

import argparse
import gc
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from app.commands.load import poisson_arrivals
from benchmarks import machine
from benchmarks.sender import Ended, Sender, requests
from benchmarks.server import cpu_seconds, running
from models.bundled import BUNDLED_MODEL

CLIENTS = 16
PEAK_S = 15.0
SETTLING_S = 5.0
PATIENCE_S = 30.0
SOON_S = 0.05  # images that cannot be answered in time should be rejected within this time


def cpu_so_far(pid: int) -> dict[str, float]:
    """Return the CPU time (user and system) so far of the server's processes, this process and the
    machine."""
    whole = psutil.cpu_times()
    machine = sum(whole) - whole.idle - whole.iowait - whole.guest - whole.guest_nice
    return {**cpu_seconds(pid), "generator": time.process_time(), "machine": machine}


def with_cores(
    pid: int, seconds: float, work: Callable[[], list[Ended]]
) -> tuple[list[Ended], dict[str, float]]:
    """Run ``work``, and return its result and the mean number of cores used by each kind of process.
    ``others``: cores used by unrelated programs."""
    before = cpu_so_far(pid)
    ended = work()
    after = cpu_so_far(pid)
    cores = {kind: (after[kind] - before.get(kind, 0.0)) / seconds for kind in after}
    others = 2 * cores["machine"] - sum(cores.values())
    return ended, {kind: round(taken, 3) for kind, taken in {**cores, "others": others}.items()}


def peak(pid: int, calm: Sender) -> dict[str, Any]:
    """Measure the peak rate of responses per second, and the cores used."""
    ended, cores = with_cores(pid, PEAK_S, lambda: calm.closed_loop(CLIENTS, PEAK_S))
    return {"per_s": sum(each.status == 200 for each in ended) / PEAK_S, "cores": cores}


def figures(ended: list[Ended], seconds: float, deadline_s: float, peak_rate: float) -> dict[str, object]:
    """Summarize the responses to a load."""
    latency = np.array([each.done_s - each.due_s for each in ended])
    answered = np.array([each.status == 200 for each in ended])
    in_time = int((answered & (latency <= deadline_s)).sum())
    rows: dict[str, object] = {
        "sent_per_s": round(len(ended) / seconds, 1),
        "by_status": dict(Counter(str(each.status) for each in ended)),
        "goodput_per_s": round(in_time / seconds, 2),
        "share_of_peak": round(in_time / seconds / peak_rate, 3),
    }
    for name, which in (("answered", answered), ("refused", ~answered)):
        if which.any():
            p50, p95, p99 = np.quantile(latency[which], (0.5, 0.95, 0.99)) * 1000
            rows[f"{name}_ms"] = {"p50": round(p50, 1), "p95": round(p95, 1), "p99": round(p99, 1)}
    if not answered.all():
        rows["refused_soon"] = round(float((latency[~answered] <= SOON_S).mean()), 4)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photographs", type=Path, required=True, help="folder of images")
    parser.add_argument("--model", default=BUNDLED_MODEL)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each flood")
    parser.add_argument("--times", type=float, nargs="+", default=(1.0, 2.0, 10.0), help="the peak, sent")
    parser.add_argument("--deadline-ms", type=int, default=1000, help="of each image")
    parser.add_argument("--floor", type=float, default=0.3, help="min_keep_ratio of the second flood")
    parser.add_argument("--at-once", type=int, default=256, help="connections")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    photographs = [path.read_bytes() for path in sorted(options.photographs.iterdir())]
    deadline = f"deadline_ms={options.deadline_ms}"
    report: dict[str, object] = {
        "command": "python -m benchmarks.load",
        "machine": machine.describe(),
        "options": {key: value for key, value in vars(options).items() if not isinstance(value, Path)},
    }
    gc.disable()  # this process creates no reference cycles
    with running("--model", options.model) as server:
        # With a deadline, rejected clients would retry immediately, at the expense of the others.
        calm = Sender(server.port, requests("/v1/classify", photographs))
        calm.closed_loop(CLIENTS, SETTLING_S)  # until the cost predictions settle
        peaks = [peak(server.pid, calm)]
        rows: dict[str, dict[str, Any]] = {}
        settings = [(f"{times:g} times the peak", times, deadline) for times in options.times]
        browned = f"{settings[-1][0]}, with brown-out"
        settings.append((browned, options.times[-1], f"{deadline}&min_keep_ratio={options.floor}"))
        for name, times, query in settings:
            due = poisson_arrivals(times * peaks[0]["per_s"], random.Random(0))
            sender = Sender(server.port, requests(f"/v1/classify?{query}", photographs))
            ended, cores = with_cores(
                server.pid,
                options.seconds,
                lambda: sender.open_loop(due, options.seconds, options.at_once, PATIENCE_S),  # noqa: B023
            )
            time.sleep(SETTLING_S)
            peaks.append(peak(server.pid, calm))
            rate = (peaks[-2]["per_s"] + peaks[-1]["per_s"]) / 2
            rows[name] = {
                **figures(ended, options.seconds, options.deadline_ms / 1000, rate),
                "cores": cores,
            }
    flood, *lighter = [rows[name] for name, *_ in reversed(settings[:-1])]
    report["peaks"] = peaks
    report.update(rows)
    shares = [each["share_of_peak"] for each in (flood, *lighter)]
    report["share_of_highest_goodput"] = round(shares[0] / max(1e-9, *shares), 3)
    report["times_as_many_with_brown_out"] = round(
        rows[browned]["goodput_per_s"] / max(1e-9, flood["goodput_per_s"]), 2
    )
    print(json.dumps(report, indent=1))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
