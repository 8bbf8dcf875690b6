"""models.timm_import: timm without PyTorch's compiler, which still works afterwards."""

import subprocess
import sys

import pytest

IMPORTED = "import sys, models.timm_import"


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_a_worker_needs_is_imported_without_the_compiler() -> None:
    compiler = "[name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor'))]"
    assert run(f"{IMPORTED}, models.classifier, models.load; print({compiler})") == "[]"


def test_a_function_can_be_compiled_afterwards() -> None:
    code = (
        f"{IMPORTED}, torch\n"
        "double = torch.compile(lambda x: 2 * x, backend='eager')\n"
        "never = torch.compiler.disable(lambda x: x)\n"
        "print(double(torch.ones(2)).tolist(), never(3))"
    )
    assert run(code) == "[2.0, 2.0] 3"


def test_torchvisions_operators_ask_the_compiler_itself() -> None:
    code = (
        f"{IMPORTED}, torch\n"
        "from torchvision.ops import roi_align\n"
        "boxes = [torch.tensor([[0.0, 0.0, 2.0, 2.0]])]\n"
        "print(tuple(roi_align(torch.ones(1, 1, 4, 4), boxes, 2).shape))\n"
        "from models.timm_import import is_compile_supported as ours\n"
        "from torch._dynamo.utils import is_compile_supported as its\n"
        "print(ours('cpu') == its('cpu'), ours('meta') == its('meta'))"
    )
    assert run(code) == "(1, 1, 2, 2)\nTrue True"


@pytest.mark.parametrize("first", ["torch._dynamo", "timm"])
def test_after_the_compiler_or_timm_it_changes_nothing(first: str) -> None:
    code = f"import sys, {first}; before = sys.modules['torch._dynamo']; import models.timm_import"
    assert run(f"{code}; print(sys.modules['torch._dynamo'] is before)") == "True"
