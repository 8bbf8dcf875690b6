"""Typed client of a TrimViT server: photographs in, labels out, each at its own keep ratio.

from trimvit_client import Client, Options

with Client("http://127.0.0.1:8000") as client:
    answer = client.classify("china.jpg", Options(keep_ratio=0.5))
    print(answer.best.label, answer.best.score, answer.compute)
"""

from trimvit_client.clients import AsyncClient, Client
from trimvit_client.errors import (
    ClientProblem,
    ConnectionFailed,
    DeadlinePassed,
    DeadlineUnmeetable,
    InternalFault,
    InvalidValue,
    NotReady,
    PriorityNotAllowed,
    Problem,
    QueueFull,
    ServerProblem,
    TimedOut,
    TooLarge,
    TrimViTError,
    Unauthorized,
    UndecodableImage,
    UnexpectedAnswer,
    UnreadableImage,
    UnreadableRequest,
    UnsupportedMediaType,
    WorkerLost,
)
from trimvit_client.images import Image, ImageSource
from trimvit_client.options import Criterion, MaskFormat, Options, Priority, Reducer
from trimvit_client.results import (
    Cascade,
    Classification,
    Embedding,
    Input,
    Label,
    Model,
    Patches,
    RepositoryModel,
    StageMask,
    Timings,
)
from trimvit_client.retries import Retries

__all__ = [
    "AsyncClient",
    "Cascade",
    "Classification",
    "Client",
    "ClientProblem",
    "ConnectionFailed",
    "Criterion",
    "DeadlinePassed",
    "DeadlineUnmeetable",
    "Embedding",
    "Image",
    "ImageSource",
    "Input",
    "InternalFault",
    "InvalidValue",
    "Label",
    "MaskFormat",
    "Model",
    "NotReady",
    "Options",
    "Patches",
    "Priority",
    "PriorityNotAllowed",
    "Problem",
    "QueueFull",
    "Reducer",
    "RepositoryModel",
    "Retries",
    "ServerProblem",
    "StageMask",
    "TimedOut",
    "Timings",
    "TooLarge",
    "TrimViTError",
    "Unauthorized",
    "UndecodableImage",
    "UnexpectedAnswer",
    "UnreadableImage",
    "UnreadableRequest",
    "UnsupportedMediaType",
    "WorkerLost",
]
