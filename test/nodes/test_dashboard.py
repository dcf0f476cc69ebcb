"""The dashboard's ROS side: nothing for nobody, one picture for all, orders that reach the actuator."""

import base64
import http.client
import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from bench import image_bytes, wait_for
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, Header
from std_srvs.srv import SetBool
from test_demand_flow import Chain, publish_only
from vision_msgs.msg import Classification

pytest.importorskip('aiohttp')

from edge_resnet.conversions import Results, write_results
from edge_resnet.nodes import dashboard_node
from edge_resnet.nodes.actuator_node import ActuatorNode
from edge_resnet.nodes.dashboard_node import MAX_PICTURE_PX, DashboardNode
from edge_resnet.pipeline.postprocessing import Score
from edge_resnet.web import server


def header(stamp_ns):
    message = Header()
    message.stamp.nanosec = stamp_ns
    return message


class Page:
    """What a browser would hold: the token, and an open stream of events."""

    def __init__(self, node):
        self.port = node._server._runner.addresses[0][1]
        self.token = re.search('content="(.*?)"', self.ask('GET', '/')[1].split('name="token"')[1])[1]
        self.connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=20)
        self.connection.request('GET', '/events')
        self.response = self.connection.getresponse()

    def ask(self, method, path, **headers):
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=20)
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def order(self, name):
        return self.ask('POST', f'/{name}', **{'X-Token': self.token, 'X-Seen': str(time.monotonic())})

    def event(self, accepts=lambda event: True):
        """The next event that ``accepts`` likes."""
        while True:
            line = self.response.readline()
            assert line, 'the stream has ended'
            if line.startswith(b'data: ') and accepts(event := json.loads(line[6:])):
                return event

    def close(self):
        self.response.close()
        self.connection.close()


@pytest.fixture
def dashboard(bench):
    return bench.start(DashboardNode, port=0)


def test_no_picture_is_taken_while_no_page_is_open(bench, dashboard):
    def subscribers():
        return bench.probe.count_subscribers('image_preprocessed')

    wait_for(lambda: bench.probe.count_subscribers('classification'), 'the node in the graph')
    assert subscribers() == 0
    first, second = Page(dashboard), Page(dashboard)
    wait_for(lambda: subscribers() == 1, 'one subscription for both')
    first.close()
    second.event()
    assert subscribers() == 1
    second.close()
    wait_for(lambda: subscribers() == 0, 'no subscription')
    assert dashboard.counts['pictures'] == 0


def test_a_picture_is_encoded_once_for_all_pages_and_small(bench, dashboard):
    cv2 = pytest.importorskip('cv2')
    pages = [Page(dashboard) for _ in range(3)]
    images = bench.publisher(Image, 'image_preprocessed')
    images.publish(image_bytes(1, np.full((600, 900, 3), (200, 60, 20), np.uint8)))
    pictures = {page.event(lambda event: event['picture'])['picture'] for page in pages}
    assert (len(pictures), dashboard.counts['pictures']) == (1, 1)
    kind, data = pictures.pop().split(',')
    assert kind == 'data:image/jpeg;base64'
    image = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert image.shape == (320, MAX_PICTURE_PX, 3)
    assert np.abs(image[100, 100].astype(int) - (20, 60, 200)).max() < 8, 'red stays red'
    assert pages[0].event()['picture'] is None, 'it is sent once'
    images.publish(b'\0\1\0\0 no image')
    wait_for(lambda: dashboard.counts['errors'] == 1, 'a fault')
    assert pages[0].event(), 'and the node lives'


def test_the_picture_is_the_one_that_the_label_is_of(bench, dashboard, monkeypatch):
    cv2 = pytest.importorskip('cv2')
    monkeypatch.setattr(dashboard_node, 'RESULT_PATIENCE_S', 1e9)
    page = Page(dashboard)
    images, results = bench.publisher(Image, 'image_preprocessed'), bench.publisher(Classification, 'classification')
    results.publish(write_results(Results(header(1), [Score('grey', 1.0)])))
    page.event(lambda event: event['result']['top'])
    for stamp_ns in (20, 30, 40):
        images.publish(image_bytes(stamp_ns, np.full((48, 64, 3), 5 * stamp_ns, np.uint8)))
        time.sleep(0.05)
    results.publish(write_results(Results(header(30), [Score('brighter', 1.0)])))
    event = page.event(lambda event: event['picture'])
    assert event['result']['top'][0][0] == 'brighter'
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(event['picture'].split(',')[1]), np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(pixels.astype(int) - 150).max() < 8


@pytest.mark.parametrize('shared', [True, False], ids=['handed over', 'published'])
def test_a_page_sees_what_the_model_sees_and_gives_nobody_work(bench, request, paper_bundle, monkeypatch, shared):
    if not shared:
        publish_only(monkeypatch)
    dashboard, chain = request.getfixturevalue('dashboard'), Chain(bench, paper_bundle)
    wait_for(lambda: len(chain.results) > 3, 'results')
    page = Page(dashboard)
    page.event(lambda event: event['picture'])

    def rest():  # on a machine that is busy with something else, frames may come late and be asked for again
        pictures = dashboard.counts['pictures']
        captured, published, preprocessed, results = chain.during(4)
        now_s = time.monotonic() - dashboard._state._begun
        assert page.event(lambda event: event['t'] > now_s), 'it is open all the time'
        return captured > 3 * results and max(published, preprocessed) <= results + 1 and dashboard.counts['pictures'] > pictures

    wait_for(rest, 'rest', 60.0)
    client = bench.probe.create_client(SetBool, 'inference/enable')
    assert client.wait_for_service(10.0)
    wait_for(client.call_async(SetBool.Request(data=False)).done, 'the answer')
    pictures = dashboard.counts['pictures']
    wait_for(lambda: dashboard.counts['pictures'] > pictures + 5, 'pictures without a model')
    page.close()


def test_stop_and_arm_reach_the_actuator(bench, dashboard, tmp_path):
    page = Page(dashboard)
    assert page.order('stop') == (503, 'there is no actuator node')
    actuator = bench.start(ActuatorNode, state_file=str(tmp_path / 'state'))
    wait_for(dashboard._arm.service_is_ready, 'the service')
    assert page.order('stop') == (200, 'not armed')
    wait_for(lambda: actuator._gate.stopped, 'the emergency stop')
    event = page.event(lambda event: event['actuator']['stopped'] == 1)
    assert (event['actuator']['armed'], event['actuator']['on']) == (0, False)
    assert page.order('arm') == (200, 'armed, waiting for a result')
    page.event(lambda event: event['actuator']['armed'] == 1)
    time.sleep(1.0)
    assert actuator._gate.armed, 'no stop comes late'
    assert page.order('disarm') == (200, 'not armed')
    assert not actuator._gate.armed


def test_a_stop_is_said_again_and_an_actuator_that_hangs_is_told_of(bench, dashboard, monkeypatch):
    monkeypatch.setattr(server, 'ANSWER_S', 0.5)
    heard = bench.listen(Bool, 'emergency_stop', QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT))
    monkeypatch.setattr(dashboard, '_arm', SimpleNamespace(service_is_ready=lambda: True, call_async=lambda request: Future()))
    wait_for(lambda: dashboard._emergency_stop.get_subscription_count(), 'a listener')
    assert Page(dashboard).order('stop') == (504, 'the actuator does not answer')
    wait_for(lambda: len(heard) == 4, 'the stop, four times')
    assert all(message.data for message in heard)


def test_an_actuator_that_hung_does_not_stay_armed_when_nobody_waits_any_more(dashboard, monkeypatch):
    monkeypatch.setattr(server, 'ANSWER_S', 0.2)
    asked = []
    monkeypatch.setattr(dashboard, '_arm', SimpleNamespace(
        service_is_ready=lambda: True, call_async=lambda request: asked.append((request.data, Future())) or asked[-1][1]))
    page = Page(dashboard)
    for order in ('disarm', 'arm'):
        assert page.order(order) == (504, 'the actuator does not answer')
    for _, call in asked[:]:
        call.set_result(SetBool.Response(success=True, message='done'))
    assert [data for data, _ in asked] == [False, True, False]


def test_what_is_missing_is_named(bench, monkeypatch):
    from edge_resnet.exceptions import BackendError

    def missing():
        raise BackendError('the dashboard needs plotly: ...')

    monkeypatch.setattr(server, 'find_plotly', missing)
    node = bench.make(DashboardNode, port=0)
    node.trigger_configure()
    assert node.failure == 'the dashboard needs plotly: ...'
    monkeypatch.setitem(__import__('sys').modules, 'edge_resnet.web.server', None)
    node.trigger_configure()
    assert node.failure.startswith('the dashboard needs edge_resnet.web.server'), 'as it names aiohttp when that is not there'
    node.destroy_node()


def test_a_taken_port_and_going_round_the_lifecycle(bench, dashboard):
    port = dashboard._server._runner.addresses[0][1]
    other = bench.make(DashboardNode, port=port)
    other.trigger_configure()
    other.trigger_activate()
    assert f"can't listen on 127.0.0.1 port {port}: " in other.failure
    assert not other.active
    dashboard.trigger_deactivate()
    other.trigger_activate()
    assert other.active, other.failure
    other.trigger_deactivate()
    other.trigger_activate()
    assert other.active, 'again'
    other.make_safe()
    other.destroy_node()
