"""The line of make run."""

from bench import wait_for
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from std_msgs.msg import Bool
from vision_msgs.msg import Classification, ObjectHypothesis

from edge_resnet.nodes import console_node
from edge_resnet.nodes.base import LATCHED_QOS, RECORD_QOS
from edge_resnet.nodes.console_node import DROPS, ConsoleNode
from edge_resnet.pipeline.latency import FrameLatency


def test_results_whose_frames_never_reached_the_actuator_are_told_as_that(bench, capsys):
    """The camera or the actuator is not there, or on another clock: no latency is known, but that and the label are told."""
    bench.start(ConsoleNode, period_s=0.2)
    feed = bench.publisher(Classification, 'classification')
    printed = ''

    def told(text):
        nonlocal printed
        printed += capsys.readouterr().out
        return text in printed

    feed.publish(Classification(results=[ObjectHypothesis(class_id='red', score=0.75)]))
    wait_for(lambda: told('red 0.75 | no frame has come from the camera to the actuator yet'), 'the line')
    feed.publish(Classification())
    wait_for(lambda: told('nothing 0.00 | no frame'), 'the line without a result')
    assert printed.startswith('first classification: red 0.75')


def test_the_drops_are_of_its_own_pipeline(bench):
    node = bench.start(ConsoleNode, period_s=60.0)
    health = bench.publisher(DiagnosticArray, '/diagnostics', RECORD_QOS)
    key = next(iter(DROPS))
    for name, count in (('robot2/preprocess', 7), ('preprocess', 3)):
        health.publish(DiagnosticArray(status=[DiagnosticStatus(name=name, values=[KeyValue(key=key, value=str(count))])]))

    def dropped():
        node._poll()
        return node._dropped

    assert wait_for(dropped, 'a count') == {f'preprocess {key}': 3}


def test_an_actuator_that_says_nothing_is_not_told_as_on(bench, capsys, monkeypatch):
    monkeypatch.setattr(console_node, 'SILENT_S', 1.0)
    node = bench.start(ConsoleNode, period_s=0.2)
    state, feed = bench.publisher(Bool, 'actuator/state', LATCHED_QOS), bench.publisher(Classification, 'classification')
    node._joiner.recent.append(FrameLatency(0, *[1.0] * 12))
    printed = ''

    def told(text):
        nonlocal printed
        printed += capsys.readouterr().out
        return text in printed

    state.publish(Bool(data=True))
    feed.publish(Classification(results=[ObjectHypothesis(class_id='red', score=0.75)]))
    wait_for(lambda: told('actuator ON'), 'ON')
    wait_for(lambda: told('actuator silent, was ON'), 'silence')
    state.publish(Bool(data=False))
    wait_for(lambda: told('actuator off'), 'OFF')
