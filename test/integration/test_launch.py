"""The literal ``ros2 launch edge_resnet pipeline.launch.py`` as a process, where launch is installed; and its rules, anywhere."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_resnet.deployment import ARGUMENTS, STARTED, check_model, plan
from edge_resnet.exceptions import ModelError, ParameterError

ROOT_TOPICS = {'/diagnostics', '/parameter_events', '/rosout'}
# Started with a shell's & the launcher would ignore SIGINT, as would a test runner's children.
LISTEN_TO_CTRL_C = 'import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])'


class Launched:
    """A running ``ros2 launch edge_resnet pipeline.launch.py``, or ``file``, and what it printed."""

    def __init__(self, environment: dict[str, str], log: Path, *arguments: str, file: Path | None = None) -> None:
        self._log = log
        launched = [str(file)] if file else ['edge_resnet', 'pipeline.launch.py']
        command = [sys.executable, '-c', LISTEN_TO_CTRL_C, 'ros2', 'launch', *launched, *arguments]
        with log.open('w') as out:
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self._log.read_text()

    def pids(self) -> dict[str, int]:
        """Executable -> pid of its newest process."""
        return {name: int(pid) for name, pid in re.findall(r'\[(\w+)-\d+\]: process started with pid \[(\d+)\]', self.output)}

    def left(self) -> list[str]:
        """The executables that are still running."""
        return [name for name, pid in self.pids().items() if is_running(pid)]

    def end(self, number: int = signal.SIGINT) -> int:
        """Send the signal to the launcher only, as systemd would; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(20.0)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.pids().values():
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_until(condition: Callable[[], object], what: str, launched: Launched | None = None, timeout_s: float = 60.0) -> object:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f'{what} did not happen within {timeout_s} s: {launched.output if launched else ""}')


@pytest.fixture(scope='module')
def environment(tmp_path_factory) -> dict[str, str]:
    """One in which ros2 finds the package: as it is sourced, else with the tree installed for it."""
    for module in ('launch', 'launch_ros', 'ros2launch', 'rclpy'):
        pytest.importorskip(module)
    if shutil.which('ros2') is None:
        pytest.skip('ros2 is not installed')
    folder = tmp_path_factory.mktemp('ros2')
    own = {'ROS_LOG_DIR': str(folder / 'log'), 'TMPDIR': str(folder), 'PYTHONUNBUFFERED': '1'}
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    if any((Path(prefix) / 'lib' / 'edge_resnet' / 'camera_node').is_file() for prefix in prefixes if prefix):
        return {**os.environ, **own}
    from test_packaging import pip_install

    return {**pip_install(Path(__file__).resolve().parents[2], folder).environment, **own}


@pytest.fixture
def launch(environment, tmp_path):
    started: list[Launched] = []

    def start(*arguments: str, file: Path | None = None) -> Launched:
        started.append(Launched(environment, tmp_path / f'launch{len(started)}.log', *arguments, file=file))
        return started[-1]

    yield start
    for launched in started:
        launched.close()


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """Launch arguments for a small model, a folder of red and green pictures for it, and a params file that shows them quickly."""
    for module in ('ai_edge_litert.schema_py_generated', 'flatbuffers'):
        pytest.importorskip(module)
    import cv2
    import numpy as np
    import yaml
    from tiny_model import LABELS, MEAN_STD, SIZE, patch, tiny_float_model

    folder = tmp_path_factory.mktemp('tiny')
    bundle, pictures = folder / 'tiny', folder / 'pictures'
    bundle.mkdir()
    pictures.mkdir()
    data = tiny_float_model(bundle / 'model.tflite')
    (bundle / 'labels.txt').write_text('\n'.join(LABELS) + '\n')
    settings = {'width': SIZE, 'height': SIZE, 'resize': 'stretch', 'color_order': 'rgb', **{name: list(values) for name, values in MEAN_STD.items()}}
    (bundle / 'card.yaml').write_text(yaml.safe_dump({'sha256': hashlib.sha256(data).hexdigest(), 'output': 'softmax', 'preprocessing': settings}))
    for label in ('red', 'green'):
        cv2.imwrite(str(pictures / f'{label}.png'), patch(label, np.random.default_rng(7), 256)[..., ::-1])
    (folder / 'params.yaml').write_text(yaml.safe_dump({
        '/**/camera': {'ros__parameters': {'image_hold_s': 0.6, 'framerate': 20.0}},
        '/**/actuator': {'ros__parameters': {'refractory_s': 0.1, 'state_file': str(folder / 'brake')}}}))
    return {'model': bundle, 'source': pictures, 'params_file': folder / 'params.yaml', 'state_file': folder / 'brake'}


def tiny_arguments(tiny) -> list[str]:
    return [f'{name}:={tiny[name]}' for name in ('model', 'source', 'params_file')]


class Graph:
    """What ros2 node, topic, param and lifecycle would tell of the nodes in ``namespace``."""

    def __init__(self, bench, namespace: str = '') -> None:
        self._node, self.namespace = bench.probe, namespace

    def nodes(self) -> set[str]:
        return {f'{space.rstrip("/")}/{name}' for name, space in self._node.get_node_names_and_namespaces()} - {'/probe'}

    def call(self, kind: type, service: str, request: object):
        client = self._node.create_client(kind, service)
        try:
            assert client.wait_for_service(20.0), f'no service {service}'
            future = client.call_async(request)
            wait_until(future.done, f'the answer of {service}', timeout_s=10.0)
            return future.result()
        finally:
            self._node.destroy_client(client)

    def parameter(self, node: str, name: str):
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python

        answer = self.call(GetParameters, f'{self.namespace}/{node}/get_parameters', GetParameters.Request(names=[name]))
        return parameter_value_to_python(answer.values[0])

    def state(self, node: str) -> str:
        from lifecycle_msgs.srv import GetState

        return self.call(GetState, f'{self.namespace}/{node}/get_state', GetState.Request()).current_state.label

    def subscribers(self, topic: str) -> set[str]:
        return {info.node_name for info in self._node.get_subscriptions_info_by_topic(f'{self.namespace}/{topic}')}

    def publishers(self, topic: str) -> set[str]:
        return {info.node_name for info in self._node.get_publishers_info_by_topic(f'{self.namespace}/{topic}')}

    def outside(self) -> set[str]:
        """Topics and services that are not in ``namespace``, without the probe's own."""
        names = [*self._node.get_topic_names_and_types(), *self._node.get_service_names_and_types()]
        return {name for name, _ in names if not name.startswith((f'{self.namespace}/', '/probe/'))}


def listen_to_brake(bench, topic: str = 'actuator/state') -> list[bool]:
    from std_msgs.msg import Bool

    from edge_resnet.nodes.base import LATCHED_QOS

    heard: list[bool] = []
    bench.probe.create_subscription(Bool, topic, lambda message: heard.append(message.data), LATCHED_QOS)
    return heard


def test_without_arguments_samples_play_and_ctrl_c_ends_it(launch, bench):
    from vision_msgs.msg import Classification

    graph, results, brake = Graph(bench), bench.listen(Classification, 'classification'), listen_to_brake(bench)
    launched = launch()
    wait_until(lambda: graph.nodes() == {f'/{node}' for node in STARTED}, 'every node', launched)
    wait_until(lambda: {message.results[0].class_id for message in results} >= {'red', 'green'}, 'a red and a green light', launched)
    wait_until(lambda: {True, False} <= set(brake), 'the brake going on and off', launched)
    assert {node: graph.state(node) for node in STARTED} == dict.fromkeys(STARTED, 'active')
    assert launched.pids().keys() == {f'{node}_node' for node in STARTED}
    assert launched.end() == 0
    assert not launched.left()
    assert launched.output.count('process has finished cleanly') == len(STARTED), launched.output
    assert not re.search(r'Traceback|failed to terminate|process has died|\[WARN\]|\[ERROR\]|unknown parameter', launched.output), launched.output


# Each argument, by what a user would see of it. Every argument of the launch file has to be in one of these two launches.
FIRST = ('namespace', 'params_file', 'model', 'source', 'image_topic', 'image_transport', 'log_level')
SECOND = ('composed', 'use_camera', 'autostart', 'use_sim_time', 'actuator_backend', 'board', 'record_to', 'overlay', 'dashboard', 'dashboard_host',
          'dashboard_port')


def test_no_argument_is_forgotten_here():
    assert {*FIRST, *SECOND, 'use_respawn'} == {argument.name for argument in ARGUMENTS}


def test_arguments_reach_their_nodes_in_a_namespace(launch, bench, tiny):
    brake = listen_to_brake(bench, '/robot1/actuator/state')
    graph = Graph(bench, '/robot1')
    launched = launch(*tiny_arguments(tiny), 'namespace:=robot1', 'image_topic:=front/image', 'image_transport:=compressed', 'log_level:=debug')
    wait_until(lambda: {True, False} <= set(brake), 'the brake going on and off', launched)
    wait_until(lambda: graph.nodes() == {f'/robot1/{node}' for node in STARTED}, 'every node', launched)
    assert graph.outside() == ROOT_TOPICS
    assert graph.parameter('camera', 'image_hold_s') == 0.6
    assert graph.parameter('camera', 'source') == str(tiny['source'])
    assert [graph.parameter(node, 'model') for node in ('preprocess', 'inference')] == [str(tiny['model'])] * 2
    assert graph.publishers('front/image') == graph.publishers('front/image/compressed') == {'camera'}
    assert (graph.subscribers('front/image'), graph.subscribers('front/image/compressed')) == (set(), {'preprocess'})
    assert '[DEBUG]' in launched.output
    assert launched.end() == 0


def test_composed_arguments_reach_every_node(launch, bench, tmp_path):
    nodes = {*STARTED, 'overlay', 'dashboard'} - {'camera'}
    graph = Graph(bench)
    launched = launch('composed:=true', 'use_camera:=false', 'autostart:=False', 'use_sim_time:=True', 'actuator_backend:=gpio', 'board:=simulated',
                      f'record_to:={tmp_path}', 'overlay:=true', 'dashboard:=true', 'dashboard_host:=localhost', 'dashboard_port:=0')
    wait_until(lambda: graph.nodes() == {f'/{node}' for node in nodes}, 'the nodes without a camera', launched)
    assert launched.pids().keys() == {'pipeline'}
    assert {graph.state(node) for node in nodes} == {'unconfigured'}
    assert {graph.parameter(node, 'use_sim_time') for node in nodes} == {True}
    given = (('actuator', 'backend', 'gpio'), ('thermal_monitor', 'board', 'simulated'), ('latency_monitor', 'record_to', str(tmp_path)),
             ('dashboard', 'host', 'localhost'), ('dashboard', 'port', 0))
    assert [graph.parameter(node, name) for node, name, _ in given] == [value for *_, value in given]
    assert launched.end() == 0
    assert not launched.left()


def test_respawn_and_an_abrupt_end_of_the_launcher(launch, bench, tiny):
    """kill -9 of a node brings it back under the same launcher; without a launcher nothing goes on, and the brake is off."""
    from vision_msgs.msg import Classification

    results, brake = bench.listen(Classification, 'classification'), listen_to_brake(bench)
    launched = launch(*tiny_arguments(tiny), 'use_respawn:=true')
    wait_until(lambda: results, 'a classification', launched)
    for name in ('inference_node', 'camera_node'):
        before = launched.pids()[name]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda name=name, before=before: launched.pids()[name] != before, f'{name} again', launched)
        results.clear()
        wait_until(lambda: results, f'classifications after kill -9 of {name}', launched)
    brake.clear()
    wait_until(lambda: brake and brake[-1], 'the brake on', launched)
    launched.end(signal.SIGKILL)
    wait_until(lambda: not launched.left(), f'the end of {launched.left()}', launched, timeout_s=10.0)
    assert tiny['state_file'].read_text() == '0\n'


def test_sigterm_leaves_nothing_behind(launch, bench, tiny):
    """systemctl stop and docker stop send it; ros2 launch itself leaves its processes running then."""
    brake = listen_to_brake(bench)
    launched = launch(*tiny_arguments(tiny), 'composed:=true')
    wait_until(lambda: brake and brake[-1], 'the brake on', launched)
    launched.end(signal.SIGTERM)
    wait_until(lambda: not launched.left(), f'the end of {launched.left()}', launched, timeout_s=10.0)
    assert tiny['state_file'].read_text() == '0\n'


@pytest.mark.parametrize(('argument', 'message'), [
    ('composed:=maybe', 'Argument "composed" provided value "maybe" is not valid'),
    ('params_file:=/no/such.yaml', 'params_file /no/such.yaml: there is no such file'),
    ('model:=no_such_model', "no models named 'no_such_model'; installed:"),
    ('namespace:=robot-1', "namespace is 'robot-1', expected names of letters"),
    ('image_topic:=front image', "image_topic is 'front image', expected names of letters"),
])
def test_bad_value_is_refused_before_anything_starts(launch, argument, message):
    launched = launch(argument)
    assert launched.process.wait(30.0) == 1
    lines = [line for line in launched.output.splitlines() if 'Caught exception in launch' in line]
    assert len(lines) == 1, launched.output
    assert message in lines[0]
    assert 'Traceback' not in launched.output
    assert not launched.pids()


def test_an_unknown_argument_is_told_and_a_params_file_finds_the_nodes_of_an_outer_launch_file(launch, bench, tmp_path):
    launched = launch('sorce:=synthetic', 'autostart:=false', 'composed:=true')
    wait_until(launched.pids, 'a process', launched)
    assert launched.output.count('unknown argument sorce: ignored; known are namespace, ') == 1
    launched.end()

    (tmp_path / 'params.yaml').write_text('/robot1/actuator: {ros__parameters: {target_class: green}}')
    (tmp_path / 'outer.launch.xml').write_text(f"""<launch><arg name="mine" default=""/><group><push_ros_namespace namespace="robot1"/>
        <include file="$(find-pkg-share edge_resnet)/launch/pipeline.launch.py">
        <arg name="params_file" value="{tmp_path}/params.yaml"/><arg name="autostart" value="false"/></include></group></launch>""")
    launched = launch('mine:=1', file=tmp_path / 'outer.launch.xml')
    assert Graph(bench, '/robot1').parameter('actuator', 'target_class') == 'green'
    assert 'unknown argument' not in launched.output


def test_show_args_tells_of_every_argument(launch):
    launched = launch('--show-args')
    assert launched.process.wait(30.0) == 0
    for argument in ARGUMENTS:
        assert f"'{argument.name}':" in launched.output
        assert argument.description in launched.output
    assert 'no description given' not in launched.output


# The rules, which need no launch. ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('given', 'namespace'), [('', ''), ('/', '/'), ('robot1', 'robot1'), ('/fleet/robot_1/', '/fleet/robot_1')])
def test_namespaces(given, namespace):
    assert plan({'namespace': given}).namespace == namespace


@pytest.mark.parametrize('given', [{'namespace': '1robot'}, {'namespace': 'a//b'}, {'namespace': 'ä'}, {'use_respawn': 'yes'}, {'speed': '3'}])
def test_bad_arguments_are_named(given):
    with pytest.raises(ParameterError, match=next(iter(given))):
        plan(given)


def test_models_that_are_not_there(tmp_path):
    check_model('')
    with pytest.raises(ModelError, match='there is no such .tflite file'):
        check_model(str(tmp_path / 'no.tflite'))
    with pytest.raises(ModelError, match=r'card\.yaml is missing'):
        check_model(str(tmp_path))
