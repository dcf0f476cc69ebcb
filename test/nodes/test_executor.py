"""The executor: what is heard while services are at work, when events are looked for, what ends."""

import threading
import time
from types import SimpleNamespace

import pytest
import rclpy
from bench import image_message, wait_for
from builtin_interfaces.msg import Duration
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Bool
from std_srvs.srv import SetBool
from test_frames import inference
from vision_msgs.msg import Classification

from edge_resnet.nodes import executor as executor_module
from edge_resnet.nodes.actuator_node import ActuatorNode
from edge_resnet.nodes.frames import BEST_EFFORT_QOS


@pytest.fixture
def at_work(bench):
    """A node that listens to ``heard``, and whose service ``work`` takes until it is let go."""
    began, let_go, heard = threading.Event(), threading.Event(), []

    def work(request, response):
        began.set()
        let_go.wait(10.0)
        return response

    node = bench.spin(rclpy.create_node('worker'))
    node.create_service(SetBool, 'work', work)
    node.create_subscription(Bool, 'heard', heard.append, 1)
    client = bench.probe.create_client(SetBool, 'work')
    assert client.wait_for_service(10.0)
    yield SimpleNamespace(node=node, began=began, let_go=let_go, heard=heard, client=client, executor=node.executor)
    let_go.set()


def test_a_message_that_comes_while_a_service_is_at_work_is_heard_with_no_other_after_it(bench, at_work):
    publisher = bench.publisher(Bool, 'heard', 1)
    answer = at_work.client.call_async(SetBool.Request())
    assert at_work.began.wait(10.0)
    at_work.executor._woken.trigger()  # so that the other thread looks at what it has to wait for
    time.sleep(0.2)
    publisher.publish(Bool(data=True))
    wait_for(lambda: at_work.heard, 'the message', 5.0)
    at_work.let_go.set()
    wait_for(answer.done, 'the answer')


def test_no_service_is_served_once_the_end_has_begun(bench, at_work):
    at_work.executor.closing = True
    answer = at_work.client.call_async(SetBool.Request())
    wait_for(lambda: not at_work.executor._attending.is_alive(), 'the end of the thread')
    assert not at_work.began.is_set()
    assert not answer.done()


def test_a_publisher_that_offers_less_is_met_at_once_though_events_are_looked_for_seldom(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(executor_module, 'ATTENDS_S', 3600.0)
    node = bench.start(ActuatorNode, state_file=str(tmp_path / 'state'))
    time.sleep(0.5)  # the first look is over
    bench.probe.create_publisher(Classification, 'classification', qos_profile_sensor_data)
    wait_for(lambda: node._input.qos_conflict, 'the event', 5.0)


def test_a_thread_that_waits_for_frames_has_events_looked_for_too(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(executor_module, 'ATTENDS_S', 3600.0)
    node = inference(bench, paper_bundle)
    time.sleep(0.5)
    bench.probe.create_publisher(Image, 'image_preprocessed', qos_profile_sensor_data)
    wait_for(lambda: node._input.qos_conflict, 'the event', 5.0)


def test_what_is_asked_for_later_is_not_asked_for_again_before(bench, paper_bundle):
    node = inference(bench, paper_bundle)
    requests = bench.listen(Duration, 'image_preprocessed/request', BEST_EFFORT_QOS)
    wait_for(lambda: len(requests) > 2, 'requests, again and again')
    node._governor = SimpleNamespace(allows=lambda: False, rest_s=lambda: 30.0, share=1.0, held_back=0)
    bench.publisher(Image, 'image_preprocessed').publish(image_message())
    wait_for(lambda: requests[-1].sec >= 29, 'the rest')
    time.sleep(1.0)
    assert requests[-1].sec >= 29
