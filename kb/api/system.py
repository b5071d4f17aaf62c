"""Routes about the process: health, and the doctor."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy import text

from kb import doctor
from kb.api.deps import CallerDep, ResourcesDep, get_resources, query_flag
from kb.db import reading

router = APIRouter(tags=["system"])


@router.get("/health/live")
def live() -> dict[str, str]:
    """The process runs."""
    return {"status": "ok"}


@router.get("/health/ready")
def ready(request: Request) -> JSONResponse:
    """The process can serve: the database answers and no shutdown has begun."""
    if getattr(request.app.state, "stopping", False):
        return JSONResponse({"status": "stopping"}, status_code=503)
    with reading(get_resources(request).sessions) as session:
        session.execute(text("SELECT 1"))
    return JSONResponse({"status": "ok"})


@router.post("/v1/doctor")
def run_doctor(request: Request, caller: CallerDep, resources: ResourcesDep) -> dict[str, Any]:
    """Compare database, index and files; with `?repair=true` heal what differs.

    `?deep=true` also compares vectors, terms, texts and the bytes of files.
    """
    caller.needs_whole_workspace("the doctor")
    report = doctor.examine(
        resources, repair=query_flag(request, "repair"), deep=query_flag(request, "deep")
    )
    resources.jobs.run_jobs()
    return report.shape()
