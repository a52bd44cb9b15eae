"""Servers that the fault tests own and may kill."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from example.services import AMQP_CONNECTION_START, AMQP_GREETING, EmbeddedPostgres, ServiceError
from example.services.probes import ask
from example.services.server import Server

CONTROL_TIMEOUT_S = 60.0

# Debian's commands on PATH change to the user of the machine's node; these do not.
DEBIAN_SCRIPTS = "/usr/lib/rabbitmq/bin"


class RoomyPostgres(EmbeddedPostgres):
    """PostgreSQL with room for hundreds of connections."""

    _settings = EmbeddedPostgres._settings | {"max_connections": "400"}


def rabbitmq_scripts() -> str | None:
    """Return the folder of `rabbitmq-server` and `rabbitmqctl`, if every program of a node is installed."""
    found = shutil.which("rabbitmq-server", path=f"{DEBIAN_SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    return str(Path(found).parent) if found and shutil.which("epmd") else None


class Epmd(Server):
    """The name server of Erlang nodes, for one node; the machine's own is not used."""

    name = "epmd"

    def __init__(self) -> None:
        super().__init__()
        self.port = free_port()

    def _command(self) -> Sequence[str]:
        return [shutil.which("epmd") or "epmd", "-port", str(self.port), "-address", "127.0.0.1"]

    def _answers(self) -> bool:
        # NAMES_REQ of the EPMD protocol, answered with the port first.
        answer = ask("127.0.0.1", self.port, b"\x00\x01n", wanted=4)
        return int.from_bytes(answer) == self.port


class RabbitmqNode(Server):
    """A RabbitMQ node on free local ports."""

    name = "rabbitmq"

    def __init__(self) -> None:
        super().__init__()
        self._epmd = Epmd()
        self._stack = ExitStack()
        self._port, self._distribution_port = free_port(), free_port()
        self._scripts = ""

    @property
    def url(self) -> str:
        """The URL for clients."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}"

    def restart(self) -> None:
        """Stop the node regularly, and start it with the data on its disk."""
        self._end(self._stop_signal())
        self.start()

    def stop(self) -> None:
        """Stop the node and its name server."""
        with self._stack:
            super().stop()

    def close_connections(self, reason: str) -> None:
        """Close the connections of all clients, by the node."""
        self._control("close_all_connections", reason)

    def reset(self) -> None:
        """Delete all that the node has stored: queues, messages and users."""
        for command in ("stop_app", "reset", "start_app"):
            self._control(command)

    def _control(self, *command: str) -> None:
        subprocess.run(
            [f"{self._scripts}/rabbitmqctl", "-n", self._node, *command],
            env=self._environment(),
            check=True,
            capture_output=True,
            timeout=CONTROL_TIMEOUT_S,
        )

    @property
    def _node(self) -> str:
        return f"{self.directory.name}@localhost"

    def _create(self) -> None:
        scripts = rabbitmq_scripts()
        if scripts is None:
            raise ServiceError("no rabbitmq-server and epmd on PATH")
        self._scripts = scripts
        self._stack.enter_context(self._epmd)
        (self.directory / "plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        own = {
            "HOME": self.directory,  # for the cookie with which nodes and tools authenticate
            "ERL_EPMD_PORT": self._epmd.port,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self._port,
            "RABBITMQ_DIST_PORT": self._distribution_port,
            "RABBITMQ_MNESIA_BASE": self.directory / "mnesia",
            "RABBITMQ_PID_FILE": self.directory / "pid",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.directory / "plugins",
            "RABBITMQ_LOG_BASE": self.directory,
            "RABBITMQ_LOGS": "-",
            # No configuration, not even that of the machine's node.
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": self.directory / "none",
            # The script then replaces itself with the node, so that signals reach the node.
            "RABBITMQ_ALLOW_INPUT": "true",
            # No console, and no busy waiting while idle.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-noinput +sbwt none +sbwtdcpu none +sbwtdio none",
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        return kept | {name: str(value) for name, value in own.items()}

    def _command(self) -> Sequence[str]:
        settings = [f"{name}={value}" for name, value in self._environment().items()]
        return ["env", "-i", *settings, f"{self._scripts}/rabbitmq-server"]

    def _answers(self) -> bool:
        answer = ask("127.0.0.1", self._port, AMQP_GREETING, wanted=11)
        return answer[7:11] == AMQP_CONNECTION_START


def free_port() -> int:
    """Return a free port."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
