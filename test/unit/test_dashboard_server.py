"""The page's server by itself, over real sockets: who is let in, who may give orders, and that nobody waits for a slow viewer."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

pytest.importorskip('aiohttp')

from edge_resnet.exceptions import BackendError
from edge_resnet.web import server as module
from edge_resnet.web.server import MAX_VIEWERS, DashboardServer, find_plotly, is_loopback, is_own_name


class Desk:
    """A server with a record of the orders that reached the robot."""

    def __init__(self, plotly):
        self.orders, self.answer = [], 'armed'
        self.server = DashboardServer('127.0.0.1', 0, lambda: [{'n': 1}], self._order, plotly)
        self.port = int(self.server.start().rstrip('/').rsplit(':', 1)[1])

    def _order(self, name):
        self.orders.append(name)
        done = Future()
        if isinstance(self.answer, Exception):
            done.set_exception(self.answer)
        elif self.answer:
            done.set_result(self.answer)
        return done

    def ask(self, method, path, host='', **headers):
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=10)
        connection.request(method, path, headers={'Host': host or f'127.0.0.1:{self.port}', **headers})
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers

    def token(self):
        return re.search('name="token" content="(.*?)"', self.ask('GET', '/')[1])[1]

    def view(self, receive_buffer=0):
        """A raw socket that asked for the events."""
        viewer = socket.socket()
        if receive_buffer:
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        viewer.settimeout(10)
        viewer.connect(('127.0.0.1', self.port))
        before = self.server.viewers
        viewer.sendall(f'GET /events HTTP/1.1\r\nHost: localhost:{self.port}\r\n\r\n'.encode())
        until(lambda: self.server.viewers == before + 1)
        return viewer


@pytest.fixture
def desk(tmp_path):
    (tmp_path / 'plotly.js').write_text('Plotly = {}')
    desk = Desk(tmp_path / 'plotly.js')
    yield desk
    desk.server.close()


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_until(viewer, text):
    got = b''
    while text not in got:
        got += viewer.recv(65536)
    return got


@pytest.mark.parametrize('sent', [
    pytest.param(b'GET /' + b'a' * 9000 + b' HTTP/1.1\r\nHost: x\r\n\r\n', id='long'),
    pytest.param(b'GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n', id='length')])
def test_what_is_no_http_is_answered_and_fills_no_log(desk, caplog, sent):
    with socket.create_connection(('127.0.0.1', desk.port)) as stream:
        stream.sendall(sent)
        assert read_until(stream, b'\r\n').startswith(b'HTTP/1.0 400')
    assert 'Traceback' not in caplog.text


def test_what_is_there_and_what_is_not(desk):
    assert {path: desk.ask('GET', path)[0] for path in ('/', '/page.js', '/style.css', '/plotly.js', '/history')} == dict.fromkeys(
        ('/', '/page.js', '/style.css', '/plotly.js', '/history'), 200)
    for path in ('/nothing', '/static/', '/static/page.js', '/../server.py', '/%2e%2e/server.py', '/page.js/', '//etc/passwd', '/index.html'):
        assert desk.ask('GET', path)[0] == 404, path
    assert json.loads(desk.ask('GET', '/history')[1]) == [{'n': 1}]


@pytest.mark.parametrize('path', ['/', '/history', '/nothing', '/page.js', '/plotly.js'])
def test_headers_of_every_answer(desk, path):
    headers = desk.ask('GET', path)[2]
    policy = headers['Content-Security-Policy']
    assert "default-src 'none'" in policy
    assert "script-src 'self';" in policy, 'no inline script'
    assert "frame-ancestors 'none'" in policy
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert 'Access-Control-Allow-Origin' not in headers


def test_an_order_needs_post_and_the_token(desk):
    for method in ('GET', 'HEAD', 'PUT', 'DELETE', 'OPTIONS'):
        for order in DashboardServer.orders:
            assert desk.ask(method, f'/{order}', **{'X-Token': desk.token()})[0] in (404, 405)
    assert desk.ask('POST', '/stop')[0] == 403
    assert desk.ask('POST', '/stop', **{'X-Token': desk.token() + 'x'})[0] == 403
    assert desk.ask('POST', '/stop', **{'X-Token': '\xe9'})[0] == 403
    assert desk.ask('POST', '/stop?token=' + desk.token())[0] == 403
    assert desk.ask('POST', '/reboot', **{'X-Token': desk.token()})[0] == 404
    assert desk.orders == []
    assert desk.ask('POST', '/stop', **{'X-Token': desk.token()})[:2] == (200, 'armed')
    assert desk.orders == ['stop']


def test_every_run_has_a_token_of_its_own(desk, tmp_path):
    other = Desk(tmp_path / 'plotly.js')
    assert other.token() != desk.token()
    other.server.close()


def test_an_order_that_fails_says_why(desk, monkeypatch):
    monkeypatch.setattr(module, 'ANSWER_S', 0.1)
    headers = {'X-Token': desk.token()}
    desk.answer = BackendError('there is no actuator node')
    assert desk.ask('POST', '/stop', **headers)[:2] == (503, 'there is no actuator node')
    desk.answer = None
    assert desk.ask('POST', '/disarm', **headers)[:2] == (504, 'the actuator does not answer')


def test_arming_is_refused_by_who_saw_only_what_is_old_and_stopping_never(desk, monkeypatch):
    viewer = desk.view()
    desk.server.push({})
    seen = json.loads(re.search(rb'^data: (.*)$', read_until(viewer, b'}\n\n'), re.M)[1])['sent']
    viewer.close()
    headers, orders = {'X-Token': desk.token()}, []
    for text, waited_s, status in ((f'{seen}', 2.0, 200), (f'{seen}', 4.0, 409), ('', 0.0, 409), ('undefined', 0.0, 409), (f'{seen + 60}', 0.0, 409)):
        monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda waited_s=waited_s: seen + waited_s))
        assert desk.ask('POST', '/arm', **headers, **{'X-Seen': text})[0] == status, text
        assert desk.ask('POST', '/stop', **headers, **{'X-Seen': text})[0] == 200
        orders += ['arm', 'stop'] if status == 200 else ['stop']
    assert desk.orders == orders


def test_a_foreign_host_name_is_refused(desk):
    """A page elsewhere that points its own name here (DNS rebinding) would else have the token."""
    for host in ('evil.example', f'evil.example:{desk.port}', 'localhost.evil.example', '127.0.0.1.evil.example', 'a b', '[::1', ':80'):
        for method, path in (('GET', '/'), ('GET', '/events'), ('POST', '/stop')):
            status, text, _ = desk.ask(method, path, host=host)
            assert (status, 'use its IP address' in text) == (421, True), host
    assert desk.orders == []
    assert desk.ask('GET', '/', host=f'localhost:{desk.port}')[0] == 200


def test_own_names(monkeypatch):
    monkeypatch.setattr(socket, 'gethostname', lambda: 'Pi.lan')
    assert all(map(is_own_name, ('localhost', 'LOCALHOST:80', '127.0.0.1:8080', '[::1]:8080', '192.168.1.7', 'pi:8080', 'pi.local', 'pi.lan')))
    assert not any(map(is_own_name, ('', 'pi.evil', 'pi.local.evil', '[::1]x', 'localhost:', '0x7f.evil')))
    assert [*filter(is_loopback, ('127.0.0.1', '::1', 'localhost', '0.0.0.0', '192.168.1.7', 'pi'))] == ['127.0.0.1', '::1', 'localhost']


def test_several_viewers_get_the_same(desk):
    viewers = [desk.view() for _ in range(4)]
    desk.server.push({'t': 1.5})
    message, = {re.search(rb'^data: (.*)$', read_until(viewer, b'}\n\n'), re.M)[1] for viewer in viewers}
    assert json.loads(message)['t'] == 1.5
    for viewer in viewers:
        viewer.close()
    until(lambda: (desk.server.push({'t': 2}), desk.server.viewers == 0)[1])


def test_no_more_than_so_many_viewers(desk):
    viewers = [desk.view() for _ in range(MAX_VIEWERS)]
    assert desk.ask('GET', '/events')[0] == 503
    assert desk.ask('GET', '/')[0] == 200
    for viewer in viewers:
        viewer.close()


def test_a_slow_viewer_slows_nobody_and_then_gets_the_newest(desk):
    slow, quick = desk.view(receive_buffer=4096), desk.view()
    filling = 'x' * 50_000
    for number in range(200):
        desk.server.push({'number': number, 'filling': filling})
        read_until(quick, b'"number":%d,' % number)
    got = read_until(slow, b'"number":199,')
    assert got.count(b'\ndata: ') < 40, 'it was spared most of them'
    slow.close()
    quick.close()


def test_a_viewer_that_takes_nothing_any_more_is_let_go(desk, monkeypatch):
    monkeypatch.setattr(module, 'STUCK_S', 0.2)
    stuck = desk.view(receive_buffer=4096)
    until(lambda: (desk.server.push({'filling': 'x' * 200_000}), desk.server.viewers == 0)[1])
    stuck.close()


def test_closing_does_not_wait_for_viewers(tmp_path):
    (tmp_path / 'plotly.js').write_text('')
    desk = Desk(tmp_path / 'plotly.js')
    viewer = desk.view()
    begun = time.monotonic()
    desk.server.close()
    assert time.monotonic() - begun < 8.0
    while viewer.recv(65536):  # until its end
        pass
    viewer.close()


def test_a_port_that_is_taken_is_refused_in_one_line(desk, tmp_path):
    with pytest.raises(BackendError, match=rf"^can't listen on 127\.0\.0\.1 port {desk.port}: .+$"):
        DashboardServer('127.0.0.1', desk.port, list, desk._order, tmp_path).start()
    with pytest.raises(BackendError, match=r"^can't listen on nowhere\.invalid port 0: "):
        DashboardServer('nowhere.invalid', 0, list, desk._order, tmp_path).start()


def test_plotly_is_found_or_named(monkeypatch):
    assert find_plotly().stat().st_size > 1_000_000
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    monkeypatch.setattr(module.Path, 'is_file', lambda path: False)
    with pytest.raises(BackendError, match='apt install python3-plotly'):
        find_plotly()
