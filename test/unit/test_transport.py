"""edge_resnet.transport: the profile Fast DDS reads, ports of their own, and ports of the dead."""

import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_resnet.pipeline.bundle import find_shared
from edge_resnet.transport import GRAPH_PORTS, PROFILE_NAMES, TOPIC_PORTS, DeadPorts, _ports_there_are, own_ports, transport_environment

OURS = str(find_shared('config', 'fastdds.xml'))


def test_fast_dds_gets_a_profile_that_images_fit_through():
    environment = transport_environment({})
    assert set(environment) == {'FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'}
    assert all(Path(path).is_file() for path in environment.values())


@pytest.mark.parametrize('name', PROFILE_NAMES)
def test_a_users_own_profile_is_left_alone_and_read_by_every_fast_dds(name):
    environment = {name: '/etc/mine.xml'}
    environment.update(transport_environment(environment))
    assert environment == dict.fromkeys(PROFILE_NAMES, '/etc/mine.xml')
    assert transport_environment(environment) == {}


# Ports of its own

@pytest.mark.parametrize('choice', [0, 1, 17, -1])
@pytest.mark.parametrize('domain', [0, 42, 232])
def test_a_node_has_ports_of_its_own_and_is_discovered_where_all_are(domain, choice):
    variables = {name: int(text) for name, text in own_ports(domain, choose=lambda numbers: numbers[choice]).items()}
    base, offsets = variables['EDGE_RESNET_PORT_BASE'], [variables[f'EDGE_RESNET_PORT_OFFSET{index}'] for index in range(4)]
    first = base + 250 * domain
    assert [first + offset for offset in offsets[:3]] == [7400 + 250 * domain + standard for standard in (0, 10, 1)], 'discovery'
    topics = first + offsets[3]
    assert topics == 7411 + 250 * domain + 2 * (choice % TOPIC_PORTS), 'odd, as discovery has the even ones'
    assert topics <= min(7649 + 250 * domain, 65535)
    assert base == 7400 - choice % GRAPH_PORTS


def test_a_number_that_anyone_has_or_had_is_not_chosen(tmp_path):
    for port in (7000, 6999, 7411, 7413, 7661):
        (tmp_path / f'fastrtps_port{port}').touch()
    (tmp_path / 'fastdds_port7415_el').touch()
    (tmp_path / 'sem.fastrtps_port7417_mutex').touch()
    (tmp_path / 'fastrtps_portable').touch()
    taken = _ports_there_are(tmp_path)
    assert taken == {7000, 6999, 7411, 7413, 7661, 7415}
    offered = []
    own_ports(0, taken, lambda numbers: offered.append(list(numbers)) or numbers[0])
    assert offered[0] == list(range(2, GRAPH_PORTS))
    assert offered[1] == list(range(6, 2 * TOPIC_PORTS, 2))
    assert own_ports(0, range(65536), max) == own_ports(0, choose=max), 'with none left, any'


def test_the_profile_of_a_node_is_that_of_all_but_for_its_ports():
    node = Path(OURS).with_name('fastdds_node.xml').read_text(encoding='utf-8')
    variables = own_ports(0)
    assert re.findall(r'\$\{(.+?)\}', node) == list(variables)
    content = re.compile(r'<!--.*?-->', re.S)
    without = re.sub(r' *<port>.*?</port>\n', '', node, flags=re.S)
    assert content.sub('', without) == content.sub('', Path(OURS).read_text(encoding='utf-8'))


PORTS_OF_A_NODE = """
import os
import rclpy
from edge_resnet.transport import use_ports_of_its_own
use_ports_of_its_own()
rclpy.init()
node = rclpy.create_node('ports')
ports = sorted({int(line.split('_port')[1]) for line in open('/proc/self/maps') if 'fastrtps_port' in line and 'mutex' not in line})
print(*ports, os.environ.get('EDGE_RESNET_PORT_BASE', 0), os.environ.get('EDGE_RESNET_PORT_OFFSET3', 0))
"""


def ports_of_a_node(profile: str) -> list[int]:
    """Its port for the graph and for topics, the base and the offset of the latter."""
    child = subprocess.run([sys.executable, '-c', PORTS_OF_A_NODE], check=True, capture_output=True, text=True, timeout=60,
                           env={**os.environ, **dict.fromkeys(PROFILE_NAMES, profile)})
    return [int(text) for text in child.stdout.split()]


def test_a_node_takes_the_first_free_ports_from_its_numbers_on():
    domain = 250 * int(os.environ['ROS_DOMAIN_ID'])
    graph, topics, base, offset = ports_of_a_node(OURS)
    assert 7400 - GRAPH_PORTS < base <= 7400
    assert base - 400 <= graph < base
    assert base + domain + offset <= topics < 7411 + domain + 2 * 119


def test_a_users_profile_keeps_its_ports(tmp_path):
    (mine := tmp_path / 'fastdds.xml').write_text(Path(OURS).read_text(encoding='utf-8'), encoding='utf-8')
    assert ports_of_a_node(str(mine))[2:] == [0, 0]


# Ports of the dead

def is_free(path: Path) -> bool:
    """As Fast DDS asks whether a port is abandoned."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def descriptors() -> int:
    return len(os.listdir('/proc/self/fd'))


def wait_for(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_port_whose_process_is_dead_is_held_and_then_removed(tmp_path):
    ports, before = DeadPorts(tmp_path), descriptors()
    (port := tmp_path / 'fastrtps_port7413').touch()
    (lock := tmp_path / 'fastrtps_port7413_el').touch()
    ports.hold(0.3)
    assert not is_free(lock)
    ports.hold(0.3)
    assert descriptors() == before + 1, 'once'
    wait_for(lambda: not lock.exists())
    assert not port.exists()
    wait_for(lambda: descriptors() == before)


def test_what_another_launcher_holds_is_left_to_it(tmp_path):
    ports, other = DeadPorts(tmp_path), DeadPorts(tmp_path)
    (lock := tmp_path / 'fastdds_port7413_el').touch()
    before = descriptors()
    ports.hold(0.05)
    other.hold(0.6)
    wait_for(lambda: descriptors() == before + 1)
    assert not is_free(lock)
    wait_for(lambda: not lock.exists())


def test_a_new_lock_under_the_number_of_a_dead_one_is_left_alone(tmp_path):
    ports = DeadPorts(tmp_path)
    (lock := tmp_path / 'fastrtps_port7413_el').touch()
    before = descriptors()
    ports.hold(0.05)
    lock.rename(tmp_path / 'old')
    lock.touch()
    wait_for(lambda: descriptors() == before)
    assert lock.exists()


def test_ports_of_the_living_those_abandoned_before_and_other_files_are_left_alone(tmp_path):
    (abandoned := tmp_path / 'fastrtps_port7411_el').touch()
    ports = DeadPorts(tmp_path)
    (living := tmp_path / 'fastrtps_port7413_el').touch()
    (segment := tmp_path / 'fastrtps_0123456789abcdef_el').touch()
    (tmp_path / 'fastrtps_port7415_el').mkdir()
    (tmp_path / 'fastrtps_port7417_el').symlink_to('nowhere')
    before = descriptors()
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ports.hold()
    assert descriptors() == before
    assert all(map(is_free, (abandoned, living, segment)))


def test_a_machine_without_such_a_folder(tmp_path):
    DeadPorts(tmp_path / 'none').hold(0.01)
