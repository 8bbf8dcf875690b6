"""What is looked at in an encoded image before its decoder sees it: how much work it asks for."""

from typing import Literal

TruncatedImages = Literal["refuse", "answer"]
