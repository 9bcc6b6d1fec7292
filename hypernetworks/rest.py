"""What all REST routes share: who may call, how a body is read, how an error is told. The only module of the core that imports FastAPI.

It works with FastAPI from 0.94, which A1111 has: no model of pydantic's stands here, whose versions differ. FastAPI reads and parses a
declared body before it asks any dependency (fastapi/routing.py, get_request_handler); here a body is read by a dependency of its
own, behind the guards, and no further than its limit.
"""
from __future__ import annotations

import json
import logging
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.requests import ClientDisconnect

from . import errors
from .bounded_json import json_value
from .errors import BodyRefused, BodyTooLarge, ConfigError, DatasetError, HypernetworkError

LARGEST_JSON = 1 << 20  # bytes
STATUS = {
    errors.AccessRefused: 403,
    errors.NotThere: 404,
    errors.HostBusy: 409,
    errors.NameTaken: 409,
    errors.BodyTooLarge: 413,
    errors.ConfigError: 422,
    errors.NameRefused: 422,
}  # 400 for all others
INSIDE = "An error inside the program; its log has the details."
log = logging.getLogger(__name__)

Guard = Callable[..., Any]
"""A FastAPI dependency that raises HTTPException for who may not call."""


class Answer(JSONResponse):
    """JSON that any value of ours fits in: file names may hold halves of characters, and a loss may be no number."""

    def render(self, content: Any) -> bytes:
        return json.dumps(_finite(content), allow_nan=False, separators=(",", ":")).encode()


class Routes:
    """Builds a router, each of whose routes has the guards and tells errors as {"error": class, "detail": sentence}.

    `sentence` makes the text that a client sees out of an error. Handlers are plain functions, which FastAPI runs in threads.
    """

    def __init__(self, prefix: str, guards: Sequence[Guard], sentence: Callable[[HypernetworkError], str]) -> None:
        self.router = APIRouter(
            prefix=prefix,
            tags=["hypernetworks"],
            dependencies=[Depends(guard) for guard in guards],
            route_class=_route_class(sentence),
            default_response_class=Answer,
        )

    def get(self, path: str, handler: Callable[..., Any]) -> None:
        """Adds a GET route. The handler's parameters are those of the path and the query; it gives plain values, or a PNG's bytes."""

        @wraps(handler)
        def endpoint(**parameters: Any) -> Any:
            found = handler(**parameters)
            return _png(found) if isinstance(found, bytes) else found

        self._add("GET", path, endpoint)

    def post(self, path: str, handler: Callable[..., Any], schema: Mapping[str, Any] | None = None, largest: int | None = None) -> None:
        """Adds a POST route. With the JSON schema of a body the handler takes the body, without one the parameters of the path.

        A body has at most `largest` bytes, `LARGEST_JSON` by default.

        Either way the request has to say that it is JSON: a page of another site cannot send that unless the web UI allows its origin.
        """
        if schema is None:
            self._add("POST", path, handler, dependencies=[Depends(json_reader())])
            return

        the_body = Depends(json_reader(largest))

        def endpoint(body: dict = the_body) -> Any:
            return handler(body)

        endpoint.__name__, endpoint.__doc__ = handler.__name__, handler.__doc__
        self._add("POST", path, endpoint, openapi_extra=_body({"application/json": schema}))

    def upload(self, path: str, handler: Callable[[str, Path, str], Any], limits: Mapping[str, int], folder: Callable[[], Path]) -> None:
        """Adds a POST route whose body goes to a temporary file in `folder()`: `handler(content type, file, name)`.

        `limits` are the content types that are taken, each with its largest size in bytes.
        """

        async def endpoint(request: Request, name: str = "pictures") -> Any:
            """Writes what comes in, and hands it on once it is whole."""
            kind = _content_type(request)
            if kind not in limits:
                raise BodyRefused(f"The body has to be of the type {' or '.join(limits)}; this one is {kind or 'of none'}.")
            try:
                with TemporaryDirectory(dir=await run_in_threadpool(folder), prefix="received-") as temporary:
                    file = Path(temporary) / "body"
                    with file.open("wb") as target:
                        async for block in _blocks(request, limits[kind]):
                            await run_in_threadpool(target.write, block)
                    return await run_in_threadpool(handler, kind, file, name)
            except OSError as error:
                raise DatasetError(f"What was sent cannot be stored: {error.strerror or 'the disk refuses'}.") from error

        endpoint.__name__, endpoint.__doc__ = handler.__name__, handler.__doc__
        self._add("POST", path, endpoint, openapi_extra=_body({kind: {"format": "binary", "type": "string"} for kind in limits}))

    def _add(self, method: str, path: str, endpoint: Callable[..., Any], **about: Any) -> None:
        self.router.add_api_route(path, endpoint, methods=[method], response_model=None, **about)


def basic_auth(users: Mapping[str, str]) -> Guard:
    """A guard that lets in who sends one of these names with its password, as A1111's --api-auth does (modules/api/api.py, `auth`)."""

    what_is_sent = Depends(HTTPBasic(auto_error=False))

    def guard(credentials: HTTPBasicCredentials | None = what_is_sent) -> None:
        sent = (credentials.username.encode(), credentials.password.encode()) if credentials else ()
        # all pairs are compared, each in constant time: how long it takes says nothing about who there is
        matches = [
            secrets.compare_digest(sent[0], name.encode()) & secrets.compare_digest(sent[1], password.encode())
            for name, password in users.items() if sent
        ]
        if not any(matches):
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

    return guard


def json_reader(largest: int | None = None) -> Callable[..., Any]:
    """A dependency that gives the object in a JSON body of at most `largest` bytes; an empty body is an empty object.

    It raises `BodyRefused` and `BodyTooLarge`.
    """

    async def read_json(request: Request) -> dict[str, Any]:
        if _content_type(request) != "application/json":
            raise BodyRefused("The body has to be JSON, and the request has to say so: Content-Type: application/json.")
        data = b"".join([block async for block in _blocks(request, largest or LARGEST_JSON)])
        try:
            value = json_value(data or b"{}")
        except (ValueError, RecursionError):
            raise BodyRefused("The body is no valid JSON.") from None
        if not isinstance(value, dict):
            raise BodyRefused("The body has to be a JSON object, with names and values.")
        return value

    return read_json


async def _blocks(request: Request, limit: int):
    """The body's parts as they come. Raises `BodyTooLarge` as soon as it is known."""
    announced, size = request.headers.get("content-length", ""), 0
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise BodyTooLarge(f"The body is larger than the {limit} bytes that are taken.")
    try:
        async for block in request.stream():
            size += len(block)
            if size > limit:
                raise BodyTooLarge(f"The body is larger than the {limit} bytes that are taken.")
            yield block
    except ClientDisconnect:
        raise BodyRefused("The connection ended before the body did.") from None


def _route_class(sentence: Callable[[HypernetworkError], str]) -> type[APIRoute]:
    """Routes that answer errors themselves: a web UI's own handlers would send a bug's text, with paths of the machine in it."""

    class Route(APIRoute):
        def get_route_handler(self) -> Callable[..., Any]:
            """FastAPI's own, with every error made an answer."""
            handle = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    return await handle(request)
                except HypernetworkError as error:
                    return _refusal(type(error), sentence(error))
                except RequestValidationError as error:
                    return _refusal(ConfigError, " ".join(f"{wrong['loc'][-1]}: {wrong['msg']}." for wrong in error.errors()))
                except AnyHTTPException:
                    raise  # a guard's
                except Exception:
                    log.exception("%s %s failed", request.method, request.url.path)
                    return Answer({"error": "InternalError", "detail": INSIDE}, 500)

            return answer

    return Route


def _refusal(kind: type[HypernetworkError], sentence: str) -> Answer:
    status = next((status for known, status in STATUS.items() if issubclass(kind, known)), 400)
    return Answer({"error": kind.__name__, "detail": sentence}, status)


def _png(data: bytes) -> Response:
    return Response(data, media_type="image/png", headers={"X-Content-Type-Options": "nosniff"})


def _body(schemas: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {kind: {"schema": dict(schema)} for kind, schema in schemas.items()}}}


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _finite(value: Any) -> Any:
    """The same without numbers that JSON cannot hold."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    return [_finite(member) for member in value] if isinstance(value, (list, tuple)) else value
