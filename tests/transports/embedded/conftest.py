"""One model, and engines and clients that are closed after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette

from transports.embedded import MODEL_DIR
from transports.embedded.engine import Engine
from transports.embedded.model import Model


@pytest.fixture(scope="session")
def model() -> Model:
    """The shipped weights."""
    return Model.load(MODEL_DIR)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    """A running engine with an empty cache."""
    engine = Engine(model)
    engine.start()
    yield engine
    engine.close()


@asynccontextmanager
async def client_of(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app in this process, whose engine is closed at the end."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://embedded") as client:
            yield client
    finally:
        app.state.engine.close()
