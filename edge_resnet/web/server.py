"""Serves the page to any number of viewers from a thread of its own, and takes their orders.

Each viewer is told the newest only: who reads slowly misses some, and nobody waits for it. An order is a POST with the token
that this process drew for its page. One to arm names the newest message that its page had, and is refused when that is old.
A name in the Host header that is not this machine's is refused, so that no other site can reach it by pointing a name of its
own here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import math
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from edge_resnet.exceptions import BackendError

STATIC = Path(__file__).parent / 'static'
FILES = {'style.css': 'text/css', 'page.js': 'text/javascript'}
MAX_VIEWERS = 16
STUCK_S = 10.0  # a viewer that takes nothing for so long is let go
SEND_BUFFER = 64 * 1024
ANSWER_S = 2.0  # for an order to be carried out
SEEN_S = 3.0  # at most, since what was seen when arming: an order may wait in a connection that hangs
HEADERS = {
    'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
                               "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer', 'Cross-Origin-Resource-Policy': 'same-origin',
}


def find_plotly() -> Path:
    """The plotting library as PyPI's or Debian's package of plotly.py brings it, which is not imported; BackendError without one."""
    spec = find_spec('plotly')
    for path in (*(Path(place, 'package_data', 'plotly.min.js') for place in (spec and spec.submodule_search_locations) or ()),
                 Path('/usr/share/python3-plotly/plotly.js')):
        if path.is_file():
            return path
    raise BackendError('the dashboard needs plotly: "sudo apt install python3-plotly" or "pip install plotly"')


def is_loopback(host: str) -> bool:
    return host == 'localhost' or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_own_name(host_header: str) -> bool:
    """Whether a Host header names this machine: an address, which can't be rebound, localhost or the machine's own name."""
    found = re.fullmatch(r'(?:\[([0-9a-f:]+)\]|([^:\[\]]+))(?::\d+)?', host_header.lower())
    name = (found[1] or found[2]).rstrip('.') if found else ''
    own = socket.gethostname().lower().split('.')[0]
    return _is_address(name) or name in ('localhost', own, f'{own}.local', socket.gethostname().lower())


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Not what was no HTTP: the answer is 400, and whoever sends it could fill the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


class Viewer:
    """A slot of one for the newest message."""

    def __init__(self) -> None:
        self._newest: bytes | None = None
        self._filled = asyncio.Event()

    def offer(self, message: bytes) -> None:
        self._newest = message
        self._filled.set()

    async def take(self) -> bytes:
        await self._filled.wait()
        self._filled.clear()
        assert self._newest is not None
        return self._newest


class DashboardServer:
    """``history`` gives what a page needs at its start. ``order`` carries out one of ``orders`` and answers with a text, or with an
    EdgeResnetError when that can't be; both are called on the server's thread."""

    orders = ('stop', 'arm', 'disarm')

    def __init__(self, host: str, port: int, history: Callable[[], Any], order: Callable[[str], Future[str]], plotly: Path) -> None:
        self._host, self._port, self._history, self._order, self._plotly = host, port, history, order, plotly
        self._token, self._session = secrets.token_urlsafe(32), secrets.token_hex(4)
        self._page = (STATIC / 'index.html').read_text(encoding='utf-8').replace('{{token}}', self._token)
        self._viewers: set[Viewer] = set()
        self._tasks: set[asyncio.Task] = set()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name='dashboard server', daemon=True)

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    def start(self) -> str:
        """The URL it listens on; BackendError when it can't."""
        self._thread.start()
        try:
            port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10.0)
        except OSError as error:
            self._end()
            raise BackendError(f"can't listen on {self._host} port {self._port}: {error.strerror}") from error
        return f'http://{f"[{self._host}]" if ":" in self._host else self._host}:{port}/'

    def push(self, content: dict[str, Any]) -> None:
        """Tell all viewers; ``content`` becomes JSON once."""
        message = b'data: ' + json.dumps({'session': self._session, 'sent': time.monotonic(), **content}, separators=(',', ':')).encode() + b'\n\n'
        with contextlib.suppress(RuntimeError):  # closed meanwhile, by the thread that ends the process
            self._loop.call_soon_threadsafe(self._offer, message)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10.0)
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def _offer(self, message: bytes) -> None:
        for viewer in self._viewers:
            viewer.offer(message)

    async def _listen(self) -> int:
        app = web.Application(middlewares=[self._guard], client_max_size=1024)
        app.on_response_prepare.append(self._add_headers)
        app.router.add_get('/', self._get_page)
        app.router.add_get('/plotly.js', self._get_plotly)
        app.router.add_get('/events', self._get_events, allow_head=False)
        app.router.add_get('/history', self._get_history)
        for name in FILES:
            app.router.add_get(f'/{name}', self._get_file)
        for name in self.orders:
            app.router.add_post(f'/{name}', self._post_order)
        logging.getLogger('aiohttp.server').addFilter(_worth_a_line)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        return self._runner.addresses[0][1]

    async def _close(self) -> None:
        self._closing = True  # before Python 3.12 wait_for may swallow a cancellation
        for task in self._tasks:
            task.cancel()
        await self._runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        if not is_own_name(request.headers.get('Host', '')):
            raise web.HTTPMisdirectedRequest(text='this name is not known to be of this machine: use its IP address\n')
        token = request.headers.get('X-Token', '').encode('utf-8', 'replace')
        if request.method == 'POST' and not secrets.compare_digest(token, self._token.encode()):
            raise web.HTTPForbidden(text='the page is of an earlier run: reload it\n')
        return await handler(request)

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(HEADERS)
        response.headers.setdefault('Cache-Control', 'no-store')

    async def _get_page(self, request: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type='text/html')

    async def _get_file(self, request: web.Request) -> web.Response:
        name = request.path[1:]
        return web.Response(text=(STATIC / name).read_text(encoding='utf-8'), content_type=FILES[name])

    async def _get_plotly(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(self._plotly, headers={'Content-Type': 'text/javascript; charset=utf-8', 'Cache-Control': 'no-cache'})

    async def _get_history(self, request: web.Request) -> web.Response:
        return web.json_response(self._history())

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events, until the viewer leaves or takes nothing any more."""
        if len(self._viewers) >= MAX_VIEWERS:
            raise web.HTTPServiceUnavailable(text=f'{MAX_VIEWERS} pages are open already\n')
        response = web.StreamResponse(headers={'Content-Type': 'text/event-stream', 'X-Accel-Buffering': 'no'})
        await response.prepare(request)
        viewer, task = Viewer(), asyncio.current_task()
        assert task is not None
        self._viewers.add(viewer)
        self._tasks.add(task)
        if request.transport is not None:  # or the kernel keeps megabytes of the past for a slow one
            request.transport.get_extra_info('socket').setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        try:
            await response.write(b'retry: 1000\n\n')
            while not self._closing:
                await asyncio.wait_for(response.write(await viewer.take()), STUCK_S)
        except asyncio.TimeoutError:
            if request.transport is not None:
                request.transport.abort()
        except ConnectionError:
            pass
        finally:
            self._viewers.discard(viewer)
            self._tasks.discard(task)
        return response

    async def _post_order(self, request: web.Request) -> web.Response:
        name = request.path[1:]
        if name == 'arm' and not 0 <= time.monotonic() - _seconds(request.headers.get('X-Seen', '')) <= SEEN_S:
            return web.Response(text=f'not armed: what the page showed then is more than {SEEN_S:g} s old', status=409)
        try:
            text = await asyncio.wait_for(asyncio.wrap_future(self._order(name)), ANSWER_S)
        except asyncio.TimeoutError:
            return web.Response(text='the actuator does not answer', status=504)
        except BackendError as error:
            return web.Response(text=str(error), status=503)
        return web.Response(text=text)
