"""The settings of `trimvit ray`."""

import pytest
from pydantic import ValidationError

from app.ray.settings import HONOURED, REFUSED, RaySettings
from app.settings.settings import Settings
from tests.app.settings.test_settings import SAMPLES


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "got 2 and 3"),
        ({"http_workers": 2}, "use more replicas"),
        ({"operations_port": 9001}, "leave out --operations-port, .*: a replica has no port of its own"),
        (
            {"max_connections": 10_000},
            "leave out --max-connections, .*: connections are handled by Ray's proxies",
        ),
        ({"engines": 2}, "use more replicas"),
        ({"workers_per_device": 2}, "use more replicas"),
        ({"device": "cuda:0,cuda:1"}, "use more replicas"),
        ({"port": 0}, "--port must be given"),
        ({"detach": True}, "ray-address"),
        ({"ray_address": "head"}, "auto or HOST:PORT"),
        ({"ray_address": "head:70000"}, "auto or HOST:PORT"),
        ({"ray_address": "http://head:6379"}, "auto or HOST:PORT"),
        ({"replica_gpus": 2}, "less than or equal to 1"),
    ],
)
def test_what_does_not_fit_together_is_refused_in_words(flags: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        RaySettings(**flags)


def test_a_replica_without_a_gpu_computes_on_the_cpus_it_reserves() -> None:
    """Two and a half reserved CPUs are three threads; named ones stay."""
    told = RaySettings(replica_cpus=2.5, default_keep_ratio=0.7).of_replica()
    assert type(told) is Settings
    assert (told.device, told.threads, told.default_keep_ratio) == ("cpu", 3, 0.7)
    assert RaySettings(replica_cpus=2.5, threads=1).of_replica().threads == 1


def test_a_replica_with_a_share_of_a_gpu_computes_there() -> None:
    """Ray shows each replica its own GPU as the first."""
    told = RaySettings(replica_gpus=0.25).of_replica()
    assert (told.device, told.threads) == ("auto", 0)


def test_every_setting_of_serve_is_honoured_or_refused() -> None:
    """A new one must be placed: none is accepted and ignored."""
    assert HONOURED | REFUSED.keys() == set(Settings.model_fields)
    assert HONOURED.isdisjoint(REFUSED)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_effect_is_refused_with_the_reason(name: str) -> None:
    """By flag or variable, as long as it was given."""
    with pytest.raises(
        ValidationError, match=f"leave out --{name.replace('_', '-')}, which has no effect here"
    ):
        RaySettings(**{name: SAMPLES[name][1]})


@pytest.mark.parametrize(
    "name", sorted(HONOURED - {"http_workers", "engines", "workers_per_device", "port", "device"})
)
def test_what_is_honoured_reaches_the_replica(name: str) -> None:
    """As it was given."""
    value = SAMPLES[name][1]
    assert getattr(RaySettings(**{name: value}).of_replica(), name) == value


def test_a_replica_is_told_which_priorities_may_be_asked_for() -> None:
    """Its application decides, as a server's does: by default nobody asks for high."""
    assert RaySettings().of_replica().max_priority == "normal"
    told = RaySettings(max_priority="high", root_path="/vit").of_replica()
    assert (told.max_priority, told.root_path) == ("high", "/vit")
