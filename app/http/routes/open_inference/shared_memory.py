"""/v2/systemsharedmemory: regions of shared memory that a client on this machine registers, in the terms of
Triton's shared-memory extension (docs/protocol/extension_shared_memory.md of its server).

CUDA shared memory is not supported, but the requests that clients send about it before they use system shared
memory are answered.
"""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field, ValidationError

from app.errors import InvalidValue
from app.http.bodies.body import read_body
from app.http.bodies.content import JSON, BodyLimits
from app.http.callers import key_name_of
from app.http.paths import (
    CUDA_SHARED_MEMORY_STATUS,
    CUDA_SHARED_MEMORY_UNREGISTER,
    SHARED_MEMORY_STATUS,
    SHARED_MEMORY_UNREGISTER,
    SYSTEM_REGIONS,
)
from app.http.regions.access import regions_for
from app.http.regions.table import Region, Regions
from app.http.routes.open_inference.tensors import parsed
from app.http.routes.plain_errors import errors
from app.inference.option_layers import said
from app.wrong_values import short

LONGEST_NAME = 255
_MOST = 2**63 - 1

RegionName = Annotated[str, Path(description="The region's name.", examples=["images"])]


class RegionRequest(BaseModel):
    """The part of a shared memory object that is to be a region."""

    key: str = Field(description="Name of the shared memory, as in shm_open.", examples=["/images"])
    offset: int = Field(0, ge=0, le=_MOST, description="Where the region begins in it, in bytes.")
    byte_size: int = Field(ge=1, le=_MOST, description="Bytes of the region.", examples=[150528])


class RegionStatus(RegionRequest):
    """A region that is registered."""

    name: str = Field(description="The region's name.", examples=["images"])


class NoCudaRegion(BaseModel):
    """Regions on GPUs, of which there are none."""


_ERRORS = errors(400, 403, 404, 408, 413, 422, 503)
_BODY = {
    "requestBody": {
        "required": True,
        "content": {JSON: {"schema": {"$ref": f"#/components/schemas/{RegionRequest.__name__}"}}},
    }
}


def shared_memory_router(regions: Regions | None, limits: BodyLimits) -> APIRouter:
    """The routes. Without ``regions``, they answer that shared memory is not enabled."""
    router = APIRouter(tags=["open inference protocol"])

    async def status_of(request: Request, name: str | None = None) -> list[RegionStatus]:
        table, owner = regions_for(regions, request.scope), key_name_of(request.scope)
        found = table.of(owner) if name is None else [table.find(owner, name)]
        return [
            RegionStatus(name=each.name, key=each.key, offset=each.offset, byte_size=each.byte_size)
            for each in found
        ]

    async def forget(request: Request, name: str | None = None) -> Response:
        table = regions_for(regions, request.scope)
        # Another front end may hold the lock.
        await asyncio.to_thread(table.unregister, key_name_of(request.scope), name)
        return Response()

    @router.get(
        SHARED_MEMORY_STATUS.path,
        operation_id="v2_system_shared_memory_status",
        summary="The caller's regions of shared memory",
        responses=_ERRORS,
    )
    async def status(request: Request) -> list[RegionStatus]:
        return await status_of(request)

    @router.get(
        SYSTEM_REGIONS + "/region/{region_name}/status",
        operation_id="v2_system_shared_memory_region_status",
        summary="One of the caller's regions of shared memory",
        responses=_ERRORS,
    )
    async def region_status(request: Request, region_name: RegionName) -> list[RegionStatus]:
        return await status_of(request, region_name)

    @router.post(
        SYSTEM_REGIONS + "/region/{region_name}/register",
        operation_id="v2_system_shared_memory_register",
        summary="Register a region of shared memory",
        response_class=Response,
        responses={200: {"description": "The region is registered."}, **_ERRORS},
        openapi_extra=_BODY,
    )
    async def register(request: Request, region_name: RegionName) -> Response:
        """Infer requests of the same caller can name it then, whichever HTTP process they come to."""
        table = regions_for(regions, request.scope)
        asked = await _read(request, limits)
        check_region_name(region_name)
        region = Region(key_name_of(request.scope), region_name, asked.key, asked.offset, asked.byte_size)
        await asyncio.to_thread(table.register, region)
        return Response()

    @router.post(
        SHARED_MEMORY_UNREGISTER.path,
        operation_id="v2_system_shared_memory_unregister_all",
        summary="Unregister all of the caller's regions",
        response_class=Response,
        responses={200: {"description": "No regions are registered any longer."}, **_ERRORS},
    )
    async def unregister_all(request: Request) -> Response:
        return await forget(request)

    @router.post(
        SYSTEM_REGIONS + "/region/{region_name}/unregister",
        operation_id="v2_system_shared_memory_unregister",
        summary="Unregister a region",
        response_class=Response,
        responses={200: {"description": "The region is no longer registered."}, **_ERRORS},
    )
    async def unregister(request: Request, region_name: RegionName) -> Response:
        return await forget(request, region_name)

    @router.get(
        CUDA_SHARED_MEMORY_STATUS.path,
        operation_id="v2_cuda_shared_memory_status",
        summary="Always empty: there is no CUDA shared memory",
        responses=_ERRORS,
    )
    async def cuda_status(request: Request) -> list[NoCudaRegion]:
        regions_for(regions, request.scope)
        return []

    @router.post(
        CUDA_SHARED_MEMORY_UNREGISTER.path,
        operation_id="v2_cuda_shared_memory_unregister_all",
        summary="Does nothing: there is no CUDA shared memory",
        response_class=Response,
        responses={200: {"description": "There are none."}, **_ERRORS},
    )
    async def cuda_unregister_all(request: Request) -> Response:
        regions_for(regions, request.scope)
        return Response()

    return router


async def _read(request: Request, limits: BodyLimits) -> RegionRequest:
    document = parsed(await read_body(request, limits), None)
    try:
        return RegionRequest.model_validate(document)
    except ValidationError as error:
        raise InvalidValue(said(error, RegionRequest)) from error


def check_region_name(name: str) -> str:
    """The name, where a region can have it. Raises InvalidValue."""
    if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME or "/" in name:
        raise InvalidValue(
            f"the region's name {short.repr(name)} must be of 1 to {LONGEST_NAME} printable characters, "
            "without a slash"
        )
    return name
