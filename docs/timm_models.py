"""Write the table of docs/timm-models.md: every tag of timm's modules whose networks TrimViT prunes.

    python docs/timm_models.py

Nothing is downloaded: whether patches can be pruned is seen on networks without values, of two blocks each.
"""

from collections.abc import Iterator
from pathlib import Path

import timm
import torch

from models.load import ModelError
from models.load.timm_models import create_timm, is_projection
from models.pruned_vit import PrunedViT, UnsupportedModelError
from models.schedule import Stages

PAGE = Path(__file__).with_name("timm-models.md")
BEGIN, END = "<!-- table of timm's tags, made by docs/timm_models.py -->", "<!-- end of table -->"
MODULES = ("deit", "eva", "vision_transformer")
_BLOCKS = 2


def table() -> str:
    """In Markdown, with the number of each outcome before it."""
    rows = list(_rows())
    outcomes = [row[3].partition(":")[0] for row in rows]
    counted = ", ".join(
        f"{outcomes.count(outcome)} {outcome}" for outcome in ("served", "needs a head", "refused")
    )
    lines = [
        f"timm {timm.__version__}: {len(rows)} tags, {counted}.",
        "",
        "| tag | input | classes | |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines)


def refusal(architecture: str) -> str | None:
    """Why the patches of an architecture cannot be pruned; None where they can."""
    try:
        with torch.device("meta"):
            try:
                vit = create_timm(architecture, pretrained=False, depth=_BLOCKS)
            except ModelError:  # of some, other arguments say something of each block
                vit = create_timm(architecture, pretrained=False)
            PrunedViT(vit, Stages((), "all"))
    except UnsupportedModelError as error:
        return str(error).removeprefix("cannot prune this model: ").partition(". Supported")[0]
    return None


def _rows() -> Iterator[tuple[str, str, str, str]]:
    refusals: dict[str, str | None] = {}
    for module in MODULES:
        for name in timm.list_models(module=module, pretrained=True):
            card = timm.get_pretrained_cfg(name)
            assert card is not None
            stem = name.partition(".")[0]
            if stem not in refusals:
                refusals[stem] = refusal(stem)
            _, height, width = card.input_size
            yield name, f"{height} x {width}", str(card.num_classes), _outcome(name, refusals[stem], card)


def _outcome(name: str, refused: str | None, card: timm.models.PretrainedCfg) -> str:
    if refused is not None:
        return f"refused: {refused}"
    if card.num_classes == 0:
        return "needs a head"
    if is_projection(name, card.num_classes):
        return "needs a head: its own is a projection of CLIP"
    return "served"


def main() -> None:
    """Replace the table in the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
