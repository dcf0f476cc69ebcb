"""Which nodes make up the pipeline, and how launch arguments reach them. The launch file and the demo share this."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from edge_resnet.exceptions import ModelError, ParameterError
from edge_resnet.pipeline.bundle import find_shared, load_bundle

NODES = ('camera', 'preprocess', 'inference', 'actuator', 'thermal_monitor', 'latency_monitor', 'overlay', 'dashboard')  # in the order of the data
OPTIONAL = ('overlay', 'dashboard')  # started when the launch argument of their name says so
STARTED = tuple(node for node in NODES if node not in OPTIONAL)
LOG_LEVELS = ('debug', 'info', 'warn', 'error', 'fatal')
BOOLEANS = ('true', 'false', 'True', 'False')  # Python launch files pass the latter two
ENCLAVES = '/edge_resnet'  # of SROS2, one a process: the path above the name of the node, or of pipeline
RESPAWN_DELAY_S = 0.5
MAX_STARTS, START_WINDOW_S = 5, 60.0  # of one executable that keeps ending
MAX_KILLS, KILL_WINDOW_S = 40, 600.0  # of one that is killed again and again


@dataclass(frozen=True)
class LaunchArgument:
    """An argument of pipeline.launch.py. Empty as a default means that the params file decides."""

    name: str
    default: str
    description: str
    choices: tuple[str, ...] = ()


ARGUMENTS = (
    LaunchArgument('namespace', '', 'namespace of all nodes and of their topics'),
    LaunchArgument('params_file', '', 'parameters of all nodes; empty: the config/pipeline.yaml of this package'),
    LaunchArgument('model', '', 'bundle name or folder, or a .tflite file, for preprocess and inference'),
    LaunchArgument('source', '', 'what the camera node plays: device, URL, video, folder, "samples" or "synthetic"'),
    LaunchArgument('use_camera', 'true', 'false: no camera node, another driver publishes image_topic', BOOLEANS),
    LaunchArgument('image_topic', 'image_raw', 'camera images; with image_transport compressed, the topic before /compressed'),
    LaunchArgument('image_transport', '', 'raw or compressed', ('', 'raw', 'compressed')),
    LaunchArgument('composed', 'false', 'true: all nodes in one process', BOOLEANS),
    LaunchArgument('actuator_backend', '', 'simulated or gpio', ('', 'simulated', 'gpio')),
    LaunchArgument('overlay', 'false', 'true: a node that draws label, score and latency on the camera image, for rviz and rqt', BOOLEANS),
    LaunchArgument('dashboard', 'false', 'true: a web page of the pipeline', BOOLEANS),
    LaunchArgument('dashboard_host', '', 'address the page is served on; 0.0.0.0: all of this machine'),
    LaunchArgument('dashboard_port', '', 'TCP port the page is served on'),
    LaunchArgument('board', '', 'simulated: heat and throttling of a model of a Raspberry Pi 4', ('', 'real', 'simulated')),
    LaunchArgument('record_to', '', 'folder to record latencies, heat and drops into, for latency_report'),
    LaunchArgument('use_sim_time', 'false', 'take the time from /clock', BOOLEANS),
    LaunchArgument('use_respawn', 'false', 'start a node again when it died', BOOLEANS),
    LaunchArgument('autostart', 'true', 'false: a lifecycle manager configures and activates the nodes', BOOLEANS),
    LaunchArgument('log_level', 'info', 'log level of all nodes', LOG_LEVELS),
)
PARAMETERS = {'model': ('preprocess', 'inference'), 'source': ('camera',), 'image_transport': ('preprocess', 'overlay'),
              'actuator_backend': ('actuator',), 'dashboard_host': ('dashboard',), 'dashboard_port': ('dashboard',),
              'board': ('thermal_monitor',), 'record_to': ('latency_monitor',)}
NUMBERS = ('dashboard_port',)
RENAMED = {'actuator_backend': 'backend', 'dashboard_host': 'host', 'dashboard_port': 'port'}


@dataclass(frozen=True)
class Deployment:
    """What to start: executable -> its arguments."""

    executables: dict[str, list[str]]
    namespace: str
    respawn: bool
    waits: bool = False  # for a lifecycle manager

    def off_arguments(self, executable: str) -> list[str] | None:
        """The arguments with which ``actuator_off`` drives off what ``executable`` switches; None when it switches nothing."""
        arguments = self.executables.get(executable, ['--ros-args'])
        start = arguments.index('--ros-args')
        return arguments[start:] if 'actuator' in (arguments[:start] or [executable.removesuffix('_node')]) else None


def plan(given: Mapping[str, str], inside: str = '') -> Deployment:
    """The deployment for launch arguments ``given``, in a launch file that pushed namespace ``inside``.

    ParameterError names an argument that is unknown or out of its choices.
    """
    known = {argument.name: argument for argument in ARGUMENTS}
    for name, value in given.items():
        if name not in known:
            raise ParameterError(f'unknown argument {name}, expected one of {", ".join(known)}')
        if known[name].choices and value not in known[name].choices:
            raise ParameterError(f'{name} is {value!r}, expected one of {", ".join(choice or "empty" for choice in known[name].choices)}')
    values = {argument.name: given.get(argument.name, argument.default) for argument in ARGUMENTS}
    values.update({name: value.lower() for name, value in values.items() if known[name].choices == BOOLEANS})
    if not re.fullmatch(r'/?([A-Za-z_]\w*(/[A-Za-z_]\w*)*/?)?', values['namespace'], re.ASCII):
        raise ParameterError(f'namespace is {values["namespace"]!r}, expected names of letters, digits and _ with / between them')
    check_model(values['model'])
    params_file = Path(values['params_file']) if values['params_file'] else find_shared('config', 'pipeline.yaml')
    if not params_file.is_file():
        raise ParameterError(f'params_file {params_file}: there is no such file')
    check_params_file(params_file, values['namespace'] if values['namespace'].startswith('/') else f'{inside}/{values["namespace"]}')
    if not re.fullmatch(r'(~?/)?[A-Za-z_]\w*(/[A-Za-z_]\w*)*', values['image_topic'], re.ASCII):
        raise ParameterError(f'image_topic is {values["image_topic"]!r}, expected names of letters, digits and _ with / between them')
    if not re.fullmatch(r'[0-9]{0,5}', values['dashboard_port'], re.ASCII):
        raise ParameterError(f'dashboard_port is {values["dashboard_port"]!r}, expected a number from 0 to 65535')
    nodes = [node for node in NODES if values.get('use_camera' if node == 'camera' else node, 'true') == 'true']
    for name, targets in PARAMETERS.items():
        if values[name] and not set(targets) & set(nodes):
            raise ParameterError(f'{name} is {values[name]!r}, but no {targets[0]} node is started: '
                                 f'{"use_camera" if targets[0] == "camera" else targets[0]} is false')

    ros_args = ['--log-level', values['log_level'], '--params-file', str(params_file)]
    for name in ('use_sim_time', 'autostart'):
        ros_args += ['-p', f'{name}:={values[name]}']
    if values['image_topic'] != 'image_raw':
        for node in ('camera', 'preprocess', 'inference', 'overlay'):
            ros_args += ['-r', f'{node}:image_raw:={values["image_topic"]}']
    composed = values['composed'] == 'true'
    processes = {'pipeline': nodes} if composed else {f'{node}_node': [node] for node in nodes}
    executables = {}
    for executable, own_nodes in processes.items():  # -p can't name a node in a namespace that is not known here, so each gets its own
        own = [f'{RENAMED.get(name, name)}:={json.dumps(int(values[name]) if name in NUMBERS else values[name])}'
               for name, targets in PARAMETERS.items() if values[name] and set(targets) & set(own_nodes)]
        enclave = ['--enclave', f'{ENCLAVES}/{executable.removesuffix("_node")}']
        executables[executable] = [*(own_nodes if composed else ()), '--ros-args', *enclave, *ros_args,
                                   *(part for text in own for part in ('-p', text))]
    return Deployment(executables, values['namespace'].rstrip('/') or values['namespace'], values['use_respawn'] == 'true',
                      values['autostart'] == 'false')


def check_params_file(path: Path, namespace: str) -> None:
    """ParameterError when ``path`` is no parameter file, or has sections for one of our nodes but none where the node will be: ROS would
    pass over them without a word, and limits of the actuator with them."""
    found = [section for section, _ in _sections(path)]
    for node in NODES:
        wanted, own = f'/{namespace.strip("/")}/{node}'.replace('//', '/'), [section for section in found if section.endswith(f'/{node}')]
        if own and not any(_is_for(section, wanted) for section in own):
            raise ParameterError(f'params_file {path}: section {own[0]} is not for {wanted}; expected {wanted} or /**/{node}')


def _sections(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(pattern of node names, parameters) of each section of a params file; ParameterError when it is none."""
    def walk(tree: object, above: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
        if not isinstance(tree, dict):
            raise ParameterError(f'params_file {path}: {above or "its top"} is {tree!r:.40}, expected sections of nodes with ros__parameters in them')
        for name, below in tree.items():
            if name == 'ros__parameters' and above:
                yield above, below if isinstance(below, dict) else {}
            else:
                yield from walk(below, f'{above}/{str(name).strip("/")}')

    try:
        return list(walk(yaml.safe_load(path.read_text(encoding='utf-8')) or {}))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ParameterError(f'params_file {path}: {" ".join(str(error).split())}') from error


def _is_for(section: str, node: str) -> bool:
    return bool(re.fullmatch(re.escape(section).replace(r'/\*\*', '(/[^/]+)*').replace(r'\*', '[^/]+'), node))


def node_parameters(arguments: Sequence[str], node: str) -> tuple[str, dict[str, Any]]:
    """(full name, parameters) that ROS ``arguments`` give to ``node``, without ROS; ParameterError when a params file can't be read."""
    pairs = list(pairwise(arguments))
    spaces = [value.split(':=', 1)[1] for flag, value in pairs if flag in ('-r', '--remap') and value.startswith('__ns:=')]
    full_name = f'/{spaces[-1].strip("/") if spaces else ""}/{node}'.replace('//', '/')
    found: dict[str, Any] = {}
    for flag, value in pairs:
        if flag == '--params-file':
            for section, parameters in _sections(Path(value)):
                if _is_for(section, full_name):
                    found.update(parameters)
    for flag, value in pairs:
        if flag in ('-p', '--param'):
            left, _, text = value.partition(':=')
            whose, _, name = left.rpartition(':')
            if whose in ('', node):
                found[name] = yaml.safe_load(text)
    return full_name, found


def check_model(model: str) -> None:
    """ModelError here, once, rather than from each node that takes ``model``; empty: the params file's, which the nodes check."""
    if not model.endswith('.tflite'):  # whose settings may stand in the params file
        if model:
            load_bundle(model)
    elif not Path(model).expanduser().is_file():
        raise ModelError(f'model {model!r}: there is no such .tflite file')


class RespawnLimit:
    """Ends the respawning of an executable that keeps ending: ``MAX_STARTS`` starts within ``START_WINDOW_S``, the first one included.

    A SIGKILL comes from outside: from a user, from a machine short of memory, or from the guard of an actuator that hangs on its pin. Of those
    ``MAX_KILLS`` within ``KILL_WINDOW_S`` are the end.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends: list[float] = []
        self._kills: list[float] = []
        self._why = ''

    def allows(self, returncode: int) -> bool:
        """Whether to start again after an end with ``returncode``, negative for a signal."""
        killed = returncode == -signal.SIGKILL
        ends, most, window_s = (self._kills, MAX_KILLS, KILL_WINDOW_S) if killed else (self._ends, MAX_STARTS, START_WINDOW_S)
        now = self._clock()
        ends[:] = [*(end for end in ends if now - end < window_s), now]
        self._why = f'{"was killed" if killed else "ended"} {len(ends)} times within {window_s:g} s'
        return len(ends) < most

    def __str__(self) -> str:
        return self._why


def transport_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that give Fast DDS a shared-memory segment large enough for images, or the profile that the user has under one of the names."""
    names = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')  # Fast DDS 2, with Humble and Jazzy, reads only the second
    given = [environment[name] for name in names if environment.get(name)]
    profile = given[0] if given else str(find_shared('config', 'fastdds.xml'))
    return {name: profile for name in names if not environment.get(name)}


def use_transport_profile() -> None:
    """Set ``transport_environment`` in this process, for the nodes it starts."""
    os.environ.update(transport_environment(os.environ))
