"""How truncated JPEGs are handled. Decoder processes import this, so it is small."""

from typing import Literal

TruncatedImages = Literal["refuse", "answer"]
