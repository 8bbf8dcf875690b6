"""Every metric of the service, in one place.

With several processes, each one writes to files of its own in PROMETHEUS_MULTIPROC_DIR, named after its fixed
name (``http-0``, ``dispatcher``, ``worker-0``, ``supervisor``) rather than its process ID. So a restarted
process continues its predecessor's counters, and the number of files does not grow. The supervisor deletes
them at its start. Any HTTP process can report the metrics of all.
"""

import os
from functools import lru_cache
from typing import TypeVar

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Summary,
    generate_latest,
    values,
)
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector

Labelled = TypeVar("Labelled", bound=MetricWrapperBase)

SLOT_VARIABLE = "TRIMVIT_METRICS_SLOT"
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

if SLOT_VARIABLE in os.environ:
    _slot = os.environ[SLOT_VARIABLE]
    values.ValueClass = values.MultiProcessValue(lambda: _slot)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SHARES = tuple(step / 10 for step in range(1, 11))
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = tuple(2**power for power in range(6, 18))

# --- every process -----------------------------------------------------------------------------------
INCIDENTS = Counter(
    "trimvit_incidents", "Background tasks and threads that failed, by name; the log says why.", ["task"]
)

# --- the front end -----------------------------------------------------------------------------------
REQUESTS = Counter(
    "trimvit_requests",
    "HTTP requests and gRPC calls answered; status 499: the client did not wait. Requests whose head was "
    "refused are only in trimvit_refusals_total.",
    ["route", "method", "status"],
)
REQUEST_SECONDS = Histogram(
    "trimvit_request_seconds",
    "From the request's head to the end of its answer.",
    ["route"],
    buckets=_SECONDS,
)
PHASE_SECONDS = Histogram(
    "trimvit_phase_seconds",
    "Time one image spent in a phase: decode, queue, compute, total.",
    ["phase"],
    buckets=_SECONDS,
)
IMAGES = Counter("trimvit_images", "Images by how they ended: answered, or the problem's type.", ["outcome"])
REQUESTED_KEEP_RATIO = Histogram(
    "trimvit_requested_keep_ratio",
    "Requested keep ratio of an image. Not observed with auto, keep_mass or cascade.",
    buckets=_SHARES,
)
REFUSALS = Counter(
    "trimvit_refusals", "Requests and connections refused or given up, by the problem's type.", ["reason"]
)
ANSWER_CACHE_HITS = Counter("trimvit_answer_cache_hits", "Images answered from the answer cache.")
ANSWER_CACHE_MISSES = Counter("trimvit_answer_cache_misses", "Images that were not in the answer cache.")
ANSWER_CACHE_EVICTIONS = Counter(
    "trimvit_answer_cache_evictions", "Answers that the answer cache dropped to make room for others."
)
ANSWER_CACHE_BYTES = Gauge(
    "trimvit_answer_cache_bytes",
    "Memory of the answer caches of all HTTP processes.",
    multiprocess_mode="livesum",
)
MODEL_REQUEST_SECONDS = Summary(
    "trimvit_model_request_seconds",
    "From the head of a request for images to its answer, by model and outcome: success or fail. Requests "
    "that were refused before they were read are not counted.",
    ["model", "outcome"],
)
MODEL_REQUEST_IMAGES = Summary("trimvit_model_request_images", "Images of an answered request.", ["model"])
# PHASE_SECONDS counts each image. Here, the phases of a request add up to at most its total time, even with
# several images, as statistics of the Open Inference Protocol expect.
MODEL_PHASE_SECONDS = Summary(
    "trimvit_model_phase_seconds",
    "Time of an answered request in a phase, of several images that of the slowest: decode, queue, compute, "
    "render.",
    ["model", "phase"],
)
MODEL_LAST_REQUEST = Gauge(
    "trimvit_model_last_request_timestamp_seconds",
    "When a request was last answered, in Unix time.",
    ["model"],
    multiprocess_mode="mostrecent",
)
DECODERS_REPLACED = Counter(
    "trimvit_decoders_replaced",
    "Decoding processes replaced, by cause: slow (an image over the time limit) or died.",
    ["cause"],
)

# --- the dispatcher ----------------------------------------------------------------------------------
IMAGES_SENT_AGAIN = Counter(
    "trimvit_images_sent_again", "Images computed again by another worker because theirs died."
)
APPLIED_KEEP_RATIO = Histogram(
    "trimvit_applied_keep_ratio",
    "Applied keep ratio of an image. With keep_mass the resulting ratio; 1 after a second run.",
    buckets=_SHARES,
)
PATCHES_KEPT = Counter("trimvit_patches_kept", "Patches left after the last stage.")
PATCHES_PRUNED = Counter(
    "trimvit_patches_pruned", "Patches dropped, fused, merged, pooled or transformed over all stages."
)
COMPUTE_UNPRUNED = Counter(
    "trimvit_compute_unpruned_macs", "Multiply-accumulates that the answered images cost without pruning."
)
COMPUTE_SAVED = Counter(
    "trimvit_compute_saved_macs", "Multiply-accumulates that pruning saved; of a cascade, in the first run."
)
COMPUTE_SECOND_RUNS = Counter(
    "trimvit_compute_second_runs_macs", "Multiply-accumulates that a cascade's second runs cost."
)
SECOND_RUNS = Counter("trimvit_second_runs", "Images that a cascade computed a second time without pruning.")
BATCHES = Counter(
    "trimvit_batches",
    "Batches computed, by form: dense (images of one length at every stage) or ragged.",
    ["form"],
)
OUT_OF_MEMORY = Counter("trimvit_out_of_memory", "Batches that did not fit into memory and were split.")
BATCH_IMAGES = Histogram("trimvit_batch_images", "Images in a batch.", buckets=_COUNTS)
BATCH_TOKENS = Histogram("trimvit_batch_tokens", "Tokens in a batch, weighted by cost.", buckets=_TOKENS)
BATCH_FILL = Histogram("trimvit_batch_fill", "Share of the token budget that a batch used.", buckets=_SHARES)
BATCH_SECONDS = Histogram("trimvit_batch_seconds", "Time to compute a batch.", buckets=_SECONDS)
MODEL_BATCH_SECONDS = Summary(
    "trimvit_model_batch_seconds",
    "Time to compute a batch, by the number of its images: 1 to 64, or more.",
    ["model", "images"],
)
PREDICTION_ERROR = Histogram(
    "trimvit_batch_prediction_error",
    "Relative error of a batch's predicted time.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
LOWERED = Counter(
    "trimvit_lowered",
    "Images answered at a lower keep ratio than requested, by reason: brown-out or deadline.",
    ["reason"],
)
BROWN_OUT = Gauge(
    "trimvit_brown_out_ratio",
    "The highest keep ratio of images that allow lowering; 1 without a brown-out.",
    multiprocess_mode="mostrecent",
)
QUEUE_SECONDS = Gauge(
    "trimvit_queue_seconds",
    "Predicted time to compute all waiting images on one stream.",
    multiprocess_mode="mostrecent",
)
AGREEMENT_CHECKS = Counter(
    "trimvit_agreement_checks",
    "Answered images computed again without pruning, by applied keep ratio and whether the top label stayed.",
    ["ratio_bucket", "outcome"],
)
QUEUE_IMAGES = Gauge("trimvit_queue_images", "Images waiting for a batch.", multiprocess_mode="mostrecent")
QUEUE_LIMIT = Gauge(
    "trimvit_queue_limit_images",
    "Maximum number of waiting images. Further images are refused.",
    multiprocess_mode="mostrecent",
)
QUEUE_TOKENS = Gauge(
    "trimvit_queue_tokens",
    "Tokens waiting for a batch, weighted by cost.",
    multiprocess_mode="mostrecent",
)

# --- the workers -------------------------------------------------------------------------------------
IMAGES_FAILED = Counter(
    "trimvit_images_failed",
    "Images refused as the only ones of their batch, by reason: worker-fault (computing them raises) or "
    "no-number (their scores are not finite).",
    ["reason"],
)
DEVICE_MEMORY = Gauge(
    "trimvit_device_memory_bytes",
    "Memory in use after the last batch: the GPU's as PyTorch allocated it, or the worker process's resident "
    "memory on a CPU.",
    ["worker"],
    multiprocess_mode="mostrecent",
)

# --- the supervisor ----------------------------------------------------------------------------------
WORKER_UP = Gauge(
    "trimvit_worker_up", "1 while the worker process runs.", ["worker"], multiprocess_mode="mostrecent"
)
RESTARTS = Counter("trimvit_restarts", "Processes started again after they died.", ["process"])


@lru_cache(4096)
def labelled(metric: Labelled, *values: str) -> Labelled:
    """The metric's child with these labels, cached: finding it takes longer than counting."""
    return metric.labels(*values)


def worker_ended(worker: str) -> None:
    """Reset the metrics of a worker process that has ended. Its last values would otherwise stay until its
    successor has loaded."""
    for gauge in (WORKER_UP, DEVICE_MEMORY):
        gauge.labels(worker).set(0)


def dispatcher_ended() -> None:
    """Reset the queue's metrics, because the dispatcher process has ended."""
    for gauge in (QUEUE_IMAGES, QUEUE_TOKENS, QUEUE_SECONDS):
        gauge.set(0)
    BROWN_OUT.set(1)


def registry() -> CollectorRegistry:
    """The metrics of all processes, to be read."""
    if FOLDER_VARIABLE not in os.environ:
        return REGISTRY
    collected = CollectorRegistry()
    MultiProcessCollector(collected)
    return collected


def exposition() -> tuple[bytes, str]:
    """The metrics page of all processes, and its content type."""
    return generate_latest(registry()), CONTENT_TYPE_LATEST
