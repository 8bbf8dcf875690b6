"""Passes over the rows of int8 layers, compiled by numba: each reads a row once, computes in float32 and
writes once. bfloat16 values are given and returned as their bits, in uint16.

Loops are simple and over one row of float32 at a time, so that the compiler vectorises them. What a row
becomes does not depend on other rows. The arguments with an entry per row come first.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

_F = np.float32
_U = np.uint32
_HALF, _ONE, _ROOT_HALF = _F(0.5), _F(1), _F(0.7071067811865476)
_LARGEST, _SMALLEST = _F(127), _F(1e-30)
_INFINITE = _U(0x7F800000)  # the bits of infinity; those of NaN are larger
_ZERO_POINT_AND_HALF = _F(128.5)  # truncation then rounds to the nearest


_SUMS = ("_total", "_squares")


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile at the first call, or load what an earlier process has compiled. The GIL is released.

    Type checks that tests add to all functions are removed first, because numba cannot compile them.
    """
    plain = inspect.unwrap(function)
    # Multiplications and additions may be fused. Only sums are reordered, so that they can be vectorised:
    # products may overflow in another order.
    fast = {"contract", "nsz"} | ({"reassoc"} if function.__name__ in _SUMS else set())
    options = {"nogil": True, "fastmath": fast, "error_model": "numpy"}
    try:
        return numba.njit(plain, cache=True, **options)
    except RuntimeError:  # there is no folder that can be written to
        return numba.njit(plain, **options)


@_compiled
def _erf(x):  # type: ignore[no-untyped-def]
    """erf as a rational function, to 4e-7: a ratio of polynomials that is fitted on [-4, 4]."""
    x = min(max(x, _F(-4)), _F(4))
    square = x * x
    above = _F(-2.72614225801306e-10)
    above = above * square + _F(2.77068142495902e-08)
    above = above * square + _F(-2.10102402082508e-06)
    above = above * square + _F(-5.69250639462346e-05)
    above = above * square + _F(-7.34990630326855e-04)
    above = above * square + _F(-2.95459980854025e-03)
    above = above * square + _F(-1.60960333262415e-02)
    below = _F(-1.45660718464996e-05)
    below = below * square + _F(-2.13374055278905e-04)
    below = below * square + _F(-1.68282697438203e-03)
    below = below * square + _F(-7.37332916720468e-03)
    below = below * square + _F(-1.42647390514189e-02)
    return above * x / below


@_compiled
def _widen(narrow, wide):  # type: ignore[no-untyped-def]
    """bfloat16 -> float32, both as bits."""
    for place in range(len(narrow)):
        wide[place] = _U(narrow[place]) << _U(16)


@_compiled
def _narrow(wide, narrow):  # type: ignore[no-untyped-def]
    """float32 -> bfloat16, both as bits: to the nearest, and to the even one of two."""
    for place in range(len(narrow)):
        bits = wide[place]
        narrow[place] = np.uint16((bits + _U(0x7FFF) + ((bits >> _U(16)) & _U(1))) >> _U(16))


@_compiled
def _quantise(bits, values, integers):  # type: ignore[no-untyped-def]
    """Quantise a row symmetrically around 128 and return its scale: NaN if a value is not finite. Magnitudes
    are ordered as their bits."""
    largest = np.zeros(1, np.uint32)
    most = _U(0)
    for place in range(len(bits)):
        most = max(most, bits[place] & _U(0x7FFFFFFF))
    if most >= _INFINITE:
        return _F(np.nan)
    largest[0] = most
    magnitude = max(largest.view(np.float32)[0], _SMALLEST)
    steps = _LARGEST / magnitude
    for place in range(len(bits)):
        integers[place] = np.uint8(np.int32(values[place] * steps + _ZERO_POINT_AND_HALF))
    return magnitude / _LARGEST


@_compiled
def _scaled(products, factor, bias, bits, values):  # type: ignore[no-untyped-def]
    """Widen a row of products into ``bits``, and multiply its ``values`` by the scale of the row, plus the
    bias."""
    _widen(products, bits)
    for place in range(len(bits)):
        values[place] = values[place] * factor + bias[place]


@_compiled
def quantise(rows, integers, scales):  # type: ignore[no-untyped-def]
    """rows -> integers, scales."""
    bits = np.empty(rows.shape[1], np.uint32)
    values = bits.view(np.float32)
    for row in range(len(rows)):
        _widen(rows[row], bits)
        scales[row] = _quantise(bits, values, integers[row])


@_compiled
def _total(values):  # type: ignore[no-untyped-def]
    total = _F(0)
    for place in range(len(values)):
        total += values[place]
    return total


@_compiled
def _squares(values, mean):  # type: ignore[no-untyped-def]
    """The sum of squared differences from the mean."""
    total = _F(0)
    for place in range(len(values)):
        difference = values[place] - mean
        total += difference * difference
    return total


@_compiled
def norm_quantise(rows, integers, scales, weight, bias, eps):  # type: ignore[no-untyped-def]
    """rows -> layer norm -> integers, scales."""
    width = rows.shape[1]
    bits = np.empty(width, np.uint32)
    values = bits.view(np.float32)
    for row in range(len(rows)):
        _widen(rows[row], bits)
        mean = _total(values) / _F(width)
        factor = _ONE / np.sqrt(_squares(values, mean) / _F(width) + eps)
        for place in range(width):
            values[place] = (values[place] - mean) * factor * weight[place] + bias[place]
        scales[row] = _quantise(bits, values, integers[row])


@_compiled
def gelu_quantise(products, product_scales, integers, scales, bias):  # type: ignore[no-untyped-def]
    """products -> times the scale of their row, plus the bias -> GELU -> integers, scales."""
    width = products.shape[1]
    bits = np.empty(width, np.uint32)
    values = bits.view(np.float32)
    for row in range(len(products)):
        _scaled(products[row], product_scales[row], bias, bits, values)
        for place in range(width):
            value = values[place]
            values[place] = _HALF * value * (_ONE + _erf(value * _ROOT_HALF))
        scales[row] = _quantise(bits, values, integers[row])


@_compiled
def scale(products, scales, results, bias):  # type: ignore[no-untyped-def]
    """products -> times the scale of their row, plus the bias -> results, which may be the products."""
    bits = np.empty(products.shape[1], np.uint32)
    values = bits.view(np.float32)
    for row in range(len(products)):
        _scaled(products[row], scales[row], bias, bits, values)
        _narrow(bits, results[row])


@_compiled
def scale_add(rows, products, scales, results, bias, layer_scale):  # type: ignore[no-untyped-def]
    """rows, and products -> times the scale of their row, plus the bias, times the layer scale -> the sum of
    both -> results, which may be the products."""
    width = rows.shape[1]
    bits, row_bits = np.empty(width, np.uint32), np.empty(width, np.uint32)
    values, row_values = bits.view(np.float32), row_bits.view(np.float32)
    for row in range(len(rows)):
        _scaled(products[row], scales[row], bias, bits, values)
        _widen(rows[row], row_bits)
        for place in range(width):
            values[place] = row_values[place] + values[place] * layer_scale[place]
        _narrow(bits, results[row])
