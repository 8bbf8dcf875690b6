"""What is done with a JPEG that ends too soon. Decoder processes import this, so it is small."""

from typing import Literal

TruncatedImages = Literal["refuse", "answer"]
