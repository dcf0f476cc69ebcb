"""The SROS2 policy allows what the running nodes use and nothing else."""

import runpy
from xml.etree import ElementTree

import pytest

from edge_resnet.deployment import ENCLAVES, NODES, plan


@pytest.fixture(scope='module')
def script():
    pytest.importorskip('rclpy')
    from pathlib import Path

    return runpy.run_path(str(Path(__file__).parents[2] / 'scripts' / 'security_policy.py'))


def test_the_policy_is_that_of_the_graph(script, root):
    """When it is not: python scripts/security_policy.py > config/security/policy.xml, and look at what has become possible."""
    assert script['policy'](script['of_the_graph']()) == (root / 'config' / 'security' / 'policy.xml').read_text()


def test_least_privilege(root):
    tree = ElementTree.parse(root / 'config' / 'security' / 'policy.xml')
    enclaves = {enclave.get('path'): enclave for enclave in tree.iter('enclave')}
    assert set(enclaves) == {f'{ENCLAVES}/{node}' for node in NODES}

    def who(kind: str, verb: str, topic: str) -> set[str]:
        return {path.rpartition('/')[2] for path, enclave in enclaves.items() for group in enclave.iter(f'{kind}s') if group.get(verb) == 'ALLOW'
                for entry in group if entry.text == topic}

    assert who('topic', 'publish', 'image_raw') == {'camera'}
    assert who('topic', 'publish', 'classification') == {'inference'}
    assert who('topic', 'publish', 'image_raw/memory') == who('topic', 'publish', 'image_raw/shared') == {'camera'}
    assert who('topic', 'subscribe', 'image_raw/shared') == {'preprocess'}
    assert who('topic', 'publish', '~/state') == {'actuator'}
    assert who('topic', 'publish', 'emergency_stop') == {'dashboard'}
    assert who('topic', 'subscribe', 'classification') >= {'actuator'}
    assert not [entry.text for entry in tree.iter('topic') if '*' in entry.text]


def test_every_process_is_told_its_enclave():
    for executable, arguments in {**plan({}).executables, **plan({'composed': 'true'}).executables}.items():
        assert arguments[arguments.index('--enclave') + 1] == f'{ENCLAVES}/{executable.removesuffix("_node")}'
