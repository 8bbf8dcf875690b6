"""Settings of `trimvit serve` that contradict each other, or that have no effect with others.

Whoever gives one of these expects something that will not happen, so the server does not start.
"""

from collections.abc import Iterator

from app.settings.flags import flag
from app.settings.own_defaults import own_defaults
from app.settings.settings import Settings
from app.wrong_values import no_such
from models.bundled import BUNDLED_MODELS

# Settings that override the checkpoint, so they only make sense for a single model.
_OF_ONE_MODEL = ("architecture", "head", "patch_stride", "input_size", "labels", "stages", "rows")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104


def contradictions(settings: Settings) -> Iterator[str]:
    """An error message for each contradiction."""
    given = settings.model_fields_set
    if "operations_host" in given and settings.operations_port is None:
        yield "--operations-host has no effect without --operations-port: give both, or neither"
    if settings.operations_port == settings.port != 0 and _overlap(settings.host, settings.operations_host):
        yield f"--port and --operations-port are both {settings.port}: choose another for one of them"
    if "grpc_calls" in given and settings.grpc_port is None:
        yield "--grpc-calls has no effect without --grpc-port: give both, or neither"
    if "answer_cache_shared" in given and not settings.answer_cache_bytes:
        yield "--answer-cache-shared has no effect without --answer-cache-bytes: give both, or neither"
    if "shared_memory_regions" in given and settings.shared_memory_bytes is None:
        yield "--shared-memory-regions has no effect without --shared-memory-bytes: give both, or neither"
    if settings.grpc_port == settings.port:
        yield f"--port and --grpc-port are both {settings.port}: choose another for one of them"
    if settings.grpc_port is not None and settings.grpc_port == settings.operations_port:
        yield f"--operations-port and --grpc-port are both {settings.grpc_port}: choose another for one"
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        yield "--tls-certificate and --tls-key must be given together: give both, or neither"
    if settings.architecture is not None and settings.models[0].reference in BUNDLED_MODELS:
        yield "--architecture only applies to a checkpoint file given with --model, not to a bundled model"
    yield from _of_several_models(settings)
    yield from defaults_of_unknown_models(settings)
    if {"engines", "workers_per_device"} <= given:
        yield "--engines is the old name of --workers-per-device: give only one of them"
    if settings.exact and settings.dtype == "int8":
        yield "--exact is not possible with --dtype int8, which timm does not have: leave one of them out"
    most, of_one = settings.max_connections, settings.max_connections_per_client
    if of_one is not None and of_one > most:
        yield f"--max-connections-per-client {of_one} is more than --max-connections {most}"
    if {
        "max_bodies_bytes",
        "max_body_bytes",
    } <= given and settings.max_bodies_bytes < settings.max_body_bytes:
        yield (
            f"--max-bodies-bytes {settings.max_bodies_bytes} is less than --max-body-bytes "
            f"{settings.max_body_bytes}: the largest allowed body would never be accepted"
        )
    kinds = {device.partition(":")[0] for device in settings.device.split(",")}
    if len(kinds) == 1 and kinds != {"auto"}:
        yield from without_effect(settings, on_cpu=kinds == {"cpu"})


def _of_several_models(settings: Settings) -> Iterator[str]:
    several = len(settings.models) + len(settings.loadable_models)
    if several > 1:
        names = "--model names" if settings.loadable is None else "--model and --loadable name"
        for name in (name for name in _OF_ONE_MODEL if getattr(settings, name) is not None):
            yield f"{flag(name)} only applies to a single model, but {names} {several}: leave it out"
    if settings.loadable is not None and not settings.model_repository:
        yield "--loadable has no effect without --model-repository: give both, or neither"
    served = {model.name for model in settings.models}
    for model in settings.loadable_models:
        if model.name in served:
            yield f"--model and --loadable both name {model.name}: give each model its own name"


def defaults_of_unknown_models(settings: Settings) -> Iterator[str]:
    """Errors for defaults of models that do not exist."""
    if settings.model_default is None:
        return
    known = [model.name for model in (*settings.models, *settings.loadable_models) if model.name is not None]
    for name in own_defaults(settings.model_default):
        if not known:
            yield (
                f"--model-default only applies to models with a name, as in --model {name}=REFERENCE: "
                "name the model, or use --default-keep-ratio and the other --default-... options"
            )
        elif name not in known:
            yield f"--model-default: {no_such('model', name, known)}"


def without_effect(settings: Settings, *, on_cpu: bool) -> Iterator[str]:
    """Errors for settings that have no effect on a device of this kind."""
    if not on_cpu:
        if settings.threads:
            yield f"--threads {settings.threads} only applies to a CPU, but the device is a GPU: leave it out"
        if settings.dtype == "int8":
            yield "--dtype int8 only applies to a CPU, but the device is a GPU: choose float16 or bfloat16"
    elif settings.cuda_graphs == "auto":
        yield "--cuda-graphs auto only applies to a GPU, but the device is a CPU: leave it out"
    elif settings.threads and settings.streams > settings.threads:
        yield (
            f"--streams {settings.streams} is more than --threads {settings.threads}, and on a CPU each "
            "batch needs a thread: use at most as many streams as threads"
        )


def _overlap(host: str, other: str) -> bool:
    return host == other or host in _EVERYWHERE or other in _EVERYWHERE
