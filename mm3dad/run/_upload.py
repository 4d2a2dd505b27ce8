"""What stands before the service: no body is read without the token, and none beyond the limit."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _TooLargeError(Exception):
    """More came than the limit allows; leaves the application, which is not to see the rest."""


class Guard:
    """ASGI middleware: 401 without the token, 413 for a body over the limit, announced or counted as it comes.

    Args:
        app: what it protects.
        is_allowed: says whether the Authorization header (bytes) is the right one.
        max_bytes: of a body.
    """

    def __init__(self, app: Any, is_allowed: Callable[[bytes], bool], max_bytes: int) -> None:
        self._app, self._is_allowed, self._max_bytes = app, is_allowed, max_bytes

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if scope["path"] != "/health" and not self._is_allowed(headers.get(b"authorization", b"")):
            await _answer(send, 401, "wrong or missing token; send the header Authorization: Bearer TOKEN")
            return
        announced = headers.get(b"content-length", b"0")
        refusal = f"the request is larger than the {self._max_bytes} bytes that are taken; send smaller files"
        if not announced.isdigit() or int(announced) > self._max_bytes:
            await _answer(send, 413, refusal)
            return
        received = 0
        is_over = has_started = False

        async def count() -> Message:
            nonlocal received, is_over
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                is_over = True
                raise _TooLargeError
            return message

        async def pass_on(message: Message) -> None:
            nonlocal has_started
            if is_over:  # the application makes an error of its own of the broken body
                return
            has_started = True
            await send(message)

        with contextlib.suppress(_TooLargeError):
            await self._app(scope, count, pass_on)
        if is_over and not has_started:
            await _answer(send, 413, refusal)


async def _answer(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
