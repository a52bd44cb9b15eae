"""The address of the demo's site, and a check whether the site answers."""

import socket
from contextlib import closing
from urllib.error import URLError
from urllib.request import urlopen

HOST = "127.0.0.1"


def free_port(wanted: int) -> int:
    """Return the wanted port if it is free, or else another."""
    for port in (wanted, 0):
        with closing(socket.socket()) as probe:
            # The server does the same; connections that an earlier demo left closing do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise OSError(f"no free port on {HOST}")


def answers(url: str) -> bool:
    """Return whether the page is served."""
    try:
        with urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False
