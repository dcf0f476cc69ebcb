"""Parameters: declared in one place, described, checked by name and bound, fixed when they have to be."""

import dataclasses

import pytest
import rclpy
import yaml

from edge_resnet.deployment import NODES
from edge_resnet.exceptions import ParameterError
from edge_resnet.nodes.parameters import default_of
from edge_resnet.nodes.pipeline import factory
from edge_resnet.nodes.runner import unknown_parameters


@pytest.mark.parametrize('name', NODES)
def test_yaml_has_every_parameter_with_its_default(name, root):
    text = (root / 'config' / 'pipeline.yaml').read_text()
    given = yaml.safe_load(text)[f'/**/{name}']['ros__parameters']
    declared = {entry.name: default_of(entry) for entry in dataclasses.fields(factory(name).Parameters)}
    assert given == {key: value for key, value in declared.items() if value != []}, "an empty list can't be written in a parameter file"
    assert list(yaml.safe_load(text)) == [f'/**/{node}' for node in NODES]
    for key in declared:
        assert f'{key}:' in text


@pytest.mark.parametrize('name', NODES)
def test_every_parameter_is_described_and_numbers_have_a_range(name, bench):
    node = bench.make(factory(name))
    for entry in dataclasses.fields(node.Parameters):
        described = node.describe_parameter(entry.name)
        assert described.description
        if type(default_of(entry)) in (int, float):
            assert described.integer_range or described.floating_point_range, entry.name
    node.destroy_node()


@pytest.mark.parametrize(('name', 'parameters', 'message'), [
    ('camera', {'framerate': 1000.0}, 'framerate is 1000.0, expected 0.1 to 240.0'),
    ('camera', {'framerate': float('nan')}, 'framerate is nan, expected 0.1 to 240.0'),
    ('camera', {'framerate': 'fast'}, "framerate is 'fast', expected a number"),
    ('camera', {'image_width': 8}, 'image_width is 8, expected 16 to 8192'),
    ('camera', {'loop': 1}, 'loop is 1, expected true or false'),
    ('camera', {'flip': 'sideways'}, "flip is 'sideways', expected one of none, horizontal, vertical, both"),
    ('preprocess', {'resize': 'squash'}, "resize is 'squash', expected one of , stretch, center_crop, letterbox"),
    ('preprocess', {'mean': 'grey'}, "mean is 'grey', expected a list of numbers"),
    ('preprocess', {'mean': 127.5}, 'mean is 127.5, expected a list of numbers'),
    ('preprocess', {'mean': 0}, 'mean is 0, expected a list of numbers'),
    ('preprocess', {'mean': ['127']}, "mean is ['127'], expected a list of numbers"),
    ('preprocess', {'mean': [True]}, 'mean is [True], expected a list of numbers'),
    ('inference', {'num_threads': 0}, 'num_threads is 0, expected 1 to 64'),
    ('inference', {'runtime': 'onnx'}, "runtime is 'onnx', expected one of auto, litert, tflite_runtime"),
    ('actuator', {'gpio_pin': 99}, 'gpio_pin is 99, expected 0 to 27'),
    ('actuator', {'on_threshold': 1.5}, 'on_threshold is 1.5, expected 0.0 to 1.0'),
    ('thermal_monitor', {'temp_warn_c': 90.0}, 'temp_warn_c is 90.0 and temp_error_c 80.0, expected warn <= error'),
])
def test_bad_value_is_refused_by_name_value_and_bound(bench, name, parameters, message):
    with pytest.raises(ParameterError) as refusal:
        bench.make(factory(name), **parameters)
    assert str(refusal.value) == f'{name}: {message}'


def test_whole_numbers_pass_for_numbers_and_device_numbers_for_a_source(bench):
    node = bench.make(factory('camera'), framerate=15, source=2)
    assert (node.parameters.framerate, node.parameters.source) == (15.0, '2')
    assert node.get_parameter('framerate').value == 15.0
    node.destroy_node()


@pytest.mark.parametrize(('given', 'values'), [({}, []), ({'mean': []}, []), ({'mean': [127, 0, 1]}, [127.0, 0.0, 1.0]), ({'mean': [0.5]}, [0.5])])
def test_a_list_is_one_of_numbers_even_when_it_is_empty(bench, given, values):
    node = bench.make(factory('preprocess'), **given)
    assert node.parameters.mean == values
    found = node.get_parameter('mean')
    assert (found.type_, list(found.value)) == (rclpy.Parameter.Type.DOUBLE_ARRAY, values)
    described = node.describe_parameter('mean')
    assert (described.read_only, described.type) == (True, rclpy.Parameter.Type.DOUBLE_ARRAY.value)
    assert not node.set_parameters([rclpy.Parameter('mean', value=[1.0])])[0].successful
    node.destroy_node()


def test_a_misspelt_parameter_is_told_by_each_node_that_it_was_given_to(bench):
    """-p gives every composed node all of them; a section of the file only its own."""
    camera = bench.make(factory('camera'), source='synthetic', speling=1)
    actuator = bench.make(factory('actuator'), source='x', on_treshold=0.9, speling=1)
    assert sorted(unknown_parameters([camera, actuator])) == [
        'actuator: unknown parameter on_treshold: ignored', 'camera, actuator: unknown parameter speling: ignored']
    assert 'actuator: unknown parameter source: ignored' in unknown_parameters([actuator])
    camera.destroy_node()
    actuator.destroy_node()


def test_when_a_parameter_may_change(bench, paper_bundle):
    node = bench.make(lambda **options: factory('inference')(lambda *_: FakeClassifier(), **options), model=str(paper_bundle))

    def set_(name, value):
        return node.set_parameters([rclpy.Parameter(name, value=value)])[0]

    assert not set_('model', 'other').successful, 'read-only from the start'
    assert set_('num_threads', 2).successful
    assert node.parameters.num_threads == 2
    node.trigger_configure()
    refused = set_('num_threads', 3)
    assert not refused.successful
    assert 'num_threads is read at configure' in refused.reason
    assert set_('max_results', 1).successful, 'live'
    assert node.parameters.max_results == 1
    refused = set_('score_threshold', 1.5)
    assert not refused.successful
    assert 'score_threshold' in refused.reason
    assert '1.5' in refused.reason
    node.destroy_node()


class FakeClassifier:
    runtime, input_dtype = 'fake', 'int8'

    def warm_up(self):
        pass
