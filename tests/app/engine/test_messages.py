"""Messages: what goes in comes out, and nothing else comes in."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.messages import (
    Answer,
    Cancel,
    FromEngine,
    FromFrontEnd,
    ModelInfo,
    Ping,
    Refuse,
    Status,
    Submit,
    decode_from_engine,
    decode_from_front_end,
    encode,
)
from models.cascade import Cascade
from models.schedule import CRITERIA, REDUCERS, Architecture, Method, Pruning, Stages
from models.transforms import InputSpec
from tests.app.fakes import MODEL

# Ids are counted up for as long as a front end runs; 64 bits are for ever.
IDS = st.integers(0, 2**64 - 1)
RATIOS = st.floats(0, 1, exclude_min=True)
SECONDS = st.floats(-1e6, 1e6)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SIZES = st.integers(1, 2000)

FRONT_END_MESSAGES: st.SearchStrategy[FromFrontEnd] = st.builds(Ping) | st.builds(Cancel, id=IDS)
# The type checks of models' classes draw random numbers, which is forbidden in a strategy: what they are
# built from is drawn.
PRUNINGS = st.one_of(
    st.fixed_dictionaries(
        {
            "keep_ratio": RATIOS,
            "criterion": st.sampled_from(CRITERIA),
            "reducer": st.sampled_from(REDUCERS),
            "seed": st.integers(0, 2**63 - 1),
        }
    ),
    st.fixed_dictionaries({"keep_mass": RATIOS, "reducer": st.sampled_from(["drop", "fuse"])}),
)
CASCADES = st.none() | st.fixed_dictionaries(
    {
        "keep_ratio": RATIOS,
        "criterion": st.sampled_from(CRITERIA),
        "reducer": st.sampled_from(REDUCERS),
        "margin": st.floats(0, 1),
        "agreement": RATIOS,
        "images": SIZES,
        "compute": RATIOS,
    }
)
ENGINE_MESSAGES: st.SearchStrategy[FromEngine] = st.one_of(
    st.builds(
        Answer,
        id=IDS,
        classes=st.lists(st.integers(0, 21_840), max_size=5),
        scores=st.lists(st.floats(0, 1), max_size=5),
        kept_counts=st.lists(SIZES, max_size=4).map(tuple),
        keep_ratio=RATIOS,
        compute=RATIOS,
        runs=st.integers(1, 2),
        queue_s=SECONDS,
        compute_s=SECONDS,
    ),
    st.builds(
        Refuse,
        id=IDS,
        reason=st.sampled_from(["not-ready", "queue-full", "deadline-passed", "engine-fault"]),
        retry_after_s=SECONDS,
    ),
    st.builds(Status, incarnation=TEXTS, model=st.none(), waiting_tokens=st.integers(0, 2**40)),
)
JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | TEXTS
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=9,
)
SUBMIT: dict[str, Any] = {
    "type": "Submit",
    "id": 1,
    "pruning": {"keep_ratio": 0.7, "criterion": "variance", "reducer": "drop", "seed": 0, "keep_mass": None},
    "margin": 0.5,
    "top_k": 5,
    "kept_patches": False,
    "deadline_s": 30.0,
}


@given(FRONT_END_MESSAGES)
def test_a_front_ends_message_comes_through_unchanged(message: FromFrontEnd) -> None:
    """Every message of a front end is read by the engine as it was written."""
    assert decode_from_front_end(encode(message)) == message


@given(
    pruning=PRUNINGS,
    margin=st.none() | st.floats(0, 1),
    rest=st.fixed_dictionaries(
        {
            "id": IDS,
            "top_k": st.integers(1, 1000),
            "kept_patches": st.booleans(),
            "deadline_s": SECONDS,
        }
    ),
)
def test_a_submit_comes_through_unchanged(
    pruning: dict[str, Any], margin: float | None, rest: dict[str, Any]
) -> None:
    """The pruning and all that is asked beside it is read by the engine as it was written."""
    message = Submit(pruning=Pruning(**pruning), margin=None if "keep_mass" in pruning else margin, **rest)
    assert decode_from_front_end(encode(message)) == message


@given(ENGINE_MESSAGES)
def test_an_engines_message_comes_through_unchanged(message: FromEngine) -> None:
    """Every message of an engine is read by the front end as it was written."""
    assert decode_from_engine(encode(message)) == message


@given(
    sizes=st.lists(SIZES, min_size=8, max_size=8),
    blocks=st.sets(st.integers(0, 47), max_size=5),
    floats=st.lists(st.floats(0, 1), min_size=7, max_size=7),
    labels=st.lists(TEXTS, max_size=5),
    words=st.tuples(TEXTS, TEXTS, TEXTS),
    cascade=CASCADES,
    choices=st.tuples(
        st.sampled_from(CRITERIA),
        st.sampled_from(REDUCERS),
        st.sampled_from(["cls", "all"]),
        st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
        st.sampled_from(["center", "squash"]),
    ),
)
def test_a_models_description_comes_through_unchanged(
    sizes: list[int],
    blocks: set[int],
    floats: list[float],
    labels: list[str],
    words: tuple[str, str, str],
    cascade: dict[str, Any] | None,
    choices: Any,
) -> None:
    """A Status carries everything a front end must know of the model, nested records included."""
    depth, dim, mlp_dim, rows, columns, prefix, patch_inputs, classes = sizes
    mean, std, share = tuple(floats[:3]), tuple(floats[3:6]), floats[6]
    criterion, reducer, attention_rows, interpolation, crop = choices
    name, device, dtype = words
    info = ModelInfo(
        name=name,
        labels=tuple(labels),
        input=InputSpec((rows, columns), mean, std, interpolation, crop, share),
        architecture=Architecture(depth, dim, mlp_dim, (rows, columns), prefix, patch_inputs, classes),
        method=Method(Stages(tuple(sorted(blocks)), attention_rows), criterion, reducer),
        cascade=None if cascade is None else Cascade(**cascade),
        patch_size=(prefix, classes),
        patch_stride=(columns, depth),
        device=device,
        dtype=dtype,
    )
    status = Status(incarnation="one", model=info, waiting_tokens=0)
    assert decode_from_engine(encode(status)) == status


@given(st.binary(max_size=60))
def test_random_bytes_are_no_message(frame: bytes) -> None:
    """Noise raises DecodeError on both sides, and nothing else."""
    for decode in (decode_from_front_end, decode_from_engine):
        with pytest.raises(msgspec.DecodeError):
            decode(frame)


@given(JSON_LIKE)
def test_other_msgpack_is_no_message(value: object) -> None:
    """Sound msgpack of any other shape raises DecodeError on both sides."""
    frame = msgspec.msgpack.encode(value)
    for decode in (decode_from_front_end, decode_from_engine):
        with pytest.raises(msgspec.DecodeError):
            decode(frame)


def test_each_side_reads_only_the_others_messages() -> None:
    """An engine takes no Status, a front end no Submit."""
    status = Status(incarnation="one", model=MODEL, waiting_tokens=0)
    with pytest.raises(msgspec.DecodeError):
        decode_from_front_end(encode(status))
    with pytest.raises(msgspec.DecodeError):
        decode_from_engine(encode(Ping()))


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1"},
        {"pruning": None},
        {"pruning": {"keep_ratio": 0.0}},
        {"pruning": {"keep_ratio": -0.5}},
        {"pruning": {"keep_ratio": 1.0001}},
        {"pruning": {"keep_ratio": float("nan")}},
        {"pruning": {"keep_ratio": "0.5"}},
        {"pruning": {"criterion": "entropy"}},
        {"pruning": {"reducer": "pool"}},
        {"pruning": {"seed": -1}},
        {"pruning": {"seed": 2**63}},
        {"pruning": {"keep_mass": 0.0}},
        {"pruning": {"keep_mass": float("nan")}},
        {"pruning": {"keep_mass": 0.5, "keep_ratio": 0.5}},
        {"pruning": {"keep_mass": 0.5, "reducer": "merge"}},
        {"pruning": {"keep_mass": 0.5}, "margin": 0.5},
        {"margin": -0.1},
        {"margin": 1.1},
        {"margin": float("nan")},
        {"top_k": 0},
        {"kept_patches": 1},
        {"deadline_s": "soon"},
    ],
    ids=str,
)
def test_a_submit_out_of_range_is_no_message(change: dict[str, Any]) -> None:
    """The engine reads no Submit that its scheduler or model could not work with."""
    frame = msgspec.msgpack.encode({**SUBMIT, **change})
    with pytest.raises(msgspec.DecodeError):
        decode_from_front_end(frame)


def test_a_sound_submit_is_read() -> None:
    """The form that the cases above spoil is itself sound."""
    assert isinstance(decode_from_front_end(msgspec.msgpack.encode(SUBMIT)), Submit)


@pytest.mark.parametrize("name", sorted(set(SUBMIT) - {"type"}))
def test_a_submit_that_lacks_a_field_is_no_message(name: str) -> None:
    """Every field of a Submit must be there."""
    frame = msgspec.msgpack.encode({field: value for field, value in SUBMIT.items() if field != name})
    with pytest.raises(msgspec.DecodeError):
        decode_from_front_end(frame)


@pytest.mark.parametrize("pruning", [{"keep_mass": 0.5}, {"keep_ratio": 0.5, "reducer": "merge"}], ids=str)
def test_a_sound_pruning_is_read(pruning: dict[str, Any]) -> None:
    """The prunings that the cases above put together wrongly are sound apart."""
    message = decode_from_front_end(msgspec.msgpack.encode({**SUBMIT, "pruning": pruning, "margin": None}))
    assert isinstance(message, Submit)
    assert message.pruning == Pruning(**pruning)


def test_a_deadline_that_is_no_number_is_no_message() -> None:
    """It would be neither above nor below any other, and spoil the order of all."""
    with pytest.raises(msgspec.ValidationError, match="a deadline must be a number"):
        decode_from_front_end(msgspec.msgpack.encode({**SUBMIT, "deadline_s": float("nan")}))
