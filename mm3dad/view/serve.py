"""What the browser view needs before it starts: viser, silent, and a port that is free."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mm3dad.errors import ConfigError, MissingPackageError

LOOPBACK = "127.0.0.1"
OLDEST = (1, 1)  # of viser: the first with clicks on the scene


def load_viser() -> Any:
    """Import viser.

    Raises:
        MissingPackageError: it is not installed, or too old.
    """
    wanted = ".".join(map(str, OLDEST))
    try:
        import viser
    except ImportError as error:
        raise MissingPackageError(f"the browser view needs viser {wanted} or newer; pip install 'mm3dad[view]'") from error
    found = tuple(int(part) for part in viser.__version__.split(".")[:2])
    if found < OLDEST:
        raise MissingPackageError(
            f"the browser view needs viser {wanted} or newer, found {viser.__version__}; pip install -U 'mm3dad[view]'"
        )
    return viser


def check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be had: viser would go on to the next one in silence, and the address just told would be wrong.

    Raises:
        ConfigError: out of range, in use, or not allowed.
    """
    if not 1 <= port <= 65535:
        raise ConfigError(f"a port lies between 1 and 65535, got {port}; 8080 is the default")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"port {port} of {host} cannot be used ({error.strerror}); choose another with --port") from error


@contextmanager
def hushed() -> Iterator[None]:
    """Keep viser's own box and farewell from stdout, where the address is told in one line."""
    import rich

    console = rich.get_console()
    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
