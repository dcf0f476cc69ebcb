"""edge_resnet.transport: the profile Fast DDS reads, ports of their own, and ports of the dead."""

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edge_resnet.pipeline.bundle import find_shared
from edge_resnet.transport import GRAPH_PORTS, HOLD_S, PROFILE_NAMES, TOPIC_PORTS, DeadPorts, _ports_there_are, own_ports, transport_environment

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
    assert own_ports(0, range(65536)) == own_ports(0, choose=lambda numbers: numbers[0]), 'with none left, where Fast DDS begins to look'


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
print(*sorted({int(line.split('_port')[1]) for line in open('/proc/self/maps') if '_port' in line}))
"""


def ports_of_a_node(**environment: str) -> list[int]:
    child = subprocess.run([sys.executable, '-c', PORTS_OF_A_NODE], check=True, capture_output=True, text=True, timeout=60,
                           env={**os.environ, **environment})
    assert 'rror' not in child.stdout + child.stderr
    return [int(text) for text in child.stdout.split()]


def test_nodes_have_different_ports_each_time():
    first = 7411 + 250 * int(os.environ['ROS_DOMAIN_ID'])
    graph, topics = zip(*(ports_of_a_node(**dict.fromkeys(PROFILE_NAMES, OURS)) for _ in range(4)), strict=False)
    for ports in (graph, topics):
        assert len(set(ports)) > 1, 'one in a hundred thousand tries has this by chance'
    assert all(7400 - 400 - GRAPH_PORTS < port < 7400 for port in graph)
    assert all(first <= port < first + 239 for port in topics)


def test_a_users_profile_keeps_its_ports(tmp_path):
    (mine := tmp_path / 'fastdds.xml').write_text(Path(OURS).read_text(encoding='utf-8'), encoding='utf-8')
    _, topics = ports_of_a_node(**dict.fromkeys(PROFILE_NAMES, str(mine)))
    busy = 2 * 16  # by other nodes of this domain
    assert (7411 + 250 * int(os.environ['ROS_DOMAIN_ID'])) <= topics < 7411 + 250 * int(os.environ['ROS_DOMAIN_ID']) + busy


# Ports of the dead

def is_free(path: Path) -> bool:
    """As Fast DDS asks whether a port is abandoned."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


@pytest.fixture
def dead(tmp_path):
    ports = DeadPorts(tmp_path, lambda: ports.now_s)
    ports.now_s = 100.0
    return ports


def test_a_port_whose_process_is_dead_is_held_until_all_have_forgotten_it(tmp_path, dead):
    (port := tmp_path / 'fastrtps_port7413_el').touch()
    dead.hold()
    assert not is_free(port)
    dead.now_s += HOLD_S - 1
    dead.hold()
    assert not is_free(port)
    port.unlink()
    port.touch()  # by Fast DDS, which takes it for abandoned now and then: another file under its name
    dead.now_s += 2
    dead.hold()
    assert not is_free(port), 'of one that died since'
    port.unlink()
    dead.now_s += HOLD_S + 1
    before = len(os.listdir('/proc/self/fd'))
    dead.hold()
    assert len(os.listdir('/proc/self/fd')) == before - 1


def test_two_launchers_hold_one_port(tmp_path, dead):
    (port := tmp_path / 'fastdds_port7413_el').touch()
    other = DeadPorts(tmp_path)
    dead.hold()
    other.hold()
    dead.now_s += HOLD_S + 1
    port.rename(tmp_path / 'elsewhere')
    dead.hold()
    assert not is_free(tmp_path / 'elsewhere')


def test_ports_of_the_living_and_other_files_are_left_alone(tmp_path, dead):
    (living := tmp_path / 'fastrtps_port7411_el').touch()
    (segment := tmp_path / 'fastrtps_0123456789abcdef_el').touch()
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        dead.hold()
    assert is_free(living)
    assert is_free(segment)
    (tmp_path / 'fastrtps_port7415_el').mkdir()
    (tmp_path / 'fastrtps_port7417_el').symlink_to('nowhere')
    dead.hold()
