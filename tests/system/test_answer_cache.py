"""The answer cache of a real server: two keys, and a model whose file changes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from safetensors.torch import safe_open, save_file

from tests.system.photographs import SHIPPED
from tests.system.server import is_ready, running_server, wait_until
from tests.system.small_network import save_small_network

COFFEE = (SHIPPED / "coffee.jpg").read_bytes()
CHINA = (SHIPPED / "china.jpg").read_bytes()
ALICE, BOB = "alices-secret-key-1", "bobs-secret-key-22"
MISS, HIT = "trimvit; fwd=miss", "trimvit; hit"


def negate_head(path: Path) -> None:
    """Other weights under the same name, with the same labels: the last label becomes the first."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name in [name for name in tensors if name.startswith("head.")]:
        tensors[name] = -tensors[name].to(torch.float32).to(tensors[name].dtype)
    new = path.with_suffix(".new")
    save_file(tensors, new, metadata)
    new.replace(path)


def test_answers_are_kept_by_caller_and_never_outlive_their_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each key has its own answers. A worker that loads other weights answers by them; and when the old file
    is back, so are its answers."""
    model = tmp_path / "small.safetensors"
    save_small_network(model)
    original = model.read_bytes()
    monkeypatch.setenv("TRIMVIT_API_KEYS", f"alice:{ALICE},bob:{BOB}")
    flags = ("--model", str(model), "--answer-cache-bytes", str(2**20), "--dtype", "float32")
    with running_server(tmp_path, *flags) as server:

        def ask(key: str = ALICE) -> tuple[str, list[dict[str, Any]]]:
            response = httpx.post(
                f"{server.url}/v1/classify?top_k=3",
                content=COFFEE,
                headers={"Authorization": f"Bearer {key}"},
                timeout=60,
            )
            assert response.status_code == 200, response.text
            return response.headers["Cache-Status"], response.json()["results"][0]["labels"]

        status, labels = ask()
        assert [status, ask()[0], ask(BOB)[0], ask(BOB)[0]] == [MISS, HIT, MISS, HIT]
        assert ask()[1] == labels

        def serve_again() -> None:
            """Have the worker load its file anew."""
            worker = server.only_process("trimvit: worker")
            worker.kill()
            psutil.wait_procs([worker], 60)

            def next_is_ready() -> bool:
                others = [each for each in server.processes("trimvit: worker") if each.pid != worker.pid]
                return bool(others) and is_ready(server.url)

            wait_until(next_is_ready, "the next worker")

        def post_china(_: int) -> str:
            answer = httpx.post(
                f"{server.url}/v1/classify", content=CHINA, headers={"X-API-Key": ALICE}, timeout=60
            )
            assert answer.status_code == 200, answer.text
            return answer.headers["Cache-Status"]

        with ThreadPoolExecutor(8) as threads:  # at the same time: one is computed
            assert sorted(threads.map(post_china, range(8))) == [MISS] + [HIT] * 7

        negate_head(model)
        serve_again()
        status, others = ask()
        assert status == MISS
        assert [label["index"] for label in others] == [label["index"] for label in reversed(labels)]
        assert ask() == (HIT, others)
        model.write_bytes(original)
        serve_again()
        status, again = ask()
        assert again == labels
        assert status == HIT, "the fingerprint is that of the weights"
        assert server.metric("trimvit_answer_cache_hits_total") == 12
        assert server.metric("trimvit_answer_cache_misses_total") == 4
        assert 0 < server.metric("trimvit_answer_cache_bytes") <= 2**20
