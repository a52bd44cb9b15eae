"""Servers of the tests' own, which they may kill."""

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

# Debian's commands on PATH change to a user that owns the node of the machine; these do not.
DEBIAN_SCRIPTS = "/usr/lib/rabbitmq/bin"


class RoomyPostgres(EmbeddedPostgres):
    """PostgreSQL with room for hundreds of connections."""

    _settings = EmbeddedPostgres._settings | {"max_connections": "400"}


def rabbitmq_scripts() -> str | None:
    """Return the folder of `rabbitmq-server` and `rabbitmqctl`, if all that a node needs is there."""
    found = shutil.which("rabbitmq-server", path=f"{DEBIAN_SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    return str(Path(found).parent) if found and shutil.which("epmd") else None


class Epmd(Server):
    """The directory of Erlang nodes, for one node alone: that of the machine is not touched."""

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
        """Where clients connect."""
        return f"amqp://guest:guest@127.0.0.1:{self._port}"

    def restart(self) -> None:
        """Stop the node in an orderly way, and start it with what it had on disk."""
        self._end(self._stop_signal())
        self.start()

    def stop(self) -> None:
        """Stop the node and what it needed."""
        with self._stack:
            super().stop()

    def close_connections(self, reason: str) -> None:
        """Let the node close the connections of all its clients."""
        subprocess.run(
            [f"{self._scripts}/rabbitmqctl", "-n", self._node, "close_all_connections", reason],
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
            "HOME": self.directory,  # for the cookie that nodes and tools know each other by
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
            # Neither the configuration of the machine's node nor another one.
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_CONFIG_FILE": self.directory / "none",
            # The script then becomes the node instead of watching over it, so that signals reach it.
            "RABBITMQ_ALLOW_INPUT": "true",
            # No console, and no spinning while idle.
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
    """Return a port that nobody listens to."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
