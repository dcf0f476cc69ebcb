"""The files for rviz, Foxglove and diagnostic_aggregator, and the README's rqt_plot line, against the nodes as they are."""

import json
import re
from importlib import import_module

import yaml
from bench import wait_for
from diagnostic_msgs.msg import DiagnosticArray

from edge_resnet.deployment import NODES, STARTED
from edge_resnet.nodes.pipeline import factory


def check(bench, paths):
    """Each ``path`` is a topic of the nodes, with the fields of its message behind a dot."""
    for name in NODES:
        bench.spin(factory(name)())
    topics = {path.split('.')[0] for path in paths}
    wait_for(lambda: topics <= {name for name, _ in bench.probe.get_topic_names_and_types()}, f'{topics} in the graph')
    types = dict(bench.probe.get_topic_names_and_types())
    for path in paths:
        topic, *fields = re.sub(r'\[.*?\]', '', path).split('.')
        package, _, kind = types[topic][0].split('/')
        message = getattr(import_module(f'{package}.msg'), kind)()
        for field in fields:
            message = getattr(message, field)


def test_rviz(bench, root):
    displays = yaml.safe_load((root / 'config' / 'edge_resnet.rviz').read_text())['Visualization Manager']['Displays']
    assert {display['Class'] for display in displays} == {'rviz_default_plugins/Image'}
    check(bench, [display['Topic']['Value'] for display in displays])


def test_foxglove(bench, root):
    content = json.loads((root / 'config' / 'foxglove.json').read_text())

    def panels(tree):
        return [tree] if isinstance(tree, str) else [*panels(tree['first']), *panels(tree['second'])]

    assert sorted(panels(content['layout'])) == sorted(content['configById']), 'each panel has its place'
    configs = content['configById']
    paths = [configs['Image!overlay']['imageMode']['imageTopic'], configs['RawMessages!classification']['topicPath'],
             configs['DiagnosticSummary!nodes']['topicToRender'], configs['Publish!stop']['topicName']]
    check(bench, [*paths, *(path['value'] for name in ('Plot!latency', 'Plot!heat') for path in configs[name]['paths'])])
    assert json.loads(configs['Publish!stop']['value']) == {'data': True}


def test_rqt_plot_of_the_readme(bench, root):
    line = re.search(r'`rqt_plot (.*?)`', (root / 'README.md').read_text())[1]
    check(bench, ['.'.join(argument.rsplit('/', 1)) for argument in line.split()])


def test_every_node_has_its_place_in_the_aggregator(bench, root):
    heard = bench.listen(DiagnosticArray, '/diagnostics')
    for name in NODES:
        bench.spin(factory(name)())
    wait_for(lambda: {array.status[0].name for array in heard} >= set(NODES), 'a diagnostic of every node')
    given = yaml.safe_load((root / 'config' / 'diagnostics.yaml').read_text())['analyzers']['ros__parameters']
    analyzers = [value for value in given.values() if isinstance(value, dict)]
    for name in {array.status[0].name for array in heard}:
        assert sum(any(text in name for text in analyzer['contains']) for analyzer in analyzers) == 1, name
    assert {name for analyzer in analyzers for name in analyzer.get('expected', [])} == set(STARTED)
