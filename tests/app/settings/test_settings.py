"""Settings: defaults, limits, and the way to a child process and back."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings

from app.settings.settings import Settings
from app.wrong_values import wrong_values

# A value other than the default for every setting, as text and as what it must become.
SAMPLES: dict[str, tuple[str, object]] = {
    "model": ("deit_small_patch16_224.fb_in1k", "deit_small_patch16_224.fb_in1k"),
    "model_repository": ("true", True),
    "loadable": ("small=some/where", "small=some/where"),
    "architecture": ("deit_small_patch16_224", "deit_small_patch16_224"),
    "patch_stride": ("12", 12),
    "input_size": ("224 X 448", "224x448"),
    "labels": ("labels.txt", Path("labels.txt")),
    "head": ("head.safetensors", Path("head.safetensors")),
    "stages": ("3,5,9", (3, 5, 9)),
    "rows": ("all", "all"),
    "default_keep_ratio": ("0.7", 0.7),
    "default_criterion": ("mad", "mad"),
    "default_reducer": ("fuse", "fuse"),
    "model_default": ("a.keep_ratio=0.5,a.criterion=mad", "a.keep_ratio=0.5,a.criterion=mad"),
    "device": ("cuda:1,cpu", "cuda:1,cpu"),
    "workers_per_device": ("3", 3),
    "engines": ("3", 3),
    "dtype": ("float16", "float16"),
    "exact": ("true", True),
    "threads": ("3", 3),
    "streams": ("2", 2),
    "cuda_graphs": ("auto", "auto"),
    "max_batch_tokens": ("5000", 5000),
    "warm_up_s": ("2.5", 2.5),
    "decode_processes": ("5", 5),
    "host": ("::1", "::1"),
    "port": ("0", 0),
    "http_workers": ("4", 4),
    "operations_host": ("0.0.0.0", "0.0.0.0"),
    "operations_port": ("9000", 9000),
    "grpc_port": ("8001", 8001),
    "grpc_calls": ("16", 16),
    "open_inference_input": ("pixels", "pixels"),
    "shared_memory_bytes": ("1000000", 1_000_000),
    "shared_memory_regions": ("7", 7),
    "trusted_proxies": ("10.0.0.0/8, ::1", ("10.0.0.0/8", "::1")),
    "root_path": ("vit/b/", "/vit/b"),
    "api_keys_file": ("keys", Path("keys")),
    "answer_cache_shared": ("true", True),
    "max_priority": ("high", "high"),
    "tls_certificate": ("chain.pem", Path("chain.pem")),
    "tls_key": ("key.pem", Path("key.pem")),
    "cors_origins": ("https://example.org,http://[::1]:3000", ("https://example.org", "http://[::1]:3000")),
    "allowed_hosts": ("vit.example.org, *.test", ("vit.example.org", "*.test")),
    "max_queue_images": ("17", 17),
    "max_queue_s": ("2.5", 2.5),
    "max_images_per_request": ("7", 7),
    "max_body_bytes": ("1000", 1000),
    "max_bodies_bytes": ("1000", 1000),
    "answer_cache_bytes": ("67108864", 67108864),
    "max_image_pixels": ("2000", 2000),
    "truncated_images": ("answer", "answer"),
    "decode_timeout_s": ("2.5", 2.5),
    "max_connections": ("9", 9),
    "max_connections_per_client": ("3", 3),
    "head_timeout_s": ("2.5", 2.5),
    "body_timeout_s": ("2.5", 2.5),
    "write_timeout_s": ("2.5", 2.5),
    "keep_alive_s": ("2.5", 2.5),
    "default_deadline_ms": ("1500", 1500),
    "restart_wait_s": ("2.5", 2.5),
    "hang_after_s": ("2.5", 2.5),
    "load_limit_s": ("2.5", 2.5),
    "slow_retry_s": ("2.5", 2.5),
    "shutdown_grace_s": ("2.5", 2.5),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
    "agreement_share": ("0.25", 0.25),
}

# Values out of range, and what the refusal must say.
BAD: list[tuple[str, str, str]] = [
    ("loadable", "deit_tiny_patch16_224", "must name the models that can be loaded, as in small=deit_tiny"),
    ("loadable", "a=x,a=y", "a is used twice"),
    ("patch_stride", "0", "of at least 1"),
    ("patch_stride", "half", "whole number"),
    ("input_size", "0", "from 1 to 16384"),
    ("input_size", "large", "such as 224, or height x width, such as 224x448"),
    ("stages", "0,3", "of at least 1"),
    ("stages", "7,4", "must be in ascending order, as in 4,7,10"),
    ("stages", "4,4", "must be in ascending order, as in 4,7,10"),
    ("stages", "four", "whole number"),
    ("rows", "some", "'cls' or 'all'"),
    ("device", "gpu", "must be auto, cpu or cuda:N, or several"),
    ("device", "cuda:x", "must be auto, cpu or cuda:N, or several"),
    ("device", "cpu,auto", "must be auto, cpu or cuda:N, or several"),
    ("workers_per_device", "0", "from 1 to 64"),
    ("engines", "0", "from 1 to 64"),
    ("dtype", "int4", "'float16' or 'int8'"),
    ("threads", "-1", "of at least 0"),
    ("threads", "two", "whole number"),
    ("streams", "-1", "of at least 0"),
    ("warm_up_s", "-1", "of at least 0"),
    ("max_batch_tokens", "-1", "of at least 0"),
    ("max_queue_images", "0", "of at least 1"),
    ("max_queue_s", "0", "above 0"),
    ("max_queue_s", "inf", "a number above 0"),
    ("agreement_share", "-0.1", "from 0 to 1"),
    ("agreement_share", "1.1", "from 0 to 1"),
    ("host", "*", "0.0.0.0 for all IPv4"),
    ("host", "http://127.0.0.1", "it is a URL"),
    ("host", "127.0.0.1:80", "write 127.0.0.1, and give the port with --port 80"),
    ("operations_host", "[::]:9000", "write ::, and give the port with --port 9000"),
    ("port", "-1", "from 0 to 65535"),
    ("port", "65536", "from 0 to 65535"),
    ("port", "http", "whole number"),
    ("http_workers", "0", "from 1 to 64"),
    ("http_workers", "65", "from 1 to 64"),
    ("operations_port", "65536", "from 0 to 65535"),
    ("grpc_port", "0", "from 1 to 65535"),
    ("grpc_calls", "0", "from 1 to 65535"),
    ("open_inference_input", "both", "'image' or 'pixels'"),
    ("shared_memory_bytes", "0", "of at least 1"),
    ("shared_memory_bytes", "64M", "did you mean 67108864?"),
    ("shared_memory_regions", "0", "of at least 1"),
    ("trusted_proxies", "*", "'*' is neither an address nor a network"),
    ("trusted_proxies", "10.0.0.1/8", "write 10.0.0.0/8 for the network, or 10.0.0.1 for the address"),
    ("trusted_proxies", "10.0.0.1/33", "'10.0.0.1/33' is neither an address nor a network"),
    ("trusted_proxies", "proxy.example.org", "is neither an address"),
    ("root_path", "/", "leave it out"),
    ("root_path", "https://example.org/vit", "give only its path"),
    ("root_path", "/vit/../v1", "must be a path of letters"),
    ("root_path", "/vit test", "must be a path of letters"),
    ("root_path", "/v1", "uses /v1 for its own routes"),
    ("cors_origins", "*", "'*' is not an origin"),
    ("cors_origins", "example.org", "'example.org' is not an origin"),
    ("cors_origins", "https://example.org/", "'https://example.org/' is not an origin"),
    ("cors_origins", "https://example.org,", "'' is not an origin"),
    ("decode_processes", "0", "from 1 to 64"),
    ("decode_timeout_s", "0", "above 0"),
    ("decode_timeout_s", "inf", "a number above 0"),
    ("max_body_bytes", "0", "of at least 1"),
    ("answer_cache_bytes", "-1", "of at least 0"),
    ("answer_cache_bytes", "64M", "whole number"),
    ("max_image_pixels", "0", "of at least 1"),
    ("truncated_images", "perhaps", "'refuse' or 'answer'"),
    ("max_images_per_request", "0", "of at least 1"),
    ("default_keep_ratio", "0", "above 0"),
    ("default_keep_ratio", "1.1", "at most 1"),
    ("default_keep_ratio", "nan", "at most 1"),
    ("default_criterion", "entropy", "'variance', 'mad'"),
    ("default_reducer", "blend", "'drop', 'fuse', 'merge', 'pool' or 'transform'"),
    ("default_deadline_ms", "0", "of at least 1"),
    ("model_default", "0.5", "must be NAME.OPTION=VALUE, as in small.keep_ratio=0.5, and not '0.5'"),
    (
        "model_default",
        "a.keep-ratio=0.5",
        "no option 'keep-ratio'; did you mean keep_ratio? options are keep",
    ),
    ("model_default", "a.top_k=3", "no option 'top_k'; options are keep_ratio, criterion, reducer, deadline"),
    ("model_default", "a.keep_ratio=0", "a.keep_ratio must be a number above 0 and at most 1, such as 0.5"),
    ("model_default", "a.keep_ratio=50%", "did you mean 0.5?"),
    ("model_default", "a.criterion=varience", "did you mean 'variance'?"),
    ("model_default", "a.reducer=blend", "a.reducer must be 'drop', 'fuse', 'merge', 'pool' or 'transform'"),
    ("model_default", "a.deadline_ms=0", "a.deadline_ms must be a whole number of at least 1"),
    ("model_default", "a.reducer=drop,a.reducer=fuse", "gives a.reducer twice; keep one"),
    ("shutdown_grace_s", "-1", "of at least 0"),
    ("shutdown_grace_s", "inf", "a number of at least 0"),
    ("shutdown_grace_s", "nan", "a number of at least 0"),
    ("log_level", "loud", "'debug', 'info', 'warning' or 'error'"),
]


def test_the_samples_cover_every_setting() -> None:
    """A new setting needs a sample here, and a sample differs from the default."""
    assert list(SAMPLES) == list(Settings.model_fields)
    for name, (_, value) in SAMPLES.items():
        assert value != Settings.model_fields[name].default, name


@pytest.mark.parametrize("name", SAMPLES)
def test_every_setting_can_be_given_in_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRIMVIT_<NAME> sets it, and nothing else."""
    text, value = SAMPLES[name]
    monkeypatch.setenv(f"TRIMVIT_{name.upper()}", text)
    assert Settings() == Settings.model_construct(**{**Settings.model_construct().model_dump(), name: value})


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("4,7,10", (4, 7, 10)),
        ("[4, 7, 10]", (4, 7, 10)),
        ("4", (4,)),
        ("4, 7", (4, 7)),
        ("every", "every"),
    ],
)
def test_stages_in_the_environment_may_be_typed_or_json(
    text: str, stages: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list with commas, a JSON list, a single block and `every` are all read."""
    monkeypatch.setenv("TRIMVIT_STAGES", text)
    assert Settings().stages == stages


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("log_level", "INFO", "info"), ("log_level", "Warn", "warning"), ("log_format", "JSON", "json")],
)
def test_settings_of_logs_may_be_in_capitals(
    name: str, text: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As most programs write them."""
    monkeypatch.setenv(f"TRIMVIT_{name.upper()}", text)
    assert getattr(Settings(), name) == value


@pytest.mark.parametrize(("name", "text", "words"), BAD)
def test_a_bad_value_in_the_environment_is_refused(
    name: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal names the setting and what is allowed."""
    monkeypatch.setenv(f"TRIMVIT_{name.upper()}", text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    (sentence,) = wrong_values(caught.value, Settings)
    assert sentence.startswith(name)
    assert words in sentence


def test_an_unknown_setting_is_refused() -> None:
    """A misspelt setting must not be passed over."""
    with pytest.raises(ValidationError, match="extra"):
        Settings(keep_ratio=0.5)  # type: ignore[call-arg]


def test_settings_cannot_be_changed() -> None:
    """What was checked stays as it was checked."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("changes", [{}, {name: value for name, (_, value) in SAMPLES.items()}], ids=len)
def test_settings_reach_a_child_process_unchanged(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As JSON, which goes before the child's environment."""
    settings = Settings(**changes)
    passed = settings.model_dump_json()
    monkeypatch.setenv("TRIMVIT_PORT", "1234")
    assert Settings.model_validate_json(passed) == settings


def test_every_setting_is_described() -> None:
    """--help has something to say of each."""
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_every_setting_is_in_one_group() -> None:
    """A name in two groups would be two settings of which one has no effect."""
    groups = [base for base in Settings.__bases__ if issubclass(base, BaseModel) and base is not BaseSettings]
    names = [name for group in groups for name in group.model_fields]
    assert sorted(names) == sorted(Settings.model_fields)


@pytest.mark.parametrize("name", ["workers_per_device", "engines"])
def test_each_device_has_its_workers(name: str) -> None:
    """Devices in the order in which they are named; the former name of the setting means the same."""
    settings = Settings(device="cuda:0,cuda:1", **{name: 2})  # type: ignore[arg-type]
    assert settings.devices == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    assert Settings().devices == ["auto"]
