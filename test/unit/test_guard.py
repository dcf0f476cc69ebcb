"""The guard process: off when its owner dies, stops, hangs or loses its backend, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from edge_resnet.exceptions import BackendError
from edge_resnet.hardware import guard
from edge_resnet.hardware.actuators import SimulatedActuator
from edge_resnet.hardware.guard import GuardedActuator, drive_off, watch
from edge_resnet.tools import actuator_off


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline, f'{what} did not come'
        time.sleep(0.005)


OWNER = """
import os, sys, time
from pathlib import Path
from edge_resnet.hardware.guard import GuardedActuator
actuator = GuardedActuator('simulated', gpio_pin=17, state_file=Path(sys.argv[1]))
actuator.write(True)
print(actuator._guard.pid, flush=True)
while True:
    actuator.write(True)
    time.sleep(0.02)
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / 'actuator.state'


@pytest.fixture
def actuator(file):
    actuator = GuardedActuator('simulated', gpio_pin=17, state_file=file)
    yield actuator
    actuator.close()


@pytest.fixture
def owner(file):
    """(process that keeps the actuator on, pid of its guard)."""
    process = subprocess.Popen([sys.executable, '-c', OWNER, str(file)], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    assert is_listening(pid), 'before it could be on'
    yield process, pid
    process.kill()
    process.wait()
    process.stdout.close()


def is_listening(pid: int) -> bool:
    """Whether the guard has set up its signals."""
    with open(f'/proc/{pid}/status') as status:
        ignored = next(int(line.split()[1], 16) for line in status if line.startswith('SigIgn:'))
    return bool(ignored >> (signal.SIGTERM - 1) & 1)


def gone(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat') as stat:
            return stat.read().rpartition(')')[2].split()[0] == 'Z'
    except FileNotFoundError:
        return True


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_off_when_the_owner_dies_and_then_the_guard_ends(owner, file, number):
    process, pid = owner
    assert file.read_text() == '1\n'
    process.send_signal(number)
    wait_for(lambda: file.read_text() == '0\n', 'OFF')
    wait_for(lambda: gone(pid), 'the end of the guard')


def test_off_while_the_owner_is_stopped_and_it_may_go_on_afterwards(owner, file):
    process, _ = owner
    process.send_signal(signal.SIGSTOP)
    wait_for(lambda: file.read_text() == '0\n', 'OFF')
    time.sleep(0.1)
    assert process.poll() is None, 'nothing but the file was needed'
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: file.read_text() == '1\n', 'the owner writing again')
    process.kill()
    wait_for(lambda: file.read_text() == '0\n', 'OFF')


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_guard_stays_until_its_owner_is_gone(owner, file, number):
    """Ctrl-C goes to every process of the terminal, systemd signals the whole unit: the guard has to outlast its owner."""
    process, pid = owner
    os.kill(pid, number)
    time.sleep(0.1)
    assert not gone(pid)
    process.kill()
    wait_for(lambda: file.read_text() == '0\n', 'OFF')


def test_closing_leaves_no_guard(file):
    actuator = GuardedActuator('simulated', gpio_pin=17, state_file=file)
    actuator.write(True)
    pid = actuator._guard.pid
    actuator.close()
    actuator.close()
    assert file.read_text() == '0\n'
    assert gone(pid)


def test_while_off_nothing_is_said_and_nobody_wakes(actuator):
    theirs = actuator._socket
    sent = []
    actuator._socket = Recorder(theirs, sent)
    for _ in range(100):
        actuator.write(False)
    assert not sent
    actuator.write(True)
    for _ in range(100):
        actuator.write(True)
    assert sent[0] == b'1'
    assert len(sent) < 20, 'beats, not writes'
    actuator.write(False)
    actuator.write(False)
    assert sent[-2:] == [b'1', b'0']


class Recorder:
    """A socket that remembers what was sent."""

    def __init__(self, inner: socket.socket, sent: list[bytes]) -> None:
        self._inner, self._sent = inner, sent

    def send(self, data: bytes) -> int:
        self._sent.append(data)
        return self._inner.send(data)

    def close(self) -> None:
        self._inner.close()


def test_without_a_guard_it_does_not_go_on_and_a_new_one_comes(actuator, file):
    actuator.write(True)
    os.kill(actuator._guard.pid, signal.SIGKILL)
    actuator._guard.wait()
    time.sleep(2 * guard.BEAT_S)
    with pytest.raises(BackendError, match='the guard process does not listen'):
        actuator.write(True)
    assert file.read_text() == '0\n'
    first = actuator._guard.pid
    actuator._started_at = time.monotonic()
    with pytest.raises(BackendError, match='guard process is gone'):
        actuator.write(True)
    assert file.read_text() == '0\n'
    actuator._started_at -= guard.RESTART_S
    actuator.write(True)
    assert file.read_text() == '1\n'
    assert actuator._guard.pid != first


@pytest.mark.parametrize('command', ['exit 3', 'exec sleep 60'])
def test_without_a_guard_nothing_starts(file, monkeypatch, tmp_path, command):
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\n{command}\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(python))
    monkeypatch.setattr(guard, 'START_S', 0.3)
    with pytest.raises(BackendError, match=r'the guard process did not start within 0\.3 s'):
        GuardedActuator('simulated', gpio_pin=17, state_file=file)
    assert file.read_text() == '0\n'


def test_a_guard_that_can_not_be_started_is_a_backends_error(actuator, file, monkeypatch):
    """Also when a new one is needed while it is on: the caller is told, and it is off."""
    actuator.write(True)
    os.kill(actuator._guard.pid, signal.SIGKILL)
    actuator._guard.wait()
    actuator._dismiss()
    actuator._started_at = 0.0
    monkeypatch.setattr(subprocess, 'Popen', lambda *_, **__: (_ for _ in ()).throw(BlockingIOError(11, 'Resource temporarily unavailable')))
    with pytest.raises(BackendError, match=r'the guard process does not start \(Resource temporarily unavailable\)'):
        actuator.write(True)
    assert file.read_text() == '0\n'
    assert actuator._socket is None


def test_a_guard_that_is_stopped_is_noticed(actuator, file, monkeypatch):
    monkeypatch.setattr(guard, 'BEAT_S', 0.0)
    actuator.write(True)
    os.kill(actuator._guard.pid, signal.SIGSTOP)
    with pytest.raises(BackendError, match='does not listen'):
        all(actuator.write(True) is None for _ in range(1000))  # at one beat in 50 ms these are 50 s
    assert file.read_text() == '0\n'
    wait_for(lambda: gone(actuator._guard.pid), 'the end of the guard')


@pytest.mark.parametrize('fails', ['on', 'both'])
def test_a_backend_that_fails_is_off_by_itself_or_by_the_guard(actuator, file, monkeypatch, fails):
    actuator.write(True)
    wait_for(lambda: is_listening(actuator._guard.pid), 'the guard')
    inner = actuator._actuator

    def write(on: bool) -> None:
        if on or fails == 'both':
            raise BackendError('backend: broken')
        SimulatedActuator.write(inner, on)

    monkeypatch.setattr(inner, 'write', write)
    monkeypatch.setattr(os, 'kill', lambda *_: None)
    with pytest.raises(BackendError, match='backend: broken'):
        actuator.write(True)
    wait_for(lambda: file.read_text() == '0\n', 'OFF')
    monkeypatch.undo()


def test_silence_counts_only_while_on(monkeypatch):
    monkeypatch.setattr(guard, 'SILENCE_S', 0.05)
    ours, theirs = socket.socketpair()
    offs = []
    thread = threading.Thread(target=watch, args=(theirs, lambda: offs.append(1)))
    thread.start()
    ours.send(b'0')
    time.sleep(0.15)
    assert not offs
    ours.send(b'1')
    wait_for(lambda: offs, 'OFF after silence')
    time.sleep(0.15)
    assert len(offs) == 1, 'once'
    ours.close()
    thread.join(5.0)
    assert len(offs) == 1, 'it was off already'
    theirs.close()


def test_what_was_said_last_counts(monkeypatch):
    offs = []
    for said, expected in ((b'10', 0), (b'01', 1), (b'', 0)):
        ours, theirs = socket.socketpair()
        ours.send(said) if said else None
        ours.close()
        watch(theirs, lambda: offs.append(1))
        theirs.close()
        assert len(offs) == expected
        offs.clear()


@pytest.fixture
def taken(monkeypatch):
    """A GPIO line that process ``holder`` holds, as the kernel has it: one user at a time."""
    holder = subprocess.Popen(['sleep', '60'])

    class Line:
        def close(self) -> None:
            pass

    def open_line(*_, **__):
        if holder.poll() is None:
            raise BackendError("gpio actuator: pin 17: 'GPIO busy'")
        return Line()

    monkeypatch.setattr(guard, 'open_actuator', open_line)
    yield holder
    holder.kill()
    holder.wait()


def test_a_stopped_owner_is_killed_for_its_line(taken, monkeypatch, file):
    taken.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(os, 'getppid', lambda: taken.pid)
    drive_off('gpio', gpio_pin=17, state_file=file, owner=taken.pid, patience_s=10.0)
    assert taken.wait() == -signal.SIGKILL


def test_another_process_than_the_owner_is_left_alone(taken, file):
    with pytest.raises(BackendError, match='GPIO busy'):
        drive_off('gpio', gpio_pin=17, state_file=file, owner=taken.pid, patience_s=0.1)
    assert taken.poll() is None


def test_mock_pins_in_the_guard(tmp_path):
    """The guard's own main on gpiozero's mock pins: owner dead while on."""
    pytest.importorskip('gpiozero')
    ours, theirs = socket.socketpair()
    ours.send(b'1')
    ours.close()
    done = subprocess.run([sys.executable, '-m', 'edge_resnet.hardware.guard', 'gpio', '17', '1', '-', '1'], stdin=theirs.fileno(),
                          env={**os.environ, 'GPIOZERO_PIN_FACTORY': 'mock'}, capture_output=True, text=True, timeout=30)
    theirs.close()
    assert (done.returncode, done.stderr) == (0, '')


def test_a_guard_that_can_do_nothing_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(guard, 'GIVE_UP_S', 0.0)
    monkeypatch.setattr(guard, 'watch', lambda beats, off: off())
    monkeypatch.setattr(guard.drive_off, '__kwdefaults__', {**guard.drive_off.__kwdefaults__, 'patience_s': 0.0})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        monkeypatch.setattr(sys, 'stdin', theirs.makefile('r'))
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            assert guard.main(['simulated', '17', '1', str(tmp_path), '0']) == 1
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    assert 'guard: the actuator may be on: simulated actuator: ' in capsys.readouterr().err


# actuator_off, for launch files and systemd

def test_actuator_off_takes_the_nodes_arguments(tmp_path, capsys):
    file, params = tmp_path / 'brake', tmp_path / 'params.yaml'
    params.write_text(f'/**/actuator: {{ros__parameters: {{state_file: {file}}}}}\n/**/camera: {{ros__parameters: {{state_file: /no}}}}\n')
    file.write_text('1\n')
    assert actuator_off.main(['--ros-args', '--params-file', str(params), '-p', 'camera:state_file:=/no', '-r', '__ns:=/robot1']) == 0
    assert file.read_text() == '0\n'
    assert str(file) in capsys.readouterr().out
    other = tmp_path / 'other'
    other.write_text('1\n')
    assert actuator_off.main(['--ros-args', '--params-file', str(params), '-p', f'actuator:state_file:={other}']) == 0
    assert other.read_text() == '0\n'


def test_actuator_off_of_a_namespaced_default(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    assert actuator_off.main(['--ros-args', '-r', '__ns:=/robot1']) == 0
    assert (tmp_path / f'edge_resnet_{os.getuid()}' / '7_robot1.actuator.state').read_text() == '0\n'


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--params-file', '/no/such.yaml'], 'params_file /no/such.yaml: '), (['-p', 'backend:=relay'], "backend is 'relay'"),
    (['-p', 'gpio_pin:=99', '-p', 'backend:=gpio'], 'gpio_pin is 99'), (['-p', 'gpio_pin:=many'], 'many'), (['-p', 'gpio_pin:=[17]'], 'list')])
def test_actuator_off_says_when_it_can_not(arguments, message, capsys):
    assert actuator_off.main(['--ros-args', *arguments]) == 1
    assert message in capsys.readouterr().err
