"""The start message: what a server that was started in a terminal prints when it is ready. Programs read the
log instead."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from app.inference.asks import default_keep_ratio
from app.messages.model import ModelInfo
from app.messages.to_front_end import Terms
from app.settings.settings import Settings
from models.schedule import compute

PHOTOGRAPH = Path(__file__).parents[1] / "static" / "examples" / "china.jpg"
_MOST_LABELS, _LONGEST_LABELS = 3, 60
_SHOWN_RATIO = 0.5
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104


def is_for_people(settings: Settings, *, on_terminal: bool) -> bool:
    """Whether standard error is a terminal and the log is text."""
    return on_terminal and settings.log_format != "json" and settings.log_level in ("debug", "info")


def started(
    settings: Settings,
    models: Sequence[ModelInfo],
    terms: Mapping[str, Terms],
    *,
    streams: int,
    cores: int,
    url: str,
    with_keys: bool,
) -> str:
    """The message. ``models``: the served models, the default one first. ``terms``: their costs, as measured
    by the warm-up. ``streams``: the number of concurrent batches of all workers. ``cores``: of this machine.
    ``url``: of the server, without a slash at its end."""
    model = models[0]
    for everywhere, here in _EVERYWHERE.items():
        url = url.replace(f"//{everywhere}:", f"//{here}:")
    rows = [
        ("model", _model(model)),
        *(("and", _model(other)) for other in models[1:]),
        *_pruning(settings, models),
        ("runs on", _device(settings, model, cores)),
        *_speed(settings, model, terms.get(model.name), streams),
        ("page", f"{url}/"),
        ("API", f"{url}/docs"),
    ]
    if settings.grpc_port is not None:
        rows.append(("gRPC", f"{urlsplit(url).netloc.rpartition(':')[0]}:{settings.grpc_port}"))
    lines = [f"  {name:<9}{text}" for name, text in rows]
    return "\n".join(["", "TrimViT is ready.", *lines, "", "Try it:", f"  {_curl(model, url, with_keys)}", "",
                      "Press Ctrl-C to stop the server.", "", ""])  # fmt: skip


def _model(model: ModelInfo) -> str:
    height, width = model.input.size
    if not model.labels:
        knows = "no labels (embeddings only)"
    else:
        some = ", ".join(model.labels[:_MOST_LABELS])
        more = ", ..." if len(model.labels) > _MOST_LABELS else ""
        few = f" ({some}{more})" if len(some) <= _LONGEST_LABELS else ""
        knows = f"{len(model.labels)} labels{few}"
    return f"{model.name}: {knows}, input {height} x {width} pixels"


def _pruning(settings: Settings, models: Sequence[ModelInfo]) -> list[tuple[str, str]]:
    """The defaults of images without options: once, if they are the same for all models."""
    of_each = {model.name: _defaults(settings, model) for model in models}
    (first, *others) = of_each.values()
    if all(other == first for other in others):
        return [("pruning", f"{first} (defaults; each request can choose its own)")]
    rows = [f"{name}: {defaults}" for name, defaults in of_each.items()]
    return [("pruning", "defaults; each request can choose its own:"), *(("", row) for row in rows)]


def _defaults(settings: Settings, model: ModelInfo) -> str:
    method = settings.method_of(model.name, model.method)
    ratio = default_keep_ratio(settings, model)
    return f"keep ratio {ratio:g}, criterion {method.criterion}, reducer {method.reducer}"


def _device(settings: Settings, model: ModelInfo, cores: int) -> str:
    workers = len(settings.devices)
    several = f", {workers} workers" if workers > 1 else ""
    if not model.device.startswith("cpu"):
        return f"{model.device} in {model.dtype}{several}"
    sharing = settings.devices.count(settings.devices[0])
    threads = min(settings.threads or max(1, cores // sharing), cores)
    each = " each" if workers > 1 else ""
    return f"{model.device} in {model.dtype}{several}, {threads} thread{'s' if threads > 1 else ''}{each}"


def _speed(settings: Settings, model: ModelInfo, terms: Terms | None, streams: int) -> list[tuple[str, str]]:
    """The speed at keep ratio 1, the default one, and one half."""
    if terms is None:
        return []
    rows: list[tuple[str, str]] = []
    for ratio in sorted({1.0, default_keep_ratio(settings, model), _SHOWN_RATIO}, reverse=True):
        share = compute(model.architecture, model.method.stages, ratio)
        alone_ms = 1000 * (terms.alone_s + terms.alone_compute_s * share)
        images = max(1, terms.batch_tokens // max(1, round(terms.image_tokens * share)))
        batch_s = terms.overhead_s + images * (terms.image_s + terms.compute_s * share)
        many = f"{_rounded(streams * images / batch_s)} images/s" if batch_s > 0 else "unknown"
        rows.append(
            (
                "" if rows else "speed",
                f"keep ratio {ratio:g}: a single image {_rounded(alone_ms)} ms, in batches {many}",
            )
        )
    return [*rows, ("", "(network only, as measured by the warm-up; without decoding)")]


def _rounded(value: float) -> str:
    """Rounded to two digits, because more are not known."""
    return f"{float(f'{value:.2g}'):g}" if value < 1000 else f"{value:.0f}"


def _curl(model: ModelInfo, url: str, with_keys: bool) -> str:
    """A request that works from here."""
    relative = os.path.relpath(PHOTOGRAPH)
    path = str(PHOTOGRAPH) if relative.startswith("..") else relative
    key = '-H "Authorization: Bearer YOUR_KEY" ' if with_keys else ""
    route = (
        f"classify?keep_ratio={_SHOWN_RATIO:g}&top_k=2"
        if model.labels
        else f"embed?keep_ratio={_SHOWN_RATIO:g}"
    )
    return f'curl {key}--data-binary "@{path}" "{url}/v1/{route}"'
