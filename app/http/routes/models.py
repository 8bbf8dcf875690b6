"""GET /v1/models: the served models, and the options for each."""

from typing import Any

from fastapi import APIRouter

from app.http.dispatch import Dispatch
from app.http.model_choice import no_model_yet
from app.http.paths import MODELS
from app.http.problems import PROBLEMS
from app.http.schemas import CascadeDescription, InputInfo, ModelDescription, ModelList
from app.inference.asks import default_keep_ratio
from app.inference.expected import default_deadline_ms
from app.messages.model import ModelInfo
from app.settings.settings import Settings
from models.cascade import Cascade
from models.schedule import WITHOUT_CRITERION


def models_router(settings: Settings, dispatch: Dispatch) -> APIRouter:
    """The route, describing the models of these workers."""
    router = APIRouter(tags=["models"])
    not_ready: dict[int | str, dict[str, Any]] = {503: PROBLEMS[503]}

    @router.get(
        MODELS.path,
        operation_id="list_models",
        responses=not_ready,
        summary="Models, their labels and their defaults",
    )
    async def models() -> ModelList:
        if not dispatch.models:  # the models are also known while a worker is being replaced
            raise no_model_yet()
        return ModelList(models=[described(settings, model) for model in dispatch.models.values()])

    return router


def described(settings: Settings, model: ModelInfo) -> ModelDescription:
    """The description of the model and its options."""
    height, width = model.input.size
    method = settings.method_of(model.name, model.method)
    return ModelDescription(
        name=model.name,
        labels=list(model.labels),
        input=InputInfo(
            height=height,
            width=width,
            interpolation=model.input.interpolation,
            crop=model.input.crop,
            crop_share=model.input.crop_share,
        ),
        embedding_size=model.features,
        patches=model.architecture.patches,
        grid=model.architecture.grid,
        patch_size=model.patch_size,
        patch_stride=model.patch_stride,
        stages=[block + 1 for block in method.stages.blocks],
        evenly=method.stages.evenly,
        static_blocks=model.architecture.static_numbers,
        cluster_blocks=model.architecture.cluster_numbers,
        criteria=list(model.criteria),
        reducers=list(model.reducers),
        default_keep_ratio=default_keep_ratio(settings, model),
        default_criterion=method.criterion,
        default_reducer=method.reducer,
        default_deadline_ms=default_deadline_ms(settings, model.name),
        scores=model.scores,
        cascade=None if model.cascade is None else _described(model.cascade),
        device=model.device,
        dtype=model.dtype,
    )


def _described(cascade: Cascade) -> CascadeDescription:
    return CascadeDescription(
        keep_ratio=cascade.keep_ratio,
        criterion=None if cascade.reducer in WITHOUT_CRITERION else cascade.criterion,
        reducer=cascade.reducer,
        agreement=cascade.agreement,
        compute=cascade.compute,
    )
