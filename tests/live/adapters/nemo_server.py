"""A real resources server of NeMo Gym's wheel, by its own class and data, on the newer Python that has the package.

    python nemo_server.py example_session_state_mgmt:PORT blackjack:PORT      # prints the folder of each one's data

The package's `ng_run` starts the same application beside a Ray cluster and a head server, which are not wanted here.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

import uvicorn
from nemo_gym.base_resources_server import SimpleResourcesServer
from nemo_gym.config_types import BaseServerConfig
from nemo_gym.server_utils import ServerClient
from omegaconf import OmegaConf


def server_class(module: Any) -> Any:
    """The class of resources servers that a module defines."""
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, SimpleResourcesServer) and value.__module__ == module.__name__:
            return value
    raise LookupError(f"{module.__name__} has no resources server")


def application(name: str, port: int) -> Any:
    module = importlib.import_module(f"resources_servers.{name}.app")
    made = server_class(module)
    place: dict[str, Any] = {"host": "127.0.0.1", "port": port}
    config = made.model_fields["config"].annotation(**place, entrypoint="app.py", name=name, domain="other")
    client = ServerClient(head_server_config=BaseServerConfig(**place), global_config_dict=OmegaConf.create({}))
    server = made(config=config, server_client=client)
    app = server.setup_webserver()
    server.setup_liveness(app)
    server.setup_exception_middleware(app)
    print(Path(str(module.__file__)).parent / "data", flush=True)
    return app


async def main(*named: str) -> None:
    """Serves each; importing the package takes longer than all else, so one process has them all."""
    ports = {name: int(port) for name, port in (each.split(":") for each in named)}
    servers = [
        uvicorn.Server(uvicorn.Config(application(name, port), port=port, log_level="warning", timeout_keep_alive=30))
        for name, port in ports.items()
    ]
    await asyncio.gather(*(server.serve() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
