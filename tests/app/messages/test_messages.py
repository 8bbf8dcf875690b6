"""Messages: what goes in comes out, and nothing else comes in."""

from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.messages import to_dispatcher, to_front_end, to_worker
from app.messages.capacity import Limits, Measured, Work
from app.messages.image import Ask, Prediction
from app.messages.model import ModelInfo
from app.messages.repository import LoadFault, ModelEntry, ModelState
from app.messages.to_dispatcher import (
    Alive,
    Cancel,
    Checked,
    Done,
    FrontEnd,
    Held,
    LoadModel,
    ModelLeft,
    ModelNotLoaded,
    ModelUnloaded,
    Record,
    Submit,
    ToDispatcher,
    UnloadModel,
    Worker,
)
from app.messages.to_front_end import (
    Answer,
    Load,
    ModelChanged,
    Models,
    Outcomes,
    Refuse,
    Repository,
    ToFrontEnd,
    Workers,
    WorkerState,
)
from app.messages.to_worker import Batch, Check, Order, ToWorker
from models.cascade import Cascade
from models.paca import Paca
from models.schedule import CRITERIA, REDUCERS, UNPRUNED, Architecture, Method, Pruning, Stages
from models.transforms import InputSpec
from tests.app.fakes import MODEL

# Ids are counted up for as long as a front end runs; 64 bits are for ever.
IDS = st.integers(0, 2**64 - 1)
RATIOS = st.floats(0, 1, exclude_min=True)
SECONDS = st.floats(-1e6, 1e6)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
SIZES = st.integers(1, 2000)

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
DECODERS: list[Callable[[bytes], object]] = [to_dispatcher.decode, to_worker.decode, to_front_end.decode]
PREDICTIONS = st.builds(
    Prediction,
    classes=st.lists(st.integers(0, 21_840), max_size=5),
    scores=st.lists(st.floats(0, 1), max_size=5),
    kept_counts=st.lists(SIZES, max_size=4).map(tuple),
    keep_ratio=RATIOS,
    compute=RATIOS,
    runs=st.integers(1, 2),
    kept=st.lists(st.binary(max_size=9), max_size=3).map(tuple),
    logits=st.none() | st.binary(max_size=9),
)
FAULTS = st.sampled_from(["out-of-memory", "worker-fault", "no-number"])
LOAD_FAULTS = st.sampled_from(get_args(LoadFault))
TO_DISPATCHER: st.SearchStrategy[ToDispatcher] = st.one_of(
    st.builds(FrontEnd, index=SIZES),
    st.builds(Cancel, ids=st.lists(IDS, max_size=3)),
    st.builds(
        Done,
        batch=IDS,
        results=st.lists(PREDICTIONS | FAULTS, max_size=3),
        seconds=SECONDS,
        at_once=SIZES,
        memory_was_short=st.booleans(),
    ),
    st.builds(Checked, hold=IDS, label=st.none() | SIZES),
    st.just(Alive()),
    st.builds(LoadModel, id=IDS, name=TEXTS),
    st.builds(UnloadModel, id=IDS, name=TEXTS),
    st.builds(ModelLeft, name=TEXTS),
    st.builds(ModelUnloaded, name=TEXTS),
    st.builds(ModelNotLoaded, name=TEXTS, fault=LOAD_FAULTS, words=TEXTS),
)
TO_FRONT_END: st.SearchStrategy[ToFrontEnd] = st.one_of(
    st.builds(
        Repository,
        models=st.lists(
            st.builds(ModelEntry, name=TEXTS, state=st.sampled_from(get_args(ModelState)), reason=TEXTS),
            max_size=3,
        ),
    ),
    st.builds(
        ModelChanged,
        id=IDS,
        fault=st.none() | st.sampled_from(["busy", "default", "no-worker", "worker-lost", "differs"]),
        words=TEXTS,
    ),
    st.builds(
        Outcomes,
        answers=st.lists(
            st.builds(
                Answer,
                id=IDS,
                prediction=PREDICTIONS,
                queue_s=SECONDS,
                compute_s=SECONDS,
                lowered=st.sampled_from([None, "brown-out", "deadline"]),
            ),
            max_size=3,
        ),
        refusals=st.lists(
            st.builds(
                Refuse,
                id=IDS,
                reason=st.sampled_from(["not-ready", "queue-full", "deadline-passed"]) | FAULTS,
                retry_after_s=st.none() | SECONDS,
            ),
            max_size=3,
        ),
    ),
    st.builds(
        Workers,
        workers=st.lists(
            st.builds(WorkerState, name=TEXTS, device=TEXTS, ready=st.booleans(), images=SIZES), max_size=3
        ),
    ),
    st.builds(
        Load,
        work_s=st.dictionaries(st.sampled_from(["high", "normal", "batch"]), SECONDS),
        callers=st.lists(st.tuples(TEXTS, st.just("high"), SECONDS), max_size=3).map(tuple),
        free_in_s=st.lists(SECONDS, min_size=1, max_size=3),
        seen=IDS,
    ),
)


@given(TO_DISPATCHER)
def test_what_the_dispatcher_is_told_comes_through_unchanged(message: ToDispatcher) -> None:
    """Every message is read as it was written."""
    assert to_dispatcher.decode(to_dispatcher.encode(message)) == message


@given(TO_FRONT_END)
def test_what_a_front_end_is_told_comes_through_unchanged(message: ToFrontEnd) -> None:
    """Every message is read as it was written."""
    assert to_front_end.decode(to_front_end.encode(message)) == message


@given(
    pruning=PRUNINGS,
    margin=st.none() | st.floats(0, 1),
    of_ask=st.fixed_dictionaries(
        {"top_k": st.integers(1, 1000), "kept_patches": st.booleans(), "logits": st.booleans()}
    ),
    rest=st.fixed_dictionaries(
        {"id": IDS, "slot": SIZES, "size": SIZES, "deadline_s": SECONDS, "caller": TEXTS}
    ),
    hold=st.none() | IDS,
)
def test_what_is_asked_of_an_image_comes_through_unchanged(
    pruning: dict[str, Any],
    margin: float | None,
    of_ask: dict[str, Any],
    rest: dict[str, Any],
    hold: int | None,
) -> None:
    """To the dispatcher, and from there to a worker."""
    ask = Ask(pruning=Pruning(**pruning), margin=None if "keep_mass" in pruning else margin, **of_ask)
    submit = Submit([Record(ask=ask, **rest)])
    assert to_dispatcher.decode(to_dispatcher.encode(submit)) == submit
    orders: list[ToWorker] = [Batch(3, 2, 17, [Order(5, ask, hold)]), Check(7)]
    for order in orders:
        assert to_worker.decode(to_worker.encode(order)) == order


def test_a_worker_introduces_itself() -> None:
    """With its model, its limits and what it measured."""
    hello = Worker("worker-3", (Held(MODEL, (Measured(2, Work(3, 1.25), 0.5),)),), Limits(70, 4, 2))
    assert to_dispatcher.decode(to_dispatcher.encode(hello)) == hello


def test_a_worker_that_has_measured_nothing_is_no_message() -> None:
    """Nothing could be predicted of it."""
    with pytest.raises(msgspec.DecodeError):
        to_dispatcher.decode(to_dispatcher.encode(Worker("worker-3", (Held(MODEL, ()),), Limits(70, 4, 2))))


@given(
    sizes=st.lists(SIZES, min_size=8, max_size=8),
    blocks=st.sets(st.integers(0, 47), max_size=5),
    floats=st.lists(st.floats(0, 1), min_size=7, max_size=7),
    labels=st.lists(TEXTS, max_size=5),
    words=st.tuples(TEXTS, TEXTS, TEXTS),
    cascade=CASCADES,
    paca=st.none() | st.builds(Paca, st.sampled_from([(0,), (1, 3)]), st.integers(1, 99)),
    static=st.integers(0, 9),
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
    paca: Paca | None,
    static: int,
    choices: Any,
) -> None:
    """Models carry everything a front end must know of the model, nested records included."""
    depth, dim, mlp_dim, rows, columns, prefix, patch_inputs, classes = sizes
    mean, std, share = tuple(floats[:3]), tuple(floats[3:6]), floats[6]
    criterion, reducer, attention_rows, interpolation, crop = choices
    name, device, dtype = words
    info = ModelInfo(
        name=name,
        labels=tuple(labels),
        input=InputSpec((rows, columns), mean, std, interpolation, crop, share),
        architecture=Architecture(
            depth, dim, mlp_dim, (rows, columns), prefix, patch_inputs, classes, paca, static
        ),
        method=Method(Stages(tuple(sorted(blocks)), attention_rows), criterion, reducer),
        cascade=None if cascade is None else Cascade(**cascade),
        patch_size=(prefix, classes),
        patch_stride=(columns, depth),
        device=device,
        dtype=dtype,
    )
    told = Models([info])
    assert to_front_end.decode(to_front_end.encode(told)) == told


def test_models_that_differ_in_their_device_alone_serve_alike() -> None:
    """Workers with one model on several devices stand behind one queue."""
    other = msgspec.structs.replace(MODEL, device="cuda:1")
    assert MODEL.serves_as(other)
    assert not MODEL.serves_as(msgspec.structs.replace(other, labels=("a",)))


@given(st.binary(max_size=60))
def test_random_bytes_are_no_message(frame: bytes) -> None:
    """Noise raises DecodeError everywhere, and nothing else."""
    for decode in DECODERS:
        with pytest.raises(msgspec.DecodeError):
            decode(frame)


@given(JSON_LIKE)
def test_other_msgpack_is_no_message(value: object) -> None:
    """Sound msgpack of any other shape raises DecodeError everywhere."""
    frame = msgspec.msgpack.encode(value)
    for decode in DECODERS:
        with pytest.raises(msgspec.DecodeError):
            decode(frame)


def test_each_reads_only_its_own_messages() -> None:
    """The dispatcher takes no Check, a worker no Cancel, a front end neither."""
    for data in (to_worker.encode(Check(1)), to_dispatcher.encode(Cancel([1]))):
        with pytest.raises(msgspec.DecodeError):
            to_front_end.decode(data)
    with pytest.raises(msgspec.DecodeError):
        to_dispatcher.decode(to_worker.encode(Check(1)))
    with pytest.raises(msgspec.DecodeError):
        to_worker.decode(to_dispatcher.encode(Cancel([1])))


PRUNING = {"keep_ratio": 0.7, "criterion": "variance", "reducer": "drop", "seed": 0, "keep_mass": None}
ASK: dict[str, Any] = {
    "pruning": PRUNING,
    "top_k": 5,
    "margin": 0.5,
    "kept_patches": False,
    "logits": False,
    "min_keep_ratio": None,
}
RECORD: dict[str, Any] = {
    "id": 1,
    "slot": 3,
    "size": 2205,
    "ask": ASK,
    "deadline_s": 30.0,
    "own_deadline": False,
    "caller": "",
    "priority": "normal",
}


def written(**changes: Any) -> bytes:
    """A Submit of one record, with these fields of the record, the ask or the pruning changed."""
    ask = {name: changes.get(name, value) for name, value in ASK.items()}
    record = {name: changes.get(name, value) for name, value in RECORD.items()}
    record["ask"] = changes.get("ask", list(ask.values()))
    return msgspec.msgpack.encode({"type": "Submit", "records": [list(record.values())]})


@pytest.mark.parametrize(
    "change",
    [
        {"id": "1"},
        {"slot": -1},
        {"ask": None},
        {"pruning": None},
        {"pruning": {"keep_ratio": 0.0}},
        {"pruning": {"keep_ratio": -0.5}},
        {"pruning": {"keep_ratio": 1.0001}},
        {"pruning": {"keep_ratio": float("nan")}},
        {"pruning": {"keep_ratio": "0.5"}},
        {"pruning": {"criterion": "entropy"}},
        {"pruning": {"reducer": "blend"}},
        {"pruning": {"seed": -1}},
        {"pruning": {"seed": 2**63}},
        {"pruning": {"keep_mass": 0.0}},
        {"pruning": {"keep_mass": float("nan")}},
        {"pruning": {"keep_mass": 0.5, "keep_ratio": 0.5}},
        {"pruning": {"keep_mass": 0.5, "reducer": "merge"}},
        {"pruning": {"keep_mass": 0.5, "reducer": "pool"}},
        {"pruning": {"keep_mass": 0.5}, "margin": 0.5},
        {"margin": -0.1},
        {"margin": 1.1},
        {"margin": float("nan")},
        {"margin": 0.5, "min_keep_ratio": 0.5},
        {"margin": None, "min_keep_ratio": 0.8},
        {"margin": None, "min_keep_ratio": 0.0},
        {"top_k": -1},
        {"kept_patches": 1},
        {"deadline_s": "soon"},
        {"deadline_s": float("nan")},
        {"priority": "highest"},
    ],
    ids=str,
)
def test_a_record_out_of_range_is_no_message(change: dict[str, Any]) -> None:
    """The dispatcher reads no record that its scheduler or a worker could not work with."""
    with pytest.raises(msgspec.DecodeError):
        to_dispatcher.decode(written(**change))


def test_a_sound_record_is_read() -> None:
    """The form that the cases above spoil is itself sound."""
    assert isinstance(to_dispatcher.decode(written()), Submit)
    assert isinstance(to_dispatcher.decode(written(margin=None, min_keep_ratio=0.5)), Submit)


@pytest.mark.parametrize("pruning", [{"keep_mass": 0.5}, {"keep_ratio": 0.5, "reducer": "merge"}], ids=str)
def test_a_sound_pruning_is_read(pruning: dict[str, Any]) -> None:
    """The prunings that the cases above put together wrongly are sound apart."""
    message = to_dispatcher.decode(written(pruning=pruning, margin=None))
    assert isinstance(message, Submit)
    assert message.records[0].ask.pruning == Pruning(**pruning)


@pytest.mark.parametrize("threads", [0, -1])
def test_a_batch_out_of_range_is_no_message(threads: int) -> None:
    """A worker computes something, on some thread."""
    order = Order(1, Ask(UNPRUNED, 1))
    for batch in (Batch(1, threads, 1, [order]), Batch(1, 1, 1, [])):
        with pytest.raises(msgspec.DecodeError):
            to_worker.decode(to_worker.encode(batch))
