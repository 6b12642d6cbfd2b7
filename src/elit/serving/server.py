"""The server: OpenAI's images interface over the workers, with budgets, deadlines and previews on top.

What comes from outside is data: bodies are read up to a size and within a time, checked field by field, and no path in them
is ever opened. A mistake is answered in one sentence, in OpenAI's form of an error.
"""

import asyncio
import base64
import hmac
import io
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MaxLen
from PIL import Image
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from elit.errors import UserError
from elit.imprint import Imprint, Seed, png
from elit.records import Fraction, Share, parse_json, record
from elit.serving.messages import Done, Facts, Pixels, Refused, Settings, Stepped, Wish
from elit.serving.metrics import Metrics, text
from elit.serving.pool import Launch, Pool, Ticket, launched

PAGE = Path(__file__).parent / "page"
PAGE_FILES = {"page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
AT_ONCE = 2**15  # bytes of pictures that are written at once, in about a millisecond
GONE = 499  # who asked has gone: no answer is read


@record
class Body:
    """What a request for images may hold: OpenAI's fields, and ours. What OpenAI's mean for other models is refused."""

    prompt: Annotated[str, MaxLen(4000)]
    n: Annotated[int, Ge(1)] = 1
    size: str | None = "auto"
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    quality: Literal["low", "medium", "high", "auto"] | None = "auto"
    model: str | None = None
    user: str | None = None
    output_format: Literal["png"] | None = "png"
    stream: bool | None = False
    partial_images: Annotated[int, Ge(0), Le(10_000)] | None = 0
    budget: Fraction | None = None
    deadline_ms: Annotated[float, Gt(0), Le(1e9)] | None = None
    seed: Seed | None = None
    steps: Annotated[int, Ge(1)] | None = None
    sampler: Annotated[str, MaxLen(40)] = "euler"
    guidance_scale: Annotated[float, Ge(-100), Le(100)] | None = None
    guidance_interval: tuple[Share, Share] = (0.0, 1.0)
    guidance_budget: Fraction | None = None
    autoguidance: bool = False
    alone: bool = False
    attention: bool = False


class Mistake(Exception):  # noqa: N818 - it is one of whoever asks
    """A request that is answered with an error."""

    def __init__(self, status: int, why: str, retry_ms: float | None = None) -> None:
        super().__init__(why)
        self.status, self.why, self.retry_ms = status, why, retry_ms

    def answer(self) -> JSONResponse:
        """OpenAI's form of an error."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        error = {"message": self.why, "type": kind, "param": None, "code": None}
        headers = {} if self.retry_ms is None else {"retry-after": str(max(1, -(-int(self.retry_ms) // 1000)))}
        return JSONResponse({"error": error}, self.status, headers)


@dataclass
class Server:
    """A pool of workers, and what is known of it."""

    settings: Settings
    pool: Pool
    metrics: Metrics
    facts: Facts | None = None

    def check(self, body: Body) -> None:
        """Raises Mistake for more than the limits allow."""
        settings = self.settings
        if body.n > settings.max_n:
            raise Mistake(400, f"n is {body.n}; one request makes at most {settings.max_n} images")
        if body.steps is not None and body.steps > settings.max_steps:
            raise Mistake(400, f"steps is {body.steps}; one request takes at most {settings.max_steps}")
        if body.budget is not None and body.budget < settings.min_budget - 1e-6:
            raise Mistake(400, f"budget is {body.budget:g}; this server gives at least {settings.min_budget:g}")

    def wish(self, body: Body, client: str) -> Wish:
        """A body as workers are told of it."""
        return Wish(
            id=next(self.pool.numbers),
            client=client,
            received=1000 * time.monotonic(),
            prompt=body.prompt,
            n=body.n,
            size=body.size or "auto",
            seed=secrets.randbits(31) if body.seed is None else body.seed,
            sampler=body.sampler,
            steps=body.steps,
            budget=body.budget,
            quality=body.quality or "auto",
            deadline_ms=body.deadline_ms,
            guidance_scale=body.guidance_scale,
            guidance_interval=body.guidance_interval,
            guidance_budget=body.guidance_budget,
            autoguidance=body.autoguidance,
            alone=body.alone,
            attention=body.attention,
            previews=body.partial_images or 0 if body.stream else 0,
        )


def application(
    settings: Settings,
    hosts: tuple[str, ...] = (),
    launch: Launch = launched,
    measure: Callable[[], Awaitable[bytes]] | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Starlette:
    """The application, whose workers live as long as it does.

    hosts: names by which alone it may be asked, for a server on the loopback: pages of other sites cannot reach it under
    names of their own. Any, if there are none. launch: starts a worker's process. measure: what /metrics answers, where this
    is one application of several; its own metrics if not given. headers: of all answers, beside the usual ones.
    """
    metrics = Metrics()
    server = Server(settings, Pool(settings, metrics.notice, launch), metrics)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with suppress(UserError):  # kept as `pool.broken`: whoever runs this ends it
            server.facts, _ = await asyncio.gather(server.pool.start(), asyncio.to_thread(made_ready))
        yield
        await server.pool.stop()

    async def mistaken(request: Request, error: Exception) -> Response:
        assert isinstance(error, Mistake)
        metrics.answered(error.status)
        return error.answer()

    app = Starlette(
        routes=[*routes(server, measure), *(PAGE_ROUTES if settings.page else ())],
        middleware=[Middleware(Guarded, hosts=hosts, headers={**HEADERS, **headers})],
        exception_handlers={Mistake: mistaken, HTTPException: nowhere},
        lifespan=lifespan,
    )
    app.state.server = server
    return app


def routes(server: Server, measure: Callable[[], Awaitable[bytes]] | None) -> list[Route]:
    """What may be asked of a server, and what answers."""
    settings, metrics = server.settings, server.metrics

    async def healthz(request: Request) -> Response:
        ready = server.pool.is_ready
        return JSONResponse({"status": "ok" if ready else "not ready"}, 200 if ready else 503)

    async def measured(request: Request) -> Response:
        authorised(request, settings)
        samples = text(metrics.families(server.pool)) if measure is None else await measure()
        return Response(samples, media_type=CONTENT_TYPE_LATEST)

    async def models(request: Request) -> Response:
        authorised(request, settings)
        listed = {"id": "elit", "object": "model", "created": 0, "owned_by": "elit"}
        return JSONResponse({"object": "list", "data": [{**listed, "elit": asdict(known(server))}]})

    async def generations(request: Request) -> Response:
        client = authorised(request, settings)
        body = parsed(await read_body(request, settings))
        server.check(body)
        ticket = server.pool.submit(server.wish(body, client))
        cancel = partial(server.pool.cancel, ticket.wish.id)
        with on_failure(cancel):
            answer = await heard(request, ticket)
            if body.stream:
                return Stream(events(server, ticket, body, answer), cancel)
        assert isinstance(answer, Done)  # others tell of no previews
        metrics.answered(200)
        return JSONResponse(await written(answer, body, known(server)))

    return [
        Route("/v1/images/generations", generations, methods=["POST"]),
        Route("/v1/models", models),
        Route("/healthz", healthz),
        Route("/metrics", measured),
    ]


async def nowhere(request: Request, error: Exception) -> Response:
    """What is answered where nothing is, and to other methods than those that are answered there."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": error.detail}, error.status_code, error.headers)


async def page(request: Request) -> Response:
    return FileResponse(PAGE / "index.html", media_type="text/html")


async def page_file(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in PAGE_FILES:
        raise Mistake(404, "there is no such file")
    return FileResponse(PAGE / name, media_type=PAGE_FILES[name])


PAGE_ROUTES = (Route("/", page), Route("/page/{name}", page_file))


class Guarded:
    """Answers with headers that keep other sites out, and only those who ask for one of the names of this host."""

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], headers: Mapping[str, str]) -> None:
        self.app, self.hosts = app, hosts
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        asked = dict(scope["headers"]).get(b"host", b"").decode("latin1")
        name = asked.rpartition(":")[0] if asked.rpartition(":")[2].isdigit() else asked
        if self.hosts and name.strip("[]").lower() not in self.hosts:
            mistake = Mistake(421, f"this server answers to {', '.join(self.hosts)}, not to {asked[:80]!r}")
            await mistake.answer()(scope, receive, send)
            return

        async def sending(message: object) -> None:
            if isinstance(message, dict) and message["type"] == "http.response.start":
                message["headers"] += self.headers
            await send(message)  # type: ignore[arg-type]

        await self.app(scope, receive, sending)


def known(server: Server) -> Facts:
    assert server.facts is not None  # the application has started
    return server.facts


def authorised(request: Request, settings: Settings) -> str:
    """Who asks: the number of the key that is given, or the address. Raises Mistake where a key is due."""
    if not settings.keys:
        return request.client.host if request.client else ""
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    matches = [hmac.compare_digest(given, key.encode()) for key in settings.keys]
    if not any(matches):
        raise Mistake(401, "give an API key of this server, as Authorization: Bearer KEY")
    return f"key {matches.index(True)}"


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body, of a type that pages of other sites may not send unasked. Raises Mistake for a large or slow one."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Mistake(415, f"the body is {kind[:80] or 'of no type'}; send application/json")
    too_large = Mistake(413, f"the body is larger than {settings.max_body:,} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > settings.max_body:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(settings.read_s):
            async for chunk in request.stream():
                content += chunk
                if len(content) > settings.max_body:
                    raise too_large
    except TimeoutError:
        raise Mistake(408, f"the body did not arrive within {settings.read_s:g} seconds") from None
    except ClientDisconnect:
        raise Mistake(GONE, "the client has gone") from None
    return bytes(content)


def made_ready() -> None:
    """Loads what the first request would else wait for: the reader of bodies, and the writer of pictures."""
    parsed(b'{"prompt": ""}')
    Image.preinit()


def parsed(content: bytes) -> Body:
    """Raises Mistake, naming the field, for what is no body."""
    try:
        return parse_json(content, Body, "the request")
    except UserError as error:
        raise Mistake(400, str(error)) from error


@contextmanager
def on_failure(undo: Callable[[], None]) -> Iterator[None]:
    """Undoes what was begun where the block fails, or is cancelled."""
    try:
        yield
    except BaseException:
        undo()
        raise


async def heard(request: Request, ticket: Ticket) -> Stepped | Done:
    """What comes next of a request. Raises Mistake where it is refused, and where its client goes meanwhile."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.answers.put_nowait(None)

    watching = asyncio.create_task(gone())
    try:
        answer = await ticket.answers.get()
    finally:
        watching.cancel()
    if answer is None:
        raise Mistake(GONE, "the client has gone")
    if isinstance(answer, Refused):
        raise Mistake(answer.status, answer.why, answer.retry_ms)
    return answer


class Stream(StreamingResponse):
    """A stream of events. `ended` is called when it ends, however that is: a client may go before it has begun."""

    def __init__(self, content: AsyncIterator[str], ended: Callable[[], None]) -> None:
        super().__init__(content, media_type="text/event-stream")
        self.ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.ended()


async def written(done: Done, body: Body, facts: Facts) -> dict[str, object]:
    """The answer, whose pictures are written in a thread of their own where they are many or large: else to hand them over
    takes as long as to write them.
    """
    if done.pixels.nbytes <= AT_ONCE:
        return images(done, body, facts)
    return await asyncio.to_thread(images, done, body, facts)


def images(done: Done, body: Body, facts: Facts) -> dict[str, object]:
    """The answer: OpenAI's fields, and what was granted and spent under `elit`."""
    files = [base64.b64encode(file(done.pixels, done.imprint, i)).decode() for i in range(len(done.pixels))]
    url = body.response_format == "url"
    data = [{"url": f"data:image/png;base64,{text}"} if url else {"b64_json": text} for text in files]
    size = f"{facts.width}x{facts.height}"
    return {"created": int(time.time()), "data": data, "size": size, "output_format": "png", "elit": report(done)}


def report(done: Done) -> Mapping[str, object]:
    """What a request was granted, and what it took."""
    told = {name: value for name, value in vars(done).items() if name not in ("pixels", "id")}
    return {"seed": done.imprint.seed, **told, "imprint": vars(done.imprint)}


def file(pixels: Pixels, imprint: Imprint, index: int) -> bytes:
    """One of a request's images as a PNG file that says how it was drawn."""
    return png(Image.fromarray(pixels[index]), replace(imprint, index=index))


async def events(server: Server, ticket: Ticket, body: Body, first: Stepped | Done) -> AsyncIterator[str]:
    """OpenAI's stream: the pictures so far that the worker tells of, and then the whole answer."""
    answer: Stepped | Done | Refused | None = first
    shown = 0
    while isinstance(answer, Stepped):
        picture = {"b64_json": preview(answer.pixels), "partial_image_index": shown}
        yield event("partial_image", {**picture, "step": answer.step, "steps": answer.steps})
        shown += 1
        answer = await ticket.answers.get()
    if answer is None:
        return
    if isinstance(answer, Refused):
        server.metrics.answered(answer.status)
        yield f"event: error\ndata: {bytes(Mistake(answer.status, answer.why).answer().body).decode()}\n\n"
        return
    server.metrics.answered(200)
    whole = await written(answer, replace(body, response_format="b64_json"), known(server))
    first_image = whole["data"][0]["b64_json"]  # type: ignore[index]
    usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    yield event("completed", {**whole, "b64_json": first_image, "usage": usage})


def preview(pixels: Pixels) -> str:
    """The first image so far, as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels[0]).save(out, format="PNG", compress_level=1)
    return base64.b64encode(out.getvalue()).decode()


def event(kind: str, fields: Mapping[str, object]) -> str:
    """One event of OpenAI's stream."""
    usual = {"type": f"image_generation.{kind}", "created_at": int(time.time()), "background": "opaque"}
    told = {**usual, "output_format": "png", "quality": "auto", "size": "auto", **fields}
    return f"event: image_generation.{kind}\ndata: {json.dumps(told)}\n\n"
