"""Where the demo's site is served, and whether it answers."""

import socket
from contextlib import closing
from urllib.error import URLError
from urllib.request import urlopen

HOST = "127.0.0.1"


def free_port(wanted: int) -> int:
    """Return the port asked for if it is free, else another."""
    for port in (wanted, 0):
        with closing(socket.socket()) as probe:
            # As the server itself will do: what an earlier demo left closing does not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise OSError(f"no free port on {HOST}")


def answers(url: str) -> bool:
    """Return whether a page is there."""
    try:
        with urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False
