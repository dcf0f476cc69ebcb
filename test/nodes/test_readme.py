"""The README's tables against the code."""

import contextlib
import dataclasses
import re

import pytest
from bench import wait_for

from edge_resnet.deployment import ARGUMENTS, NODES
from edge_resnet.nodes.parameters import default_of
from edge_resnet.nodes.pipeline import factory


def rows(text):
    """The table rows of ``text`` as lists of cells, without backquotes."""
    return [[cell.strip().strip('`') for cell in line.strip('|').split('|')] for line in text.splitlines()
            if line.startswith('|') and not line.startswith('|--')]


def section(readme, title):
    return re.split(r'^(?:#+ .*|\*\*.*\*\*)$', readme.split(title, 1)[1], maxsplit=1, flags=re.M)[0]


@pytest.fixture
def readme(root):
    return (root / 'README.md').read_text()


def shown(value):
    return str(value).lower() if isinstance(value, bool) else '""' if value == '' else str(value)


def test_launch_arguments(readme):
    table = rows(section(readme, '### Launch arguments\n'))[1:]
    assert table == [[argument.name, shown(argument.default), argument.description] for argument in ARGUMENTS]


@pytest.mark.parametrize('name', NODES)
def test_parameters(readme, name):
    table = rows(section(readme, f'**{name}**\n'))[1:]
    fields = dataclasses.fields(factory(name).Parameters)
    assert [row[:2] for row in table] == [[entry.name, shown(default_of(entry))] for entry in fields]
    for row, entry in zip(table, fields, strict=True):
        assert row[2].startswith(entry.metadata['description'])
        assert ('read-only' in row[2], '(live)' in row[2]) == (entry.metadata['read_only'], entry.metadata['live'])


OWN_NAMES = ('/actuator/arm', '/actuator/state', '/inference/enable')
NAMESPACE = '/documented'  # of these nodes alone: the graph still holds nodes of earlier tests for a while, by the same names


def in_graph(node, name):
    """(topic or service, type, node) of what ``name`` offers and takes, parameter and lifecycle services left out."""
    kinds = [*node.get_publisher_names_and_types_by_node(name, NAMESPACE), *node.get_subscriber_names_and_types_by_node(name, NAMESPACE),
             *node.get_service_names_and_types_by_node(name, NAMESPACE)]
    names = [(topic.removeprefix(NAMESPACE), types[0]) for topic, types in kinds]
    return {(topic, kind, name) for topic, kind in names
            if topic not in ('/rosout', '/parameter_events') and (not topic.startswith(f'/{name}/') or topic in OWN_NAMES)}


def test_topics_and_services(readme, bench):
    nodes = {name: bench.spin(factory(name)(namespace=NAMESPACE)) for name in NODES}
    for node in nodes.values():
        node.trigger_configure()
        node.trigger_activate()
    table = rows(section(readme, '### Topics and services\n'))[1:]
    documented = {(topic if topic.startswith('/') else '/' + topic, kind) for topic, kind, *_ in table}

    def found():
        return {entry for name, node in nodes.items() for entry in in_graph(node, name)}

    with contextlib.suppress(AssertionError):  # the graph is known some time after it is made; what is missing then, the next line tells
        wait_for(lambda: documented <= {entry[:2] for entry in found()}, 'the graph')
    own = found()
    assert documented == {entry[:2] for entry in own}
    for topic, kind, node, _ in table:
        where = {entry[2] for entry in own if entry[0].lstrip('/') == topic.lstrip('/') and entry[1] == kind}
        assert where == set(NODES) if node == 'every node' else node in where


def test_encodings(readme):
    from edge_resnet.conversions import ENCODINGS

    sentence = re.search(r'Any of (.*?) will do', readme, re.S)[1]
    assert re.findall(r'\w+\d\w*|uyvy|yuyv', sentence.replace('`', '')) == list(ENCODINGS)
