"""The service: systemd takes the unit, and what the unit relies on is so."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys

import pytest

from edge_resnet.systemd import SystemdNotifier

HANGING = """
import time
from dataclasses import dataclass
from sensor_msgs.msg import Image
from edge_resnet.nodes import inputs, runner
from edge_resnet.nodes.base import ManagedNode
from edge_resnet.nodes.parameters import param

@dataclass(frozen=True)
class Parameters:
    autostart: bool = param(True, 'as ever')

class Hanging(ManagedNode[Parameters]):
    Parameters = Parameters
    def __init__(self):
        super().__init__('hanging')
        self.create_timer(1.5, self.hang, clock=self._steady)
        self.input = inputs.FrameInput(self, Image, 'image', print)
        self.input.start_thread()
    def hang(self):
        if '{where}' == 'executor':
            time.sleep(60)
        self.input._next = lambda: time.sleep(60)

runner.STUCK_S = 0.5
runner.TURN_S = inputs.TURN_S = 0.1
raise SystemExit(runner.run([Hanging]))
"""


@pytest.fixture
def systemd(tmp_path):
    """(a socket that hears what a service says, the environment of that service)"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / 'notify'))
        heard.settimeout(20.0)
        yield heard, {'NOTIFY_SOCKET': str(tmp_path / 'notify'), 'WATCHDOG_USEC': '800000'}


def test_what_is_told(systemd):
    heard, environment = systemd
    notifier = SystemdNotifier(environment)
    notifier.tell('READY=1')
    assert heard.recv(100) == b'READY=1'
    assert notifier.period_s == 0.2, 'four times within WatchdogSec'


@pytest.mark.parametrize('changes', [{'NOTIFY_SOCKET': ''}, {'WATCHDOG_USEC': ''}, {'WATCHDOG_PID': '1'}, {'WATCHDOG_USEC': 'soon'}])
def test_without_a_watchdog_for_us(systemd, changes):
    _, environment = systemd
    notifier = SystemdNotifier({**environment, **changes}, pid=4242)
    assert notifier.period_s is None
    notifier.tell('READY=1')


def test_the_watchdog_is_for_this_process(systemd):
    assert SystemdNotifier({**systemd[1], 'WATCHDOG_PID': '4242'}, pid=4242).period_s == 0.2


def test_an_abstract_socket_and_one_that_is_gone(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f'\0edge_resnet_test_{os.getpid()}')
        SystemdNotifier({'NOTIFY_SOCKET': f'@edge_resnet_test_{os.getpid()}'}).tell('READY=1')
        assert heard.recv(100) == b'READY=1'
    SystemdNotifier({'NOTIFY_SOCKET': str(tmp_path / 'gone')}).tell('READY=1')


@pytest.mark.parametrize('where', ['executor', 'thread of an input'])
def test_the_watchdog_is_fed_only_while_every_executor_and_input_comes_round(systemd, where):
    pytest.importorskip('rclpy')
    heard, environment = systemd
    process = subprocess.Popen([sys.executable, '-c', HANGING.replace('{where}', where)], env={**os.environ, **environment})
    try:
        assert heard.recv(100) == b'READY=1'
        assert heard.recv(100) == b'WATCHDOG=1'
        heard.settimeout(4.0)
        with pytest.raises(TimeoutError):  # it hangs from 1.5 s on, and systemd would end it after WatchdogSec
            all(heard.recv(100) for _ in range(60))
    finally:
        process.kill()
        process.wait()


def test_systemd_takes_the_unit(root):
    if shutil.which('systemd-analyze') is None:
        pytest.skip('systemd-analyze is not installed (package systemd)')
    unit = root / 'config' / 'systemd' / 'edge-resnet.service'
    done = subprocess.run(['systemd-analyze', 'verify', '--man=no', str(unit)], capture_output=True, text=True, timeout=60)
    ours = [line for line in done.stderr.splitlines() if 'edge-resnet' in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def test_the_unit_says_what_safety_needs(root):
    text = (root / 'config' / 'systemd' / 'edge-resnet.service').read_text()
    settings = dict(re.findall(r'^(\w+)=(.*)$', text, re.M))
    assert settings['KillSignal'] == 'SIGINT'
    assert settings['SupplementaryGroups'] == 'gpio video'
    assert 'actuator_off' in settings['ExecStopPost']
    assert (settings['Type'], settings['NotifyAccess']) == ('notify', 'main'), 'the watchdog is fed by the pipeline itself'
    assert int(settings['WatchdogSec']) > 4.0 + 10 / 4, 'more than it takes the runner to be sure that a node hangs'
    assert (settings['StartLimitBurst'], settings['Restart']) == ('5', 'on-failure')
    assert settings['IPAddressDeny'] == 'any'
    assert settings['WorkingDirectory'] == f'/run/{settings["RuntimeDirectory"]}', 'lgpio makes its files there'
    assert f'TMPDIR=/var/lib/{settings["StateDirectory"]}' in text, 'an emergency stop is remembered there, whatever ends the service'
    profiles = re.findall(r'^  export (FAST\w+_DEFAULT_PROFILES_FILE)=', text, re.M)
    assert profiles == ['FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'], 'Jazzy reads the first, whoever comes after it the second'
    users = (root / 'config' / 'systemd' / 'edge-resnet.sysusers.conf').read_text()
    assert re.search(r'^u edge-resnet ', users, re.M)
    rules = (root / 'config' / 'udev' / '60-edge-resnet.rules').read_text()
    for line in filter(None, (line.split('#')[0].strip() for line in rules.splitlines())):
        assert all(re.fullmatch(r'[A-Z]+(\{\w+\})?(==|\+=|=)"[^"]*"', part) for part in line.split(', ')), line
