"""Which device and dtype are chosen, on machines of every kind."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

import models
from models import cores as cores_module
from models import device
from models.device import choose_device, choose_dtype, cores
from models.dtypes import DtypeName

REPOSITORY = Path(models.__file__).parents[1]


def machine(monkeypatch: pytest.MonkeyPatch, gpus: int, bfloat16: bool = True, int8: bool = True) -> None:
    """Let PyTorch report so many GPUs, whether CPU and GPU compute in bfloat16, and the CPU in int8."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0) if bfloat16 else (7, 5))
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(device, "cpu_has_int8", lambda: int8)


@pytest.mark.parametrize(
    ("wanted", "gpus", "chosen"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 2, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_choose_device(monkeypatch: pytest.MonkeyPatch, wanted: str, gpus: int, chosen: str) -> None:
    """`auto` takes the first GPU there is, else the CPU; a device that is named is that one."""
    machine(monkeypatch, gpus)
    assert choose_device(wanted) == chosen


@pytest.mark.parametrize(("wanted", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str, gpus: int) -> None:
    """A GPU asked for by number must exist; nothing is quietly put on the CPU instead."""
    machine(monkeypatch, gpus)
    with pytest.raises(OSError, match=f"the device cuda:[02] does not exist; PyTorch finds {gpus} GPUs"):
        choose_device(wanted)


@pytest.mark.parametrize("wanted", ["", "gpu", "mps", "cuda:-1", "cuda:one", "cuda:", "cpu:0", "CUDA"])
def test_what_is_no_device_is_refused(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    """In words, also where there are GPUs."""
    machine(monkeypatch, 2)
    with pytest.raises(ValueError, match=f"^the device '{wanted}' is not supported; allowed are auto, cpu"):
        choose_device(wanted)


@pytest.mark.parametrize(
    ("on", "bfloat16", "chosen"),
    [
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ("cuda:0", True, torch.bfloat16),
        ("cuda:0", False, torch.float16),
    ],
)
def test_auto_dtype(monkeypatch: pytest.MonkeyPatch, on: str, bfloat16: bool, chosen: torch.dtype) -> None:
    """bfloat16 where it is native; else float32 on a CPU and float16 on a GPU."""
    machine(monkeypatch, gpus=1, bfloat16=bfloat16)
    assert choose_dtype(on) == chosen


def test_the_dtype_is_that_of_the_gpu_in_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two GPUs of different ages, each is asked for itself."""
    machine(monkeypatch, gpus=2)
    ages = {"cuda:0": (9, 0), "cuda:1": (7, 5)}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ages[device])
    assert [choose_dtype(gpu) for gpu in ages] == [torch.bfloat16, torch.float16]


def test_a_thread_uses_its_gpu_without_cudnns_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes a plan for every new shape."""
    used: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    was = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        device.use_gpu("cuda:1")
        assert used == ["cuda:1"]
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)


def test_a_named_dtype_is_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever names a dtype gets it, native or not."""
    machine(monkeypatch, gpus=0, bfloat16=False)
    assert choose_dtype("cpu", "bfloat16") == torch.bfloat16
    assert choose_dtype("cpu", "float32") == torch.float32
    assert choose_dtype("cuda:0", "float16") == torch.float16
    assert choose_dtype("cpu", "int8") == torch.int8


@pytest.mark.parametrize(
    ("on", "int8", "found"), [("cuda:0", True, "cuda:0"), ("cpu", False, "a CPU without")]
)
def test_int8_is_refused_where_it_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, on: str, int8: bool, found: str
) -> None:
    """Not on a GPU, and not on a CPU that would be slow; the refusal says what is allowed instead."""
    machine(monkeypatch, gpus=1, int8=int8)
    with pytest.raises(ValueError, match=f"int8 needs a CPU with AVX2, but this is {found}") as caught:
        choose_dtype(on, "int8")
    assert str(caught.value).endswith("allowed here: auto, float32, bfloat16, float16")


def test_every_dtype_that_can_be_named_is_one() -> None:
    """The names that settings offer are all known here, and the dtypes are called the same."""
    named = [name for name in get_args(DtypeName) if name != "auto"]
    assert named == list(device._DTYPES)
    assert [str(dtype) for dtype in device._DTYPES.values()] == [f"torch.{name}" for name in named]


def test_native_dtypes_are_what_the_processor_says() -> None:
    """This machine's choice agrees with the flags that Linux reads off its processor."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        pytest.skip("no /proc/cpuinfo here")
    assert device.cpu_has_bfloat16() == ("avx512_bf16" in flags or "amx_tile" in flags)
    assert device.cpu_has_int8() == ("avx2" in flags)
    assert device.cpu_has_vnni() == ("avx512_vnni" in flags)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_this_process_may_use() -> None:
    """A process that is bound to one core of many counts one."""
    assert cores() == max(1, math.ceil(min(len(os.sched_getaffinity(0)), cores_module._cores_of_time())))
    code = "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); "
    code += "from models.device import cores; print(cores())"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=True)
    assert result.stdout == b"1\n"


@pytest.mark.parametrize(
    ("membership", "files", "cores_of_time"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, math.inf),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3.0),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/of/the/host\n", {"cpu.max": "200000 100000\n"}, 2.0),
        (
            "5:memory:/other\n4:cpu,cpuacct:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, math.inf),
        ("4:cpuset:/\n", {"cpu.max": "100000 100000\n"}, math.inf),
        ("0::/\n", {}, math.inf),
    ],
    ids=[
        "v2",
        "no limit",
        "above",
        "below",
        "not in a namespace",
        "v1",
        "v1, no limit",
        "other group",
        "none",
    ],
)
def test_a_container_s_limit_counts(
    tmp_path: Path, membership: str, files: dict[str, str], cores_of_time: float
) -> None:
    """Both versions of control groups, in a namespace of their own or not."""
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert cores_module._cores_of_time(tmp_path / "membership", tmp_path / "groups") == cores_of_time


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    """On a system that has none."""
    assert cores_module._cores_of_time(tmp_path / "none", tmp_path) == math.inf


@pytest.mark.parametrize(("time", "number"), [(0.2, 1), (1.0, 1), (1.5, 2), (math.inf, 64)])
def test_a_part_of_a_core_is_one(monkeypatch: pytest.MonkeyPatch, time: float, number: int) -> None:
    """Rounded up, on a machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cores_module, "_cores_of_time", lambda: time)
    assert cores() == number
