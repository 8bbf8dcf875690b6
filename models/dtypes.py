"""The names of the supported dtypes. No torch: settings use them."""

from typing import Literal

DtypeName = Literal["auto", "float32", "bfloat16", "float16", "int8"]
