"""Only frames that are asked for are published and preprocessed, and inside one process they are handed over as they are."""

import threading
import time
from itertools import pairwise

import cv2
import numpy as np
import pytest
import rclpy
from bench import image_message, wait_for
from builtin_interfaces.msg import Duration
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, UInt64MultiArray
from std_srvs.srv import SetBool
from test_frames import FakeClassifier
from vision_msgs.msg import Classification

from edge_resnet.conversions import stamp_ns
from edge_resnet.exceptions import ImageError
from edge_resnet.nodes import frames, inference_node, inputs, places
from edge_resnet.nodes.base import OK, Health
from edge_resnet.nodes.camera_node import CameraNode
from edge_resnet.nodes.executor import LeanExecutor
from edge_resnet.nodes.frames import BEST_EFFORT_QOS, FRAME_QOS, FrameOutput, LocalTopic
from edge_resnet.nodes.inference_node import InferenceNode
from edge_resnet.nodes.inputs import FrameInput
from edge_resnet.nodes.preprocess_node import PreprocessNode
from edge_resnet.nodes.shared_images import SharedImages
from edge_resnet.pipeline.latency import NOT_ASKED, OVERWRITTEN

HZ, SERVICE_S = 20.0, 0.25


class Chain:
    """Camera, preprocess and a slow inference, which hand their frames over, or publish them as from processes of their own."""

    def __init__(self, bench, bundle, source='synthetic', service_s=SERVICE_S):
        self.bench = bench

        def slow(**options):
            return InferenceNode(lambda bundle, *_: FakeClassifier(bundle, service_s), **options)

        self.results = bench.listen(Classification, 'classification', FRAME_QOS)
        self.inference = bench.start(slow, model=str(bundle))
        self.preprocess = bench.start(PreprocessNode, model=str(bundle))
        self.camera = bench.start(CameraNode, source=source, framerate=HZ, image_width=64, image_height=48)

    def counts(self):
        return self.camera._grabber.captured, self.camera.counts['published'], self.preprocess.counts['published'], len(self.results)

    def during(self, results=8):
        """What grew by how much while ``results`` more results came: captured, published, preprocessed."""
        before = self.counts()
        wait_for(lambda: len(self.results) >= before[3] + results, f'{results} results')
        return [now - then for now, then in zip(self.counts(), before, strict=True)]


def share_only(monkeypatch):
    """From now on nothing is handed over. Not by contexts of their own: each would have a participant, and the more of them come and go, the
    sooner one locks itself out (Fast-DDS #6502)."""
    for module in (frames, inputs):
        monkeypatch.setattr(module, 'local_topic', lambda node, topic: LocalTopic())


def publish_only(monkeypatch):
    """Nor is anything shared, as between hosts."""
    share_only(monkeypatch)
    monkeypatch.setattr(places, 'MappedImages', lambda *memory: raises(ImageError('of another host')))


def raises(error):
    raise error


@pytest.fixture(params=['handed over', 'shared', 'published'])
def chain(request, bench, paper_bundle, monkeypatch):
    {'handed over': lambda _: None, 'shared': share_only, 'published': publish_only}[request.param](monkeypatch)
    chain = Chain(bench, paper_bundle)
    wait_for(lambda: len(chain.results) > 3, 'results')
    wait_for(lambda: {node._input._places.sharing for node in (chain.preprocess, chain.inference)} == {request.param == 'shared'}, request.param)
    return chain


def test_a_slow_model_lets_the_others_rest_and_gets_fresh_frames(chain):
    def rest():  # on a machine that is busy with something else, frames may come late and be asked for again
        captured, published, preprocessed, results = chain.during(4)
        return captured > 3 * results and preprocessed <= results + 1 and published <= results + 1

    wait_for(rest, 'rest', 60.0)
    ages = sorted(time.time_ns() - stamp_ns(message.header) for message in chain.results[-8:])
    assert ages[0] / 1e9 < 4 * SERVICE_S
    stamps = [stamp_ns(message.header) for message in chain.results]
    assert stamps == sorted(set(stamps)), 'never backwards'
    assert chain.preprocess._input.lost == chain.inference._input.lost == 0


def test_an_outside_subscriber_gets_every_frame_and_when_it_leaves_the_others_rest_again(chain):
    for topic in ('image_preprocessed', 'image_raw'):
        images = []
        subscription = chain.bench.probe.create_subscription(Image, topic, images.append, qos_profile_sensor_data)
        wait_for(lambda images=images: len(images) > 2, f'{topic}')
        before, sent = len(images), chain.camera._grabber.captured
        wait_for(lambda images=images, before=before: len(images) >= before + 20, f'20 of {topic}')
        assert chain.camera._grabber.captured - sent < 40, 'about each frame that was captured'
        chain.bench.probe.destroy_subscription(subscription)
        wait_for(lambda: chain.during(3)[1] <= 5, 'rest', 60.0)


def test_who_changes_to_shared_images_is_nobody_who_wants_every_frame(bench):
    """It subscribes to both until the first shared one has come, which takes as long as the model."""
    camera = bench.start(CameraNode, source='synthetic', framerate=HZ, image_width=64, image_height=48)
    other = rclpy.create_node('changing', context=bench.probe.context)
    try:
        other.create_publisher(Duration, 'image_raw/request', BEST_EFFORT_QOS)
        subscription = other.create_subscription(Image, 'image_raw', lambda _: None, FRAME_QOS)
        told = other.create_subscription(UInt64MultiArray, 'image_raw/shared', lambda _: None, FRAME_QOS)
        output = camera._image
        wait_for(lambda: output.publisher.get_subscription_count() == 1 and output._shared.get_subscription_count() == 1
                 and camera.count_publishers('image_raw/request') == 1, 'the three of them')
        wait_for(lambda: not output.every_frame(), 'its name')
        bench.probe.create_subscription(Image, 'image_raw', lambda _: None, FRAME_QOS)
        wait_for(output.every_frame, 'another subscriber')
        other.destroy_subscription(told)
        wait_for(lambda: output._shared.get_subscription_count() == 0, 'the end of one')
        assert output.every_frame()
        other.destroy_subscription(subscription)
        wait_for(lambda: not output.every_frame(), 'the end of the other')  # one asks, one subscribes: for whoever counts they are the same
    finally:
        other.destroy_node()


def test_a_frame_is_used_on_its_senders_thread_unless_the_node_is_busy(bench, paper_bundle, monkeypatch):
    process, threads = PreprocessNode._process, []
    monkeypatch.setattr(PreprocessNode, '_process', lambda self, *given: threads.append(threading.current_thread().name) or process(self, *given))
    chain = Chain(bench, paper_bundle)
    wait_for(lambda: threads.count('capture') > 3, 'frames on the capture thread')
    with chain.preprocess.turn:
        captured, before = chain.camera._grabber.captured, len(threads)
        wait_for(lambda: chain.camera._grabber.captured > captured + 10, 'a camera that is not held up')
        assert len(threads) == before
    wait_for(lambda: threads[before:], 'the frame that was left')
    chain.during(3)
    assert chain.preprocess._input.lost == chain.inference._input.lost == chain.preprocess.counts['errors'] == 0


def test_a_frame_that_waits_is_used_as_soon_as_another_thread_asks(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inputs, 'REFRESH_S', 60.0)  # not because it looks again by itself
    preprocess = bench.start(PreprocessNode, model=str(paper_bundle))
    publisher = bench.publisher(Image, 'image_raw')
    for n in (1, 2):
        publisher.publish(image_message())
        time.sleep(0.5)
        assert preprocess.counts['published'] == n - 1
        with preprocess.turn:  # as inference's thread does in the same process
            preprocess._input.want(0.0, 0.0)
        wait_for(lambda n=n: preprocess.counts['published'] == n, 'the frame')


def test_a_request_does_not_wait_for_a_camera_that_publishes(bench, monkeypatch):
    held, publishing, publish = threading.Event(), [], CameraNode._publish
    monkeypatch.setattr(CameraNode, '_publish', lambda self: (publishing.append(1), held.wait(60.0), publish(self)))
    camera = bench.start(CameraNode, source='synthetic', framerate=0.1, image_width=64, image_height=48)
    bench.listen(Image, 'image_raw', qos_profile_sensor_data)
    wait_for(lambda: publishing, 'a frame that is being published')
    camera._on_request(0.0)  # here, where it would hang
    before = len(publishing)
    held.set()
    wait_for(lambda: len(publishing) > before, 'the request being served, before the next frame', 3.0)


def test_a_frame_that_nobody_asked_for_is_no_drop(bench):
    camera, newest = bench.start(CameraNode, source='synthetic', framerate=50.0, image_width=64, image_height=48), bench.diagnostics('camera')
    wait_for(lambda: int(newest().get(NOT_ASKED, 0)) > 5, 'frames that nobody wants')
    assert newest()[OVERWRITTEN] == newest()['Published'] == '0'
    bench.listen(Image, 'image_raw', qos_profile_sensor_data)
    wait_for(lambda: camera.counts['published'] > 3, 'frames that somebody wants')
    unwanted, camera.active = camera.counts[NOT_ASKED], False  # as one that is held up before it publishes
    wait_for(lambda: camera.counts[OVERWRITTEN] > 3, 'drops')
    assert camera.counts[NOT_ASKED] == unwanted
    camera.active = True
    assert abs(camera._grabber.captured - sum(camera.counts[key] for key in ('published', OVERWRITTEN, NOT_ASKED))) <= 1, 'each once'


def test_frames_that_nobody_wants_are_not_decoded(bench, paper_bundle, tmp_path, monkeypatch):
    writer = cv2.VideoWriter(str(tmp_path / 'video.avi'), cv2.VideoWriter.fourcc(*'MJPG'), HZ, (64, 48))
    for level in range(40):
        writer.write(np.full((48, 64, 3), 6 * level, np.uint8))
    writer.release()
    decoded, open_capture = [], cv2.VideoCapture

    class Counted:
        """A stream that gives the video over and over, at its pace."""

        def __init__(self, *options):
            self._capture, self._due = open_capture(str(tmp_path / 'video.avi')), time.monotonic()

        def grab(self):
            self._due = max(self._due + 1 / HZ, time.monotonic())
            time.sleep(max(0.0, self._due - time.monotonic()))
            if self._capture.grab():
                return True
            self._capture = open_capture(str(tmp_path / 'video.avi'))
            return self._capture.grab()

        def retrieve(self):
            decoded.append(time.monotonic())
            return self._capture.retrieve()

        def __getattr__(self, name):
            return getattr(self._capture, name)

    monkeypatch.setattr(cv2, 'VideoCapture', Counted)
    chain = Chain(bench, paper_bundle, source='rtsp://stream')
    chain.during(3)
    before = len(decoded)
    captured, published, _, _ = chain.during()
    assert published <= len(decoded) - before < captured * 2 / 3
    camera, counts = chain.camera, chain.camera.counts
    wait_for(lambda: captured_of(camera) == counts['published'] + counts[NOT_ASKED] + counts[OVERWRITTEN], 'the account of frames')
    assert all(stamp_ns(earlier.header) < stamp_ns(later.header) for earlier, later in pairwise(chain.results))
    every = bench.listen(Image, 'image_raw', qos_profile_sensor_data)
    wait_for(lambda: len(every) > 10, 'every frame')
    before = len(decoded), camera._grabber.captured
    chain.during()
    assert len(decoded) - before[0] > 0.8 * (camera._grabber.captured - before[1])


def captured_of(camera):
    return camera._grabber.captured - (camera._grabber._mailbox is not None)


@pytest.mark.parametrize('service_s', [0.01, SERVICE_S])
@pytest.mark.parametrize('handed_over', [True, False])
def test_a_frame_is_announced_just_ahead_of_it_and_its_result_too(bench, paper_bundle, monkeypatch, handed_over, service_s):
    if not handed_over:
        publish_only(monkeypatch)
    told, announce, publish = [], FrameOutput.announce, FrameOutput.publish
    monkeypatch.setattr(FrameOutput, 'announce', lambda self: told.append((self.topic, 'announced', time.monotonic())) or announce(self))
    monkeypatch.setattr(FrameOutput, 'publish', lambda self, frame: told.append((self.topic, 'published', time.monotonic())) or publish(self, frame))
    if service_s < SERVICE_S:
        monkeypatch.setattr(inference_node, 'SLOW_S', 60.0)  # on a busy machine, too
    chain = Chain(bench, paper_bundle, service_s=service_s)
    topics = ('/image_raw', '/image_preprocessed', '/classification')
    heard = {topic: bench.listen(Duration, f'{topic}/upcoming', BEST_EFFORT_QOS) for topic in topics}

    def ahead(topic):
        turns = [(what, at) for of, what, at in tuple(told) if of == topic]
        return [later - earlier for (before, earlier), (after, later) in pairwise(turns) if (before, after) == ('announced', 'published')]

    wait_for(lambda: all(len(heard[topic]) > 2 and len(ahead(topic)) > 2 for topic in topics), 'announcements that somebody else hears, too')
    assert heard['/image_raw'][0] == Duration(nanosec=2_000_000)
    for topic in topics:
        assert 0 < min(ahead(topic)) < 1 / HZ, topic
    chain.inference._input.asking = chain.inference._enabled = False
    time.sleep(1.0)
    told.clear()
    time.sleep(0.5)
    assert not told, 'nobody waits'


def test_a_model_that_waits_for_its_camera_announces_its_result_when_it_hears_of_the_frame(bench, paper_bundle, monkeypatch):
    node = bench.start(lambda **options: InferenceNode(lambda bundle, *_: FakeClassifier(bundle, 0.02), **options), model=str(paper_bundle))
    heard, given = bench.listen(Duration, 'classification/upcoming', BEST_EFFORT_QOS), []
    announcements, images = bench.publisher(Duration, 'image_preprocessed/upcoming', BEST_EFFORT_QOS), bench.publisher(Image, 'image_preprocessed')
    announcements.publish(Duration())
    time.sleep(0.3)
    assert not heard, 'it does not know yet how long it takes'
    images.publish(image_message())
    wait_for(lambda: node._takes_s, 'a result')
    node._takes_s = 0.02  # on a machine that is busy, too
    call_at = node._aside.call_at
    monkeypatch.setattr(node._aside, 'call_at', lambda at, what: given.append(at - time.monotonic()) or call_at(at, what))
    announcements.publish(Duration())
    wait_for(lambda: heard, 'its announcement')
    assert 0 < given[0] <= 0.02
    announcements.publish(Duration(sec=-2_000_000_000))  # what it says is for others
    wait_for(lambda: len(heard) == 2, 'the next')
    node.trigger_deactivate()
    wait_for(lambda: not bench.probe.count_subscribers('image_preprocessed/upcoming'), 'the subscription to end')


def test_what_was_left_unread_on_purpose_is_not_lost(bench, paper_bundle):
    """A frame that comes just after the gate opened replaces the one that waited behind it, and with it all that were left unread."""
    input_ = bench.start(PreprocessNode, model=str(paper_bundle))._input
    for served, lost, superseded in ((False, 0, 4), (True, 4, 4)):
        input_._demand.served = served
        input_._set_wants(False)
        input_._sequence = 10
        input_._set_wants(True)
        now_ns = time.time_ns()
        input_._count(15, now_ns, now_ns)
        assert (input_.lost, input_.superseded) == (lost, superseded)
    now_ns = time.time_ns()
    input_._count(18, now_ns, now_ns)  # open all the time
    assert input_.lost == 6


def test_a_disabled_model_wants_nothing(chain, monkeypatch):
    monkeypatch.setattr(inputs, 'SILENCE_S', 0.5)
    client = chain.bench.probe.create_client(SetBool, 'inference/enable')
    assert client.wait_for_service(10.0)
    for enabled in (False, True):
        answer = client.call_async(SetBool.Request(data=enabled))
        wait_for(answer.done, 'the answer')
        if not enabled:
            time.sleep(1.0)  # what was asked for before comes still
            before = chain.counts()
            time.sleep(1.0)
            after = chain.counts()
            assert after[0] > before[0] + 5
            assert after[1:] == before[1:]
            health = Health()
            chain.inference.diagnose(health)
            assert health.level == OK, health.messages
    chain.during(3)


def test_a_timer_that_another_thread_cancels_while_it_is_called_is_not_called(bench):
    """The capture thread cancels the timer that the executor waits for: once in an hour at the worst moment."""
    timer, called = bench.probe.create_timer(3600.0, lambda: None), []

    class Worst:
        handle = property(lambda self: self)
        callback = staticmethod(lambda: called.append(1))
        __enter__ = __exit__ = lambda self, *_: None

        def is_timer_ready(self):
            timer.cancel()
            return True

        def call_timer(self):
            with timer.handle:
                timer.handle.call_timer()

    LeanExecutor._call_timer(Worst())
    assert not called


def test_a_subscription_that_the_callback_before_destroys_is_not_called(bench):
    node, heard = rclpy.create_node('destroyer'), []
    executor, subscriptions = LeanExecutor(node), []

    def first(message):
        heard.append(message)
        node.destroy_subscription(subscriptions[1])

    subscriptions += [node.create_subscription(Bool, topic, callback, 1) for topic, callback in (('first', first), ('second', heard.append))]
    publishers = [bench.publisher(Bool, topic, 1) for topic in ('first', 'second')]
    for publisher in publishers:
        publisher.publish(Bool(data=True))
    time.sleep(0.3)  # both are there
    wait_for(lambda: executor.spin_once(timeout_sec=0.1) or heard, 'the first')
    executor.spin_once(timeout_sec=0.1)
    assert len(heard) == 1
    executor.shutdown()
    node.destroy_node()


def test_a_message_that_is_left_unread_wakes_nobody(bench, paper_bundle, monkeypatch):
    """As one that was published before its sender was found to be in the same process, or by a camera that knows no requests."""
    spins, spin_once = [], LeanExecutor.spin_once
    preprocess = bench.start(PreprocessNode, model=str(paper_bundle))
    bench.publisher(Image, 'image_raw').publish(image_message())
    time.sleep(0.5)
    monkeypatch.setattr(LeanExecutor, 'spin_once', lambda self, *args, **given: (spins.append(self._node), spin_once(self, *args, **given)))
    time.sleep(1.0)
    assert preprocess._input.received == 0, 'nobody wants a frame'
    assert 0 < spins.count(preprocess) < 60  # two timers and the events: 16


def test_what_is_published_for_others_too_does_not_wake_the_thread_that_gets_it_handed_over(bench, paper_bundle, monkeypatch):
    rounds, next_ = [], FrameInput._next
    monkeypatch.setattr(FrameInput, '_next', lambda self: rounds.append(1) or next_(self))
    chain = Chain(bench, paper_bundle)
    wait_for(lambda: len(chain.results) > 3, 'results')
    images = bench.listen(Image, 'image_preprocessed', qos_profile_sensor_data)
    wait_for(lambda: len(images) > 3, 'images')
    before = len(rounds), len(images)
    time.sleep(1.0)
    assert len(rounds) - before[0] < 3 * HZ
    assert chain.inference._input._local
    monkeypatch.setattr(chain.preprocess._output._local, 'inputs', [])  # from now on it is only published
    chain.preprocess._output._local.outputs.clear()
    wait_for(lambda: not chain.inference._input._local, 'the end of handing over')
    chain.during(3)


def test_a_lost_request_is_made_up_for(chain, monkeypatch):
    lost = []
    with monkeypatch.context() as patch:
        patch.setattr(chain.inference._input._requests, 'publish', lost.append)
        patch.setattr(chain.preprocess._output, 'request', lambda in_s: lost.append(in_s) or True)
        wait_for(lambda: len(lost) > 3, 'requests that get lost')
    chain.during(3)


def test_a_preprocess_that_is_started_anew_is_asked_again(chain):
    chain.preprocess.trigger_deactivate()
    time.sleep(0.5)
    chain.preprocess.trigger_activate()
    chain.during(3)


def test_nothing_is_serialised_unless_somebody_else_subscribes(bench, paper_bundle, monkeypatch):
    written = []
    write = SharedImages.write
    monkeypatch.setattr(SharedImages, 'write', lambda self, image, number: written.append(image.encoding) or write(self, image, number))
    chain = Chain(bench, paper_bundle)
    wait_for(lambda: len(chain.results) > 3, 'results')
    written.clear()
    chain.during(3)
    assert not written
    assert chain.bench.probe.count_publishers('image_raw') == 1, 'the topics are there nevertheless'
    images = bench.listen(Image, 'image_raw', qos_profile_sensor_data)
    wait_for(lambda: len(images) > 3, 'images')
    assert set(written) == {'bgr8'}
    assert (images[0].width, images[0].height, len(images[0].data)) == (64, 48, 64 * 48 * 3)
