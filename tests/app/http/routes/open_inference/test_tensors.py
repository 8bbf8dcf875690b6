"""The binary tensor data codec: what is written is read again, and no claim is believed."""

import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from app.errors import InvalidValue, TooLarge, UnreadableRequest
from app.http.routes.open_inference.tensors import (
    MOST_JSON_VALUES,
    OutputTensor,
    allot,
    flat,
    image_bytes,
    image_pixels,
    joined,
    json_bytes,
    parsed,
    read_elements,
    split,
    write_elements,
)

SHAPES = nps.array_shapes(min_dims=1, max_dims=4, max_side=5)


def nested(values: list[int], shape: tuple[int, ...]) -> object:
    """JSON data nested as the shape is."""
    return np.array(values, object).reshape(shape).tolist()


# BYTES.


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=9))
def test_elements_are_read_as_they_were_written(elements: list[bytes]) -> None:
    """Also empty ones, the last among them."""
    assert read_elements(memoryview(write_elements(elements)), len(elements)) == elements


def test_elements_are_written_as_the_extension_says() -> None:
    """4 bytes little-endian before each."""
    assert write_elements([b"abc", b"", b"\xff" * 258]) == (
        b"\x03\x00\x00\x00abc" + b"\x00\x00\x00\x00" + b"\x02\x01\x00\x00" + b"\xff" * 258
    )


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5), st.data())
def test_cut_or_grown_data_is_refused(elements: list[bytes], data: st.DataObject) -> None:
    """Whatever is missing at the end, or comes too much."""
    whole = write_elements(elements)
    cut = data.draw(st.integers(0, len(whole) - 1))
    for wrong in (whole[:cut], whole + b"\x00", whole + whole):
        with pytest.raises(InvalidValue):
            read_elements(memoryview(wrong), len(elements))


@given(st.binary(max_size=64), st.integers(1, 2**40))
def test_any_bytes_are_read_or_refused(data: bytes, count: int) -> None:
    """Never anything else; what is read fills the data."""
    try:
        elements = read_elements(memoryview(data), count)
    except InvalidValue:
        return
    assert write_elements(elements) == data
    assert len(elements) == count


def test_a_claimed_length_is_not_allocated() -> None:
    """4 GiB claimed by 8 bytes cost no more than the words about it."""
    tracemalloc.start()
    try:
        for data, count in ((struct.pack("<I", 2**32 - 1) + b"abcd", 1), (b"", 2**62)):
            with pytest.raises(InvalidValue, match=r"4294967295 bytes, but 4 are left|4611686018427387904"):
                read_elements(memoryview(data), count)
        for shape in ([1, 2**40, 2**40, 3], [2**62, 1, 1, 3]):
            with pytest.raises(InvalidValue, match=r"which is \d+ bytes, but|which is \d+\.\.\."):
                image_pixels(shape, None, memoryview(b"abc"))
            with pytest.raises(InvalidValue, match="but data has 3"):
                image_pixels(shape, [1, 2, 3], None)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# Numbers and whole answers.


@given(
    nps.arrays(np.float32, SHAPES, elements=st.floats(-1e6, 1e6, width=32)),
    st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=9), min_size=1, max_size=5),
    nps.arrays(np.bool_, SHAPES),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_an_answer_can_be_read_again(
    numbers: np.ndarray, texts: list[str], flags: np.ndarray, binary: tuple[bool, bool, bool]
) -> None:
    """Each tensor, in the JSON or behind it, has the values and the shape it was given."""
    tensors = (
        OutputTensor("score", "FP32", numbers.shape, numbers),
        OutputTensor("label", "BYTES", (len(texts),), texts),
        OutputTensor("kept_patches", "BOOL", flags.shape, flags),
    )
    body, length = joined({"model_name": "toy"}, list(zip(tensors, binary, strict=True)))
    assert (length is None) == (not any(binary))
    document = json.loads(body[:length])
    rest = body[length:] if length is not None else b""
    assert document["model_name"] == "toy"
    got = []
    for output in document["outputs"]:
        if "parameters" in output:
            size = output["parameters"]["binary_data_size"]
            share, rest = rest[:size], rest[size:]
            assert "data" not in output
            match output["datatype"]:
                case "FP32":
                    got.append(np.frombuffer(share, "<f4").reshape(output["shape"]))
                case "BOOL":
                    got.append(np.frombuffer(share, "?").reshape(output["shape"]))
                case _:
                    elements = read_elements(memoryview(share), output["shape"][0])
                    got.append([str(element, "utf-8") for element in elements])
        else:
            data = output["data"]
            got.append(data if output["name"] == "label" else np.array(data).reshape(output["shape"]))
    assert rest == b""
    assert np.array_equal(got[0].astype(np.float32), numbers)
    assert got[1] == texts
    assert np.array_equal(got[2], flags)


def test_numbers_lie_little_endian_row_by_row() -> None:
    """Whatever the array's own order is."""
    values = np.arange(6, dtype=">i4").reshape(2, 3).T
    tensor = OutputTensor("index", "INT32", (3, 2), values)
    assert tensor.binary == struct.pack("<6i", 0, 3, 1, 4, 2, 5)
    assert tensor.json == [0, 3, 1, 4, 2, 5]


# JSON data.


@given(SHAPES, st.data())
def test_json_data_may_be_flat_or_nested(shape: tuple[int, ...], data: st.DataObject) -> None:
    """Both are the same elements in the same order."""
    count = int(np.prod(shape))
    values = data.draw(st.lists(st.integers(), min_size=count, max_size=count))
    assert flat(values, shape) == values
    assert flat(nested(values, shape), shape) == values


@pytest.mark.parametrize(
    ("data", "shape"),
    [
        (None, [1]),
        ("abc", [3]),
        ({"a": 1}, [1]),
        ([], [1]),
        ([1, 2], [3]),
        ([1, 2], [1]),
        ([[1, 2], [3]], [2, 2]),
        ([[1, 2], 3, 4], [2, 2]),
        ([[1, 2, 3, 4]], [2, 2]),
        ([[[1, 2, 3, 4]]], [4]),
    ],
)
def test_json_data_of_another_shape_is_refused(data: object, shape: list[int]) -> None:
    """Too few, too many, ragged, or nested otherwise."""
    with pytest.raises(InvalidValue, match="data"):
        flat(data, shape)


@given(nps.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 7), st.just(3))))
def test_pixels_are_the_same_in_json_and_as_binary_data(pixels: np.ndarray) -> None:
    """Flat, nested or binary: the same array."""
    shape = list(pixels.shape)
    for data, binary in (
        (pixels.ravel().tolist(), None),
        (pixels.tolist(), None),
        (None, memoryview(pixels.tobytes())),
    ):
        assert np.array_equal(image_pixels(shape, data, binary), pixels)


@pytest.mark.parametrize("value", [-1, 256, 10**30, 1.0, True, None, "7", [7], {}])
def test_what_is_no_pixel_value_is_refused(value: object) -> None:
    """Integers from 0 to 255 only, and no silent rounding."""
    for data in ([0, 1, value], [[[[0, 1, value]]]]):
        with pytest.raises(InvalidValue, match="from 0 to 255"):
            image_pixels([1, 1, 1, 3], data, None)


@pytest.mark.parametrize("shape", [[1], [1, 1, 3], [1, 3, 1, 1], [1, 1, 1, 4], [0, 1, 1, 3], [1, 0, 1, 3]])
def test_pixels_of_another_shape_are_refused(shape: list[int]) -> None:
    """n images of some height and width, three channels last."""
    with pytest.raises(InvalidValue, match=r"\[n, height, width, 3\]|has the shape \[1, 1, 1, 3\]"):
        image_pixels(shape, [], None)


@pytest.mark.parametrize("shape", [[], [0], [0, 1], [1, 2], [2, 0], [1, 1, 1]])
def test_images_of_another_shape_are_refused(shape: list[int]) -> None:
    """n, or n x 1."""
    with pytest.raises(InvalidValue, match=r"\[n\] and \[n, 1\]"):
        image_bytes(shape, ["a"], None, lambda text, index: b"")


# The body.


def read(body: bytes, length: str | None) -> Any:
    """The value of the JSON in the body."""
    return parsed(split(body, length)[0], length)


@given(st.dictionaries(st.text(max_size=5), st.integers()), st.binary(max_size=40))
def test_a_body_is_split_where_the_header_says(document: dict[str, int], binary: bytes) -> None:
    """JSON before, binary data behind."""
    text = json.dumps(document).encode()
    length = str(len(text))
    assert split(text + binary, length) == (text, memoryview(binary))
    assert split(text, None) == (text, memoryview(b""))
    assert parsed(text, length) == parsed(text, None) == document


@pytest.mark.parametrize("length", ["", "-1", "3.0", "0x2", "1e1", "٣", " 2", "99", "9" * 5000, "0", "1"])
def test_a_wrong_header_length_is_refused(length: str) -> None:
    """No number, more than there is, or where no JSON ends."""
    with pytest.raises(UnreadableRequest):
        read(b"{}abc", length)


def test_json_of_too_many_values_is_refused_unread() -> None:
    """Nobody else waits for its parsing; as binary data it is welcome."""
    most = b"[" + b"0," * MOST_JSON_VALUES + b"0]"
    assert len(read(most, None)) == MOST_JSON_VALUES + 1
    for body, length in ((b"[0," + most, None), (b"[0," + most, str(len(most) + 3))):
        with pytest.raises(TooLarge, match="binary data"):
            read(body, length)
    assert len(split(b"{}" + most * 2, "2")[1]) == 2 * len(most)


@given(st.lists(st.none() | st.integers(0, 9), max_size=5), st.integers(-3, 3))
def test_binary_data_is_allotted_in_order_and_whole(sizes: list[int | None], more: int) -> None:
    """Each gets its own bytes; sizes that come to more or less than there is are refused."""
    total = sum(size or 0 for size in sizes)
    data = memoryview(bytes(range(max(0, total + more))))
    if len(data) != total:
        with pytest.raises(InvalidValue):
            allot(sizes, data)
        return
    shares = allot(sizes, data)
    assert [None if share is None else len(share) for share in shares] == sizes
    assert b"".join(share for share in shares if share is not None) == data


@pytest.mark.parametrize(
    ("header_length", "expected"),
    [(None, 1000), ("0", 0), ("37", 37), ("1001", 1000), ("-1", 1000), ("", 1000), ("9" * 11, 1000)],
)
def test_how_much_of_a_body_is_json_is_known_beforehand(header_length: str | None, expected: int) -> None:
    """All of it where the header says nothing, or nothing that can be."""
    assert json_bytes(1000, header_length) == expected
