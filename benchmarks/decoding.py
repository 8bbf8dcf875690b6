"""Measure the cost of decoding in separate processes, compared with threads in the same process.

    python -m benchmarks.decoding --photographs FOLDER [--workers 2] [--rounds 7]

Prints images/s for both in interleaved rounds, the ratio of processes to threads within a round (median,
extremes), and the memory of an idle decoding process. Expect ratios of 0.9 to 1.0 for photographs of about
100 KB.
"""

import argparse
import asyncio
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from app.decoding.images import ImageLimits
from app.decoding.pool import Decoders, DecodingProcesses, InExecutor, memory_for
from models.transforms import InputSpec

SPEC = InputSpec((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LIMITS = ImageLimits(64_000_000)


async def images_per_second(decoders: Decoders, images: list[bytes]) -> float:
    """Decode all images as fast as possible and return the rate."""
    started = time.perf_counter()
    await asyncio.gather(*(decoders.decode(data, SPEC, LIMITS, np.copy) for data in images))
    return len(images) / (time.perf_counter() - started)


async def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--photographs", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    files = sorted(options.photographs.glob("*.[jJ][pP]*[gG]"))
    images = [file.read_bytes() for file in files]
    images *= max(1, 200 // len(images))
    ways: dict[str, Decoders] = {
        "threads": InExecutor(ThreadPoolExecutor(options.workers)),
        "processes": DecodingProcesses(options.workers, 60, memory_for(LIMITS.pixels)),
    }
    ratios = []
    for number in range(options.rounds + 1):
        rates = {name: await images_per_second(decoders, images) for name, decoders in ways.items()}
        if number:  # the first round is a warm-up
            ratios.append(rates["processes"] / rates["threads"])
            print(", ".join(f"{name} {rate:.0f}/s" for name, rate in rates.items()))
    children = [psutil.Process(child.pid).memory_full_info() for child in psutil.Process().children()]
    for decoders in ways.values():
        decoders.close()
    kilobytes = sum(map(len, images)) / len(images) / 1000
    print(
        f"{len(images)} images of {kilobytes:.0f} KB on {os.cpu_count()} cores: "
        f"processes / threads {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); "
        f"a process: {children[0].rss / 2**20:.0f} MB resident, {children[0].uss / 2**20:.0f} MB its own"
    )


if __name__ == "__main__":
    asyncio.run(main())
