"""Launch arguments: each one reaches a node, and a wrong one is refused before anything starts."""

from __future__ import annotations

import re
import signal
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tiny_model import write_bundle

from edge_resnet.deployment import (
    ARGUMENTS,
    MAX_KILLS,
    MAX_STARTS,
    NODES,
    START_WINDOW_S,
    STARTED,
    RespawnLimit,
    check_model,
    node_parameters,
    plan,
    transport_environment,
)
from edge_resnet.exceptions import EdgeResnetError, ModelError, ParameterError
from edge_resnet.hardware.thermal import SimulatedPi4

ROOT = Path(__file__).resolve().parents[2]


def parameters(arguments: list[str]) -> dict[str, object]:
    """The parameters in ``arguments``, read as ROS reads them: as YAML."""
    pairs = [value.split(':=', 1) for flag, value in pairwise(arguments) if flag == '-p']
    return {name: yaml.safe_load(text) for name, text in pairs}


def having(given: dict[str, str], name: str) -> dict[str, object]:
    """executable -> value of parameter ``name``, for those that get it."""
    executables = plan(given).executables
    return {executable: parameters(arguments)[name] for executable, arguments in executables.items() if name in parameters(arguments)}


@pytest.fixture
def model(tmp_path) -> str:
    return str(write_bundle(tmp_path / 'lights'))


def test_without_arguments_every_node_starts_in_a_process_of_its_own():
    deployment = plan({})
    assert list(deployment.executables) == [f'{node}_node' for node in STARTED]
    assert (deployment.namespace, deployment.respawn) == ('', False)
    for arguments in deployment.executables.values():
        assert arguments[0] == '--ros-args'
        assert arguments[arguments.index('--params-file') + 1] == str(ROOT / 'config' / 'pipeline.yaml')
        assert parameters(arguments) == {'use_sim_time': False, 'autostart': True}


def test_composed_is_one_process_that_is_told_its_nodes():
    (name, arguments), = plan({'composed': 'true'}).executables.items()
    assert name == 'pipeline'
    assert arguments[:arguments.index('--ros-args')] == list(STARTED)


def test_another_drivers_camera(model):
    given = {'use_camera': 'false', 'image_topic': '/front/image', 'image_transport': 'compressed'}
    assert 'camera_node' not in plan(given).executables
    for node in ('preprocess', 'inference'):  # that one names it in a warning
        assert f'{node}:image_raw:=/front/image' in plan(given).executables[f'{node}_node']
    assert having({**given, 'overlay': 'true'}, 'image_transport') == {'preprocess_node': 'compressed', 'overlay_node': 'compressed'}
    composed = plan({**given, 'composed': 'true'}).executables['pipeline']
    assert 'camera' not in composed[:composed.index('--ros-args')]


def test_the_model_reaches_both_that_need_it(model):
    assert having({'model': model}, 'model') == {'preprocess_node': model, 'inference_node': model}
    assert having({'model': model, 'composed': 'true'}, 'model') == {'pipeline': model}


@pytest.mark.parametrize('source', ['0', '/dev/video0', 'rtsp://host:554/a?b=c&d="e"', 'my photos/', 'true', '1e3', "it's: a {folder}"])
def test_a_source_stays_a_string(source):
    """ROS reads parameters as YAML, where 0 would be a number and refused."""
    assert having({'source': source}, 'source') == {'camera_node': source}


def test_the_optional_nodes():
    given = {'dashboard': 'true', 'dashboard_port': '8090', 'dashboard_host': '0.0.0.0', 'overlay': 'True', 'image_topic': 'front/image'}
    executables = plan(given).executables
    assert list(executables) == [f'{node}_node' for node in NODES]
    assert parameters(executables['dashboard_node']) == {'use_sim_time': False, 'autostart': True, 'host': '0.0.0.0', 'port': 8090}
    assert 'overlay:image_raw:=front/image' in executables['overlay_node']


def test_the_backend():
    assert having({'actuator_backend': 'gpio'}, 'backend') == {'actuator_node': 'gpio'}


@pytest.mark.parametrize(('name', 'value', 'expected'), [
    ('use_sim_time', 'true', True), ('use_sim_time', 'True', True), ('autostart', 'False', False)])
def test_what_every_node_gets(name, value, expected):
    assert having({name: value}, name) == dict.fromkeys((f'{node}_node' for node in STARTED), expected)


def test_log_level_and_params_file(tmp_path):
    (tmp_path / 'mine.yaml').write_text('')
    for arguments in plan({'log_level': 'debug', 'params_file': str(tmp_path / 'mine.yaml')}).executables.values():
        assert arguments[arguments.index('--log-level') + 1] == 'debug'
        assert arguments[arguments.index('--params-file') + 1] == str(tmp_path / 'mine.yaml')


def test_respawn_and_namespace():
    deployment = plan({'use_respawn': 'true', 'namespace': 'left/'})
    assert (deployment.respawn, deployment.namespace) == (True, 'left')


def test_without_autostart_it_waits():
    assert (plan({'autostart': 'False'}).waits, plan({}).waits) == (True, False)


def test_no_argument_is_dead(model, tmp_path):
    """Another value of any argument changes what is started."""
    (tmp_path / 'mine.yaml').write_text('')
    other = {'namespace': 'robot', 'params_file': str(tmp_path / 'mine.yaml'), 'model': model, 'source': 'synthetic', 'image_topic': '/front/image',
             'dashboard_host': '0.0.0.0', 'dashboard_port': '8090', 'record_to': '/runs'}
    needs = {'dashboard_host': {'dashboard': 'true'}, 'dashboard_port': {'dashboard': 'true'}}
    for argument in ARGUMENTS:
        values = [choice for choice in argument.choices if choice.lower() != argument.default] or [other[argument.name]]
        for value in values:
            base = needs.get(argument.name, {})
            assert plan({**base, argument.name: value}) != plan(base), f'{argument.name}:={value} changes nothing'


@pytest.mark.parametrize(('given', 'message'), [
    ({'dashboard_port': '80a'}, "dashboard_port is '80a', expected a number from 0 to 65535"),
    ({'dashboard_port': '8090'}, "dashboard_port is '8090', but no dashboard node is started: dashboard is false"),
    ({'source': 'synthetic', 'use_camera': 'false'}, "source is 'synthetic', but no camera node is started: use_camera is false"),
    ({'modell': 'x'}, 'unknown argument modell, expected one of namespace'),
    ({'composed': 'yes'}, "composed is 'yes', expected one of true, false"),
    ({'actuator_backend': 'relay'}, "actuator_backend is 'relay', expected one of empty, simulated, gpio"),
    ({'log_level': 'loud'}, "log_level is 'loud', expected one of debug, info"),
    ({'params_file': '/nowhere/p.yaml'}, 'params_file /nowhere/p.yaml: there is no such file'),
    ({'namespace': 'a-b'}, "namespace is 'a-b', expected names of letters"),
    ({'namespace': '1a'}, "namespace is '1a'"),
    ({'model': '/nowhere/model'}, "model '/nowhere/model': there is no such bundle folder or .tflite file"),
    ({'model': '/nowhere/m.tflite'}, "model '/nowhere/m.tflite': there is no such .tflite file"),
    ({'model': '../up'}, r'must not contain "\.\."'),
    ({'image_topic': '~front'}, "image_topic is '~front', expected names of letters"),
    ({'image_topic': 'front/'}, "image_topic is 'front/'"),
])
def test_a_wrong_argument_is_refused_by_name(given, message):
    with pytest.raises(EdgeResnetError, match=message):
        plan(given)


SECTIONS = '{name}: {{ros__parameters: {{on_threshold: 0.9}}}}\n'


@pytest.mark.parametrize(('text', 'namespace', 'inside', 'message'), [
    (SECTIONS.format(name='/actuator'), 'robot1', '', 'section /actuator is not for /robot1/actuator; expected /robot1/actuator or'),
    (SECTIONS.format(name='/robot1/actuator'), '', '', 'section /robot1/actuator is not for /actuator'),
    (SECTIONS.format(name='/*/actuator'), '/a/b', '', r'section /\*/actuator is not for /a/b/actuator'),
    (SECTIONS.format(name='actuator'), '', 'robot1', 'section /actuator is not for /robot1/actuator'),
    ('actuator: {on_threshold: 0.9}', '', '', '/actuator/on_threshold is 0.9, expected sections of nodes with ros__parameters'),
    ('[1, 2]', '', '', 'its top is'),
    ('actuator: [', '', '', 'while parsing a flow node'),
    ('\xff', '', '', "can't decode byte"),
])
def test_a_params_file_that_would_be_passed_over_is_refused(tmp_path, text, namespace, inside, message):
    (tmp_path / 'mine.yaml').write_text(text, encoding='latin-1')
    with pytest.raises(ParameterError, match=message) as refusal:
        plan({'params_file': str(tmp_path / 'mine.yaml'), 'namespace': namespace}, inside)
    assert str(refusal.value).startswith(f'params_file {tmp_path / "mine.yaml"}: ')
    assert '\n' not in str(refusal.value)


@pytest.mark.parametrize(('names', 'namespace', 'inside'), [
    (['/**/actuator'], 'robot1', ''), (['/**/actuator'], '', ''), (['/**'], 'a/b', ''), (['actuator'], '', ''), (['/robot1/actuator'], 'robot1', ''),
    (['/*/actuator'], 'robot1', ''), (['/robot1/actuator', '/robot2/actuator'], 'robot2', ''), (['/robot1/actuator'], '', 'robot1'),
    (['/fleet/robot1/actuator'], 'robot1', '/fleet'), (['/robot1/actuator'], '/robot1', 'fleet'), (['/somebody/else'], 'robot1', ''), ([], '', ''),
])
def test_a_params_file_whose_sections_find_their_nodes(tmp_path, names, namespace, inside):
    (tmp_path / 'mine.yaml').write_text(''.join(SECTIONS.format(name=f"'{name}'") for name in names))
    plan({'params_file': str(tmp_path / 'mine.yaml'), 'namespace': namespace}, inside)


def test_the_hot_board_of_the_documentation_throttles_when_it_says(tmp_path, clock):
    text = (ROOT / 'docs' / 'thermals.md').read_text()
    (tmp_path / 'hot.yaml').write_text(re.search(r'```yaml\n(.*?)```', text, re.S)[1])
    arguments = plan({'board': 'simulated', 'params_file': str(tmp_path / 'hot.yaml'), 'namespace': 'robot1'}).executables['thermal_monitor_node']
    given = node_parameters([*arguments, '-r', '__ns:=/robot1'], 'thermal_monitor')[1]
    load = given['load']
    board = SimulatedPi4(heatsink=given['heatsink'], fan=given['fan'], ambient_c=given['ambient_c'], load=lambda: load, clock=clock)
    begun = clock()
    while not board.read().flag('throttled'):
        clock.now_s += 1.0
        assert clock() - begun < 600.0, 'it never throttles'
    assert clock() - begun == pytest.approx(float(re.search(r'for certain, (\d+) s after', text)[1]), abs=1.0)


def test_a_params_file_may_nest_namespaces(tmp_path):
    (tmp_path / 'mine.yaml').write_text('robot1:\n  actuator:\n    ros__parameters: {on_threshold: 0.9}\n')
    plan({'params_file': str(tmp_path / 'mine.yaml'), 'namespace': 'robot1'})
    with pytest.raises(ParameterError, match='section /robot1/actuator'):
        plan({'params_file': str(tmp_path / 'mine.yaml')})


def test_a_damaged_bundle_is_refused_at_launch(model):
    (Path(model) / 'card.yaml').write_text('[')
    with pytest.raises(ModelError, match='card.yaml'):
        check_model(model)


# Respawning

@pytest.fixture
def limit() -> RespawnLimit:
    limit = RespawnLimit(lambda: limit.clock.now_s)
    limit.clock = SimpleNamespace(now_s=1000.0)
    return limit


def test_a_node_that_dies_at_every_start_is_given_up(limit):
    assert [limit.allows(1) for _ in range(MAX_STARTS)] == [True] * (MAX_STARTS - 1) + [False]
    assert str(limit) == f'ended {MAX_STARTS} times within 60 s'


def test_a_node_that_dies_now_and_then_is_always_started_again(limit):
    for _ in range(100):
        limit.clock.now_s += START_WINDOW_S / (MAX_STARTS - 1) + 0.1
        assert limit.allows(-signal.SIGSEGV)


def test_kills_from_outside_do_not_count_as_its_own_ends(limit):
    assert all(limit.allows(-signal.SIGKILL) for _ in range(MAX_KILLS - 1))
    assert limit.allows(1)


def test_a_node_that_is_killed_again_and_again_is_given_up(limit):
    """As by the guard of an actuator that hangs on its pin at every start."""
    assert [limit.allows(-signal.SIGKILL) for _ in range(MAX_KILLS)] == [True] * (MAX_KILLS - 1) + [False]
    assert str(limit) == f'was killed {MAX_KILLS} times within 600 s'


# Transport

def test_fast_dds_gets_a_profile_that_images_fit_through():
    environment = transport_environment({})
    assert set(environment) == {'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'}
    assert all(Path(path).is_file() for path in environment.values())


@pytest.mark.parametrize('name', ['FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'])
def test_a_users_own_profile_is_left_alone_and_read_by_every_fast_dds(name):
    environment = {name: '/etc/mine.xml'}
    environment.update(transport_environment(environment))
    assert environment == dict.fromkeys(('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'), '/etc/mine.xml')
    assert transport_environment(environment) == {}
