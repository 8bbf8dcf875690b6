"""Settings that contradict each other, or have no effect beside others."""

from pathlib import Path

import pytest

from app.settings.combinations import contradictions, without_effect
from app.settings.settings import Settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"operations_host": "0.0.0.0"}, "--operations-host has no effect without --operations-port"),
        ({"port": 9000, "operations_port": 9000}, "are both 9000: choose another"),
        ({"host": "::", "port": 9000, "operations_port": 9000}, "are both 9000: choose another"),
        ({"grpc_calls": 10}, "--grpc-calls has no effect without --grpc-port"),
        ({"answer_cache_shared": True}, "--answer-cache-shared has no effect without --answer-cache-bytes"),
        (
            {"shared_memory_regions": 10},
            "--shared-memory-regions has no effect without --shared-memory-bytes",
        ),
        ({"port": 9000, "grpc_port": 9000}, "--port and --grpc-port are both 9000"),
        ({"operations_port": 9000, "grpc_port": 9000}, "--operations-port and --grpc-port are both 9000"),
        ({"tls_key": Path("key.pem")}, "must be given together"),
        ({"tls_certificate": Path("chain.pem")}, "must be given together"),
        ({"architecture": "vit_small_patch16_224"}, "not to a bundled model"),
        ({"max_connections": 10, "max_connections_per_client": 11}, "11 is more than --max-connections 10"),
        ({"max_body_bytes": 20, "max_bodies_bytes": 10}, "the largest allowed body would never be accepted"),
        (
            {"model": "a=x,b=y", "labels": "README.md"},
            "--labels only applies to a single model, but --model names 2",
        ),
        (
            {"loadable": "b=y", "model_repository": True, "head": "README.md"},
            "--head only applies to a single model, but --model and --loadable name 2",
        ),
        ({"loadable": "b=y"}, "--loadable has no effect without --model-repository"),
        ({"model": "b=x", "loadable": "b=y", "model_repository": True}, "both name b: give each"),
        (
            {"model_default": "a.keep_ratio=0.5"},
            "--model-default only applies to models with a name, as in --model a=REF",
        ),
        (
            {"model": "a=x,large=y", "model_default": "a.keep_ratio=0.5,lage.reducer=fuse"},
            "--model-default: there is no model 'lage'; did you mean large? models are a, large",
        ),
        ({"engines": 2, "workers_per_device": 2}, "--engines is the old name"),
        ({"exact": True, "dtype": "int8"}, "--exact is not possible with --dtype int8"),
        ({"device": "cuda:0,cuda:1", "threads": 2}, "--threads 2 only applies to a CPU"),
        ({"device": "cuda", "dtype": "int8"}, "--dtype int8 only applies to a CPU"),
        ({"device": "cpu", "cuda_graphs": "auto"}, "--cuda-graphs auto only applies to a GPU"),
        ({"device": "cpu", "threads": 2, "streams": 3}, "--streams 3 is more than --threads 2"),
    ],
    ids=str,
)
def test_what_can_have_no_effect_is_told(settings: dict[str, object], words: str) -> None:
    """In one sentence, with what to do."""
    (sentence,) = contradictions(Settings(**settings))  # type: ignore[arg-type]
    assert words in sentence


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"operations_host": "0.0.0.0", "operations_port": 9000},
        {"port": 0, "operations_port": 0},
        {"port": 8000, "grpc_port": 8001, "grpc_calls": 10},
        {"answer_cache_bytes": 2**20, "answer_cache_shared": True},
        {"shared_memory_bytes": 1000, "shared_memory_regions": 10},
        {"host": "127.0.0.1", "port": 9000, "operations_host": "127.0.0.2", "operations_port": 9000},
        {"tls_key": Path("key.pem"), "tls_certificate": Path("chain.pem")},
        {"model": "my.pth", "architecture": "vit_small_patch16_224"},
        {"model_repository": True},
        {"model": "a=x,b=y", "loadable": "c=z", "model_repository": True},
        {"model": "a=x", "model_default": "a.keep_ratio=0.5"},
        {
            "model": "a=x,b=y",
            "loadable": "c=z",
            "model_repository": True,
            "model_default": "b.criterion=mad,c.keep_ratio=0.5",
        },
        {"max_bodies_bytes": 10},
        {"exact": True},
        {"exact": True, "dtype": "bfloat16"},
        {"device": "cpu,cuda", "threads": 2, "cuda_graphs": "auto"},
        {"device": "auto", "threads": 2},
        {"device": "cuda", "streams": 3},
        {"device": "cpu", "threads": 3, "streams": 3},
    ],
    ids=str,
)
def test_what_goes_together_is_taken(settings: dict[str, object]) -> None:
    """Also where the device is not known yet, or there are several kinds."""
    assert list(contradictions(Settings(**settings))) == []  # type: ignore[arg-type]


def test_the_worker_asks_again_for_the_device_that_it_found() -> None:
    """For `auto` nothing can be said before."""
    settings = Settings(threads=2, cuda_graphs="auto")
    assert len(list(without_effect(settings, on_cpu=False))) == 1
    assert len(list(without_effect(settings, on_cpu=True))) == 1
