"""The least that a FastAPI service can do: the same body back. What every cost is measured against."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import Response

app = FastAPI()


@app.post("/v1/score")
async def echo(request: Request) -> Response:
    """Return the body as it came."""
    return Response(await request.body(), media_type="application/json")
