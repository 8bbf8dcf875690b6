"""The dtypes a model can be computed in, by name; without torch, so that settings can offer them."""

from typing import Literal

DtypeName = Literal["auto", "float32", "bfloat16", "float16", "int8"]
