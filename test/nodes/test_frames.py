"""What happens to frames between the nodes: stamps, freshness, drops, quality of service, bad messages."""

import math
import re
import threading
import time
from array import array
from functools import partial

import cv2
import numpy as np
import pytest
from bench import image_bytes, image_message, wait_for
from rclpy.qos import ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, TimeReference
from std_srvs.srv import SetBool
from vision_msgs.msg import Classification, LabelInfo

from edge_resnet.conversions import Header, Stamp, read_image, stamp_ns, view_of
from edge_resnet.exceptions import ResultError
from edge_resnet.nodes import inference_node, inputs
from edge_resnet.nodes.base import LATCHED_QOS
from edge_resnet.nodes.camera_node import CameraNode
from edge_resnet.nodes.frames import FRAME_QOS
from edge_resnet.nodes.inference_node import InferenceNode
from edge_resnet.nodes.inputs import FrameInput
from edge_resnet.nodes.preprocess_node import PreprocessNode
from edge_resnet.nodes.thermal_monitor_node import ThermalMonitorNode


class FakeClassifier:
    """Sees red wherever the picture is bright; takes ``delay_s``."""

    runtime, input_dtype = 'fake', np.dtype(np.int8)

    def __init__(self, bundle, delay_s=0.0):
        self.bundle, self.delay_s = bundle, delay_s

    def warm_up(self):
        pass

    def network_input(self, image):
        return image

    def classify(self, image):
        time.sleep(self.delay_s)
        red = image.mean() / 255
        return np.array([1 - red, red, 0.0], np.float32)


def inference(bench, bundle, delay_s=0.0, **parameters):
    def make(**options):
        return InferenceNode(lambda bundle, *_: FakeClassifier(bundle, delay_s), **options)

    return bench.start(make, model=str(bundle), **parameters)


def finished_ns(record):
    return record.time_ref.sec * 1_000_000_000 + record.time_ref.nanosec


def test_camera_publishes_stamped_frames_with_their_info_and_truth(bench, root):
    images, infos = bench.listen(Image, 'image_raw', qos_profile_sensor_data), bench.listen(CameraInfo, 'camera_info', qos_profile_sensor_data)
    truths, stages = bench.listen(Classification, 'ground_truth', FRAME_QOS), bench.listen(TimeReference, 'stage_times')
    before = time.time_ns()
    bench.start(CameraNode, framerate=20.0, frame_id='lens', image_hold_s=0.2, image_width=320, image_height=240)
    wait_for(lambda: len(images) > 10 and len(infos) > 10 and len(truths) > 10, '10 frames')
    image = images[5]
    assert (image.width, image.height, image.encoding, image.step, image.header.frame_id) == (320, 240, 'bgr8', 960, 'lens')
    assert before < stamp_ns(image.header) < time.time_ns()
    stamps = [stamp_ns(message.header) for message in images]
    assert stamps == sorted(set(stamps))
    info = infos[5]
    assert (info.width, info.height, info.header.frame_id) == (320, 240, 'lens')
    assert info.k[0] == pytest.approx(0.829 * 320)
    assert info.k[2] == 160
    assert {message.results[0].class_id for message in truths} <= {'red', 'green', 'yellow'}
    captured = {stamp_ns(record.header): record for record in stages if record.source == 'captured'}
    assert set(stamps[1:-1]) & set(captured)
    assert cv2.imread(str(root / 'samples' / '00.jpg')) is not None


def test_compressed_images_only_while_someone_subscribes(bench, monkeypatch):
    encoded = []
    encode = cv2.imencode
    monkeypatch.setattr('edge_resnet.nodes.camera_node.cv2.imencode', lambda *arguments: encoded.append(1) or encode(*arguments))
    images = bench.listen(Image, 'image_raw', qos_profile_sensor_data)
    bench.start(CameraNode, source='synthetic', framerate=20.0, image_width=64, image_height=48)
    wait_for(lambda: len(images) > 5, '5 frames')
    assert not encoded
    compressed = bench.listen(CompressedImage, 'image_raw/compressed', qos_profile_sensor_data)
    wait_for(lambda: len(compressed) > 2, '2 compressed frames')
    assert cv2.imdecode(np.frombuffer(compressed[0].data, np.uint8), cv2.IMREAD_COLOR).shape == (48, 64, 3)


def test_camera_without_its_source_waits_says_so_and_goes_on_when_it_comes(bench, tmp_path):
    newest, images = bench.diagnostics('camera'), bench.listen(Image, 'image_raw', qos_profile_sensor_data)
    bench.start(CameraNode, source=str(tmp_path / 'later.png'), image_width=64, image_height=48)
    wait_for(lambda: 'later.png: there is no such file' in newest().get('', ''), 'a diagnostic that names the file')
    assert newest()[''].startswith('2')
    cv2.imwrite(str(tmp_path / 'later.png'), np.zeros((48, 64, 3), np.uint8))
    wait_for(lambda: images, 'a frame')
    wait_for(lambda: newest()[''].startswith('0'), 'a good diagnostic')


def test_stamp_and_frame_id_travel_unchanged(bench, paper_bundle):
    prepared, results = bench.listen(Image, 'image_preprocessed', qos_profile_sensor_data), bench.listen(Classification, 'classification', FRAME_QOS)
    stages = bench.listen(TimeReference, 'stage_times')
    bench.start(PreprocessNode, model=str(paper_bundle))
    inference(bench, paper_bundle)
    publisher = bench.publisher(Image, 'image_raw')
    wait_for(lambda: bench.probe.count_subscribers('image_preprocessed') == 2 and bench.probe.count_publishers('stage_times') == 2, 'inference')
    time.sleep(0.2)  # both have to match the listener of stage_times, too
    for n in range(1, 6):
        publisher.publish(image_bytes(n * 1_000_000_007, np.full((48, 64, 3), 250, np.uint8)))
        wait_for(lambda n=n: len(results) == n, f'result {n}')
    assert [stamp_ns(message.header) for message in results] == [n * 1_000_000_007 for n in range(1, 6)]
    assert {message.header.frame_id for message in [*prepared, *results, *stages]} == {'lens'}
    assert [entry.class_id for entry in results[0].results] == ['red', 'green', 'yellow'], 'best first'
    assert results[0].results[0].score == pytest.approx(250 / 255, abs=1e-6)
    assert (prepared[0].width, prepared[0].height, prepared[0].encoding, prepared[0].step) == (32, 32, 'rgb8', 96)
    wait_for(lambda: len(stages) == 20, 'all stage records')
    for n in range(1, 6):
        times = {record.source: finished_ns(record) for record in stages if stamp_ns(record.header) == n * 1_000_000_007}
        assert times['frame_ready'] <= times['inference_started'] <= times['inference_done']


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8'])
def test_preprocess_gives_rgb_whatever_comes(bench, paper_bundle, encoding):
    prepared = bench.listen(Image, 'image_preprocessed', qos_profile_sensor_data)
    bench.start(PreprocessNode, model=str(paper_bundle))
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[..., encoding.index('r')] = 200
    bench.publisher(Image, 'image_raw').publish(image_bytes(1, picture, encoding))
    wait_for(lambda: prepared, 'an image')
    assert list(prepared[0].data[:3]) == [200, 0, 0]


def test_compressed_transport(bench, paper_bundle):
    prepared = bench.listen(Image, 'image_preprocessed', qos_profile_sensor_data)
    bench.start(PreprocessNode, model=str(paper_bundle), image_transport='compressed')
    publisher = bench.publisher(CompressedImage, 'image_raw/compressed')
    publisher.publish(CompressedImage(format='jpeg', data=array('B', b'\xff\xd8 not a picture')))
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[..., 2] = 200
    good = CompressedImage(format='png', data=array('B', cv2.imencode('.png', picture)[1].tobytes()))
    good.header.stamp.sec = 3
    publisher.publish(good)
    wait_for(lambda: prepared, 'an image')
    assert prepared[0].header.stamp.sec == 3
    assert list(prepared[0].data[:3]) == [200, 0, 0]


def test_bad_images_are_refused_counted_and_the_next_good_one_passes(bench, paper_bundle):
    prepared, newest = bench.listen(Image, 'image_preprocessed', qos_profile_sensor_data), bench.diagnostics('preprocess')
    node = bench.start(PreprocessNode, model=str(paper_bundle))
    publisher = bench.publisher(Image, 'image_raw')
    spoiled = [{'encoding': 'rgb9'}, {'step': 3}, {'height': 0}, {'width': 70_000}, {'data': bytes(5)}, {'is_bigendian': 7}, {'encoding': '32FC1'}]
    for fields in spoiled:
        refused = node._input.refused
        publisher.publish(image_message(**fields))
        wait_for(lambda refused=refused: node._input.refused == refused + 1, f'the refusal of {fields}')
    assert not prepared
    publisher.publish(image_bytes(9))
    wait_for(lambda: prepared, 'the good image')
    wait_for(lambda: newest().get('Input refused') == str(len(spoiled)), 'the count in the diagnostics')


def test_two_publishers_on_a_topic_are_no_losses(bench, paper_bundle):
    bench.listen(Image, 'image_preprocessed')  # somebody who wants all frames
    node = bench.start(PreprocessNode, model=str(paper_bundle))
    one, other = bench.publisher(Image, 'image_raw'), bench.publisher(Image, 'image_raw')

    def publish(publisher):
        received = node._input.received
        publisher.publish(image_bytes(time.time_ns()))
        wait_for(lambda: node._input.received > received, 'the image')

    for _ in range(20):
        publish(one)
    before = node._input.lost + node._input.superseded
    for _ in range(3):
        publish(other)
        publish(one)
    assert node._input.lost + node._input.superseded == before


def test_a_silent_input_and_what_was_refused_last_are_told(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr('edge_resnet.nodes.inputs.SILENCE_S', 0.5)
    newest, _ = bench.diagnostics('preprocess'), bench.listen(Image, 'image_preprocessed')  # somebody who wants frames
    node = bench.start(PreprocessNode, model=str(paper_bundle))
    wait_for(lambda: newest().get('', '').startswith('1 nothing on image_raw for'), 'a warning of the silence')
    publisher = bench.publisher(Image, 'image_raw')

    def told(pattern, image):
        publisher.publish(image)
        return re.match(pattern, newest()[''])

    wait_for(lambda: told('1 [0-9]+ refused on image_raw, the last: .*rgb9', image_message(encoding='rgb9')), 'a warning of the refusals')
    wait_for(lambda: told('0', image_bytes(9)), 'a good diagnostic, though some were refused before')
    assert int(newest()['Input refused']) == node._input.refused > 0


def test_a_slow_model_gets_the_freshest_frame_and_every_drop_is_counted(bench, paper_bundle):
    period_s, delay_s = 0.05, 0.25
    stages, results = bench.listen(TimeReference, 'stage_times'), bench.listen(Classification, 'classification', FRAME_QOS)
    node = inference(bench, paper_bundle, delay_s)
    publisher = bench.publisher(Image, 'image_preprocessed')
    sent = 0
    start = time.monotonic()
    while len(results) < 12:
        publisher.publish(image_bytes(time.time_ns(), np.full((32, 32, 3), 128, np.uint8)))
        sent += 1
        time.sleep(max(0.0, start + sent * period_s - time.monotonic()))
    ages = sorted((finished_ns(record) - stamp_ns(record.header)) / 1e9 for record in stages if record.source == 'inference_started')
    assert ages[len(ages) * 3 // 4] < 2 * period_s, f'ages at inference start: {ages}'  # one that the machine held up is no fault
    stamps = [stamp_ns(message.header) for message in results]
    assert stamps == sorted(set(stamps)), 'never backwards'
    hop = node._input
    wait_for(lambda: hop.received + hop.superseded + hop.lost >= sent - 1, 'the account of all frames')
    assert hop.received + hop.superseded + hop.lost <= sent
    assert hop.superseded > 2 * hop.received, 'about four of five frames are dropped'


def test_a_best_effort_publisher_is_met_and_the_conflict_reported(bench, paper_bundle):
    prepared, newest = bench.listen(Image, 'image_preprocessed', qos_profile_sensor_data), bench.diagnostics('preprocess')
    publisher = bench.probe.create_publisher(Image, 'image_raw', qos_profile_sensor_data)
    bench.start(PreprocessNode, model=str(paper_bundle))
    for n in range(1, 200):
        publisher.publish(image_bytes(n))
        if prepared:
            break
        time.sleep(0.05)
    assert prepared
    wait_for(lambda: '/probe (best_effort' in newest().get('', ''), 'a diagnostic that names the publisher')
    assert '/preprocess asked for' in newest()['']


def test_inference_says_its_labels_to_late_listeners_and_can_be_disabled(bench, paper_bundle):
    inference(bench, paper_bundle, score_threshold=0.25)
    labels = bench.listen(LabelInfo, 'label_info', LATCHED_QOS)
    wait_for(lambda: labels, 'label_info')
    assert [(entry.class_id, entry.class_name) for entry in labels[0].class_map] == [(0, 'green'), (1, 'red'), (2, 'yellow')]
    assert labels[0].threshold == 0.25
    client = bench.probe.create_client(SetBool, 'inference/enable')
    assert client.wait_for_service(10.0)
    results = bench.listen(Classification, 'classification', FRAME_QOS)
    publisher = bench.publisher(Image, 'image_preprocessed')
    for enabled, expected in ((False, 0), (True, 1)):
        answer = client.call_async(SetBool.Request(data=enabled))
        wait_for(answer.done, 'the answer')
        assert answer.result().success
        publisher.publish(image_bytes(5, np.full((32, 32, 3), 250, np.uint8)))
        if expected:
            wait_for(lambda: results, 'a result')
        time.sleep(0.3)
        assert len(results) == expected
    assert [entry.class_id for entry in results[0].results] == ['red'], 'green at 0.02 is below the threshold'


def test_deactivated_nodes_do_nothing(bench, paper_bundle):
    node = inference(bench, paper_bundle)
    results, publisher = bench.listen(Classification, 'classification', FRAME_QOS), bench.publisher(Image, 'image_preprocessed')
    node.trigger_deactivate()
    wait_for(lambda: not bench.probe.count_subscribers('image_preprocessed'), 'the subscription to end')
    publisher.publish(image_bytes(5, np.full((32, 32, 3), 250, np.uint8)))
    time.sleep(0.3)
    assert not results
    node.trigger_activate()
    wait_for(lambda: bench.probe.count_subscribers('image_preprocessed'), 'the subscription')
    time.sleep(0.2)
    publisher.publish(image_bytes(6, np.full((32, 32, 3), 250, np.uint8)))
    wait_for(lambda: results, 'a result')


def test_a_callback_that_raises_is_counted_and_the_node_lives(bench, paper_bundle):
    node = inference(bench, paper_bundle)
    broken = node._classifier.classify
    node._classifier.classify = lambda image: 1 / 0
    results, publisher = bench.listen(Classification, 'classification', FRAME_QOS), bench.publisher(Image, 'image_preprocessed')
    for n in range(1, 21):
        publisher.publish(image_bytes(n, np.full((32, 32, 3), 250, np.uint8)))
        wait_for(lambda n=n: node._input.received >= n, f'message {n}')
    assert node.counts['errors'] == 20
    node._classifier.classify = broken
    publisher.publish(image_bytes(99, np.full((32, 32, 3), 250, np.uint8)))
    wait_for(lambda: results, 'a result')


def test_an_overridden_qos_stays_when_the_subscription_is_made_anew(bench):
    node = bench.make(ThermalMonitorNode, **{'qos_overrides./picture.subscription.reliability': 'best_effort'})
    taken = FrameInput(node, Image, '/picture', lambda data: None)
    assert taken.qos.reliability == ReliabilityPolicy.BEST_EFFORT
    assert FRAME_QOS.reliability == ReliabilityPolicy.RELIABLE, 'rclpy overrides a profile in place'
    taken._renew(taken.qos)  # as after a message that was too large
    assert taken._subscription.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    taken.close()
    node.destroy_node()


def test_a_count_that_starts_anew_is_no_negative_rate(bench):
    node = bench.make(ThermalMonitorNode)
    node.counts['frames'] = 100
    assert node.rate('frames') > 0
    node.counts['frames'] = 0  # deactivated and activated
    assert node.rate('frames') == 0
    node.destroy_node()


def test_a_model_goes_straight_on_and_its_result_is_told_meanwhile(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inference_node, 'SLOW_S', -1.0)
    results = bench.listen(Classification, 'classification')
    node = inference(bench, paper_bundle)
    publisher = bench.publisher(Image, 'image_preprocessed')
    begun, go_on, told, publish, classify = [], threading.Event(), threading.Event(), node._output.publish, node._classifier.classify

    def slowly(image):
        begun.append(image.mean())
        if len(begun) == 1:
            assert go_on.wait(20.0)
        if len(begun) == 2:
            assert told.wait(20.0), 'the first result is told while the second frame is in the model'
        return classify(image)

    def stuck(message):
        wait_for(lambda: len(begun) > 1, 'the next frame in the model')
        publish(message)
        told.set()

    node._classifier.classify = slowly
    publisher.publish(image_bytes(1, np.full((32, 32, 3), 10, np.uint8)))
    wait_for(lambda: begun, 'the first frame')
    node._output.publish = stuck
    for n in range(2, 5):
        publisher.publish(image_bytes(n, np.full((32, 32, 3), 10 * n, np.uint8)))
    time.sleep(0.3)  # until the last is there
    go_on.set()
    wait_for(lambda: len(results) == 2, 'two results')
    assert [stamp_ns(message.header) for message in results] == [1, 4], 'in their order, and of the newest frame'
    assert begun == [10, 40]
    assert (node._input.received, node._input.superseded, node._input.lost, node.counts['errors']) == (2, 2, 0, 0)


def hold_first(node):
    """The node's model keeps its first frame until the second of these says so; the first gets the mean of each frame that it is given."""
    begun, go_on, classify = [], threading.Event(), node._classifier.classify

    def held(image):
        begun.append(image.mean())
        assert len(begun) > 1 or go_on.wait(20.0)
        return classify(image)

    node._classifier.classify = held
    return begun, go_on


def read_second_ahead(node, publisher, begun, length=None):
    """Publish two frames, of the second ``length`` bytes; it has been read when this ends, and the first is in the model."""
    publisher.publish(image_bytes(1))
    wait_for(lambda: begun, 'the first frame')
    publisher.publish(image_bytes(2)[:length])
    wait_for(lambda: node._on_ending(node._began_s, 0.0) or node._input._fetched is not None, 'the second frame')


@pytest.mark.parametrize('local', [False, True])
@pytest.mark.parametrize('newer', [False, True])
def test_the_next_frame_is_read_before_a_slow_model_ends_and_a_newer_one_replaces_it(bench, paper_bundle, monkeypatch, newer, local):
    monkeypatch.setattr(inference_node, 'SLOW_S', -1.0)
    node = inference(bench, paper_bundle)
    results, read, _read = bench.listen(Classification, 'classification'), [], node._read
    publisher = node.frame_output(Image, 'image_preprocessed') if local else bench.publisher(Image, 'image_preprocessed')
    begun, go_on = hold_first(node)
    node._read = lambda classifier, data: read.append(stamp_ns(read_image(data).header)) or _read(classifier, data)
    if local:
        wait_for(lambda: node._input._local, 'the handing over')

    def publish(n):
        publisher.publish(view_of(Header(Stamp.from_ns(n)), np.full((32, 32, 3), 10 * n, np.uint8), 'rgb8') if local
                          else image_bytes(n, np.full((32, 32, 3), 10 * n, np.uint8)))

    publish(1)
    wait_for(lambda: begun, 'the first frame')
    publish(2)
    wait_for(lambda: node._on_ending(node._began_s, 0.0) or node._ahead[0] is not None, 'the second frame')
    assert read == [1, 2], 'while the first is in the model'
    if newer:
        publish(3)
        time.sleep(0.3)  # until it is there
    go_on.set()
    wait_for(lambda: len(results) == 2, 'two results')
    assert read == ([1, 2, 3] if newer else [1, 2]), 'each of them once'
    assert [stamp_ns(message.header) for message in results] == [1, 3 if newer else 2]
    assert begun == [10, 30 if newer else 20]
    assert (node._input.received, node._input.superseded, node._input.lost, node.counts['errors']) == (2, int(newer), 0, 0)
    node.trigger_deactivate()
    assert node._ahead == (None, None)
    node._on_ending(node._began_s, 0.0)  # when a timer is late


def test_a_frame_that_comes_just_before_a_slow_model_ends_is_read_before_it_does(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inference_node, 'SLOW_S', -1.0)
    node = inference(bench, paper_bundle)
    publisher, (begun, go_on) = bench.publisher(Image, 'image_preprocessed'), hold_first(node)
    publisher.publish(image_bytes(1))
    wait_for(lambda: begun, 'the first frame')
    node._on_ending(node._began_s, time.monotonic() + 60.0)
    assert node._ahead[0] is None or stamp_ns(read_image(node._ahead[0]).header) == 1
    publisher.publish(image_bytes(2))
    wait_for(lambda: node._ahead[0] is not None and stamp_ns(read_image(node._ahead[0]).header) == 2, 'the second frame')
    go_on.set()
    wait_for(lambda: len(begun) == 2, 'the second frame in the model')


def test_looking_for_the_next_frame_ends_with_the_inference_that_it_was_for(bench, paper_bundle):
    node, fetched = inference(bench, paper_bundle), []
    node._input.fetch = lambda: fetched.append(1)
    node._began_s = 1.0
    node._on_ending(1.0, 0.0)
    assert len(fetched) == 1, 'once, when none was asked for'
    node._fetch(1.0, time.monotonic() + 60.0)
    wait_for(lambda: len(fetched) > 3, 'looking again')
    node._began_s = 2.0
    time.sleep(0.01)
    looks = len(fetched)
    node._on_ending(1.0, time.monotonic() + 60.0)  # when a timer is late
    time.sleep(0.05)
    assert len(fetched) == looks


def test_a_frame_that_one_thread_reads_ahead_is_not_read_by_the_other_too(bench, paper_bundle):
    node, read = inference(bench, paper_bundle), []
    node._read = lambda classifier, data: read.append(data) or time.sleep(0.1)
    data = image_bytes(1)
    threads = [threading.Thread(target=node._read_ahead, args=(data,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [data]


def test_a_result_is_told_whatever_is_wrong_with_the_next_frame(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inference_node, 'SLOW_S', -1.0)
    node = inference(bench, paper_bundle)
    results, publisher, (begun, go_on), _read = bench.listen(Classification, 'classification'), bench.publisher(Image, 'image_preprocessed'), \
        hold_first(node), node._read

    def read(classifier, data):
        if stamp_ns(read_image(data).header) == 2:
            raise MemoryError
        return _read(classifier, data)

    node._read = read
    publisher.publish(image_bytes(1))
    wait_for(lambda: begun, 'the first frame')
    publisher.publish(image_bytes(2))
    time.sleep(0.3)  # until it is there
    go_on.set()
    wait_for(lambda: results and node.counts['errors'], 'the first result, and the second frame refused')
    assert (node._input.refused, node.counts['errors']) == (1, 1)


def test_a_slow_model_s_frames_are_read_before_anything_is_done_beside_it(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inference_node, 'SLOW_S', -1.0)
    node, done = inference(bench, paper_bundle), []
    node._free_s = math.inf  # as if it had just ended: the next frame is asked for at once
    publisher, (begun, go_on), _read, call = bench.publisher(Image, 'image_preprocessed'), hold_first(node), node._read, node._aside.call
    node._read = lambda classifier, data: done.append(stamp_ns(read_image(data).header)) or _read(classifier, data)
    node._aside.call = lambda what, **options: done.append('beside') or call(what, **options)
    publisher.publish(image_bytes(1))
    wait_for(lambda: begun, 'the first frame')
    publisher.publish(image_bytes(2))
    time.sleep(0.3)  # until it is there
    go_on.set()
    wait_for(lambda: len(begun) == 2, 'the second frame in the model')
    assert done[:4] == [1, 'beside', 2, 'beside'], 'each is read before the next is asked for, and before the one before is told'


def test_a_result_that_is_told_late_has_the_times_of_its_inference(bench, paper_bundle):
    node, ended, hang = inference(bench, paper_bundle), [], threading.Event()
    stages, publisher, classify = bench.listen(TimeReference, 'stage_times'), bench.publisher(Image, 'image_preprocessed'), node._classifier.classify
    wait_for(node._stage_times.get_subscription_count, 'a listener')
    node._classifier.classify = lambda image: (classify(image), ended.append(time.time_ns()))[0]
    node._aside.call(hang.wait)
    publisher.publish(image_bytes(1))
    wait_for(lambda: ended, 'an inference')
    time.sleep(2.0)
    assert not node.counts['published']
    hang.set()
    wait_for(lambda: len(stages) == 2, 'its stages')
    started_ns, done_ns = (finished_ns(record) for record in stages)
    assert [record.source for record in stages] == ['inference_started', 'inference_done']
    assert started_ns <= done_ns < ended[0] + 1_000_000_000
    assert node.counts['busy_ns'] == done_ns - started_ns


def test_a_frame_that_was_read_ahead_is_used_when_the_model_failed_at_the_one_before(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inference_node, 'SLOW_S', -1.0)
    monkeypatch.setattr(inputs, 'ASKS_AGAIN_S', 60.0)
    monkeypatch.setattr(inputs, 'TURN_S', 60.0)  # nothing else wakes the thread
    node = inference(bench, paper_bundle)
    results, classify = bench.listen(Classification, 'classification'), node._classifier.classify

    def fails(image):
        raise ResultError('model output has 3 values that are not finite')

    node._classifier.classify = fails
    begun, go_on = hold_first(node)
    read_second_ahead(node, bench.publisher(Image, 'image_preprocessed'), begun)
    node._classifier.classify = classify
    go_on.set()
    wait_for(lambda: results, 'the second result')
    assert stamp_ns(results[0].header) == 2


def test_a_bad_image_that_was_read_ahead_is_refused_once(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inference_node, 'SLOW_S', -1.0)
    node = inference(bench, paper_bundle)
    begun, go_on = hold_first(node)
    read_second_ahead(node, bench.publisher(Image, 'image_preprocessed'), begun, length=60)
    assert node._input.refused == 0
    go_on.set()
    wait_for(lambda: node._input.refused, 'its refusal')
    assert (node._input.refused, node.counts['errors']) == (1, 1)


def test_what_was_fetched_is_dropped_when_the_numbers_start_anew(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inference_node, 'SLOW_S', -1.0)
    node = inference(bench, paper_bundle)
    begun, go_on = hold_first(node)
    read_second_ahead(node, bench.publisher(Image, 'image_preprocessed'), begun)
    node._input._renew(node._input.qos)
    assert node._input.fetch() is None
    go_on.set()


def test_services_and_timers_do_not_wait_for_the_model(bench, paper_bundle):
    node, newest = inference(bench, paper_bundle), bench.diagnostics('inference')
    held, begun, classify = threading.Event(), [], node._classifier.classify
    node._classifier.classify = lambda image: (begun.append(1), held.wait(60.0), classify(image))[-1]
    client = bench.probe.create_client(SetBool, 'inference/enable')
    assert client.wait_for_service(10.0)
    bench.publisher(Image, 'image_preprocessed').publish(image_bytes(1, np.full((32, 32, 3), 200, np.uint8)))
    wait_for(lambda: begun, 'a frame in the model')
    answer = client.call_async(SetBool.Request(data=False))
    wait_for(answer.done, 'the answer')
    wait_for(lambda: newest().get('Enabled') == '0', 'diagnostics')
    assert not node.counts['published']
    held.set()
    wait_for(lambda: node.counts['published'] == 1, 'the result')


def test_what_is_in_the_model_when_the_node_is_deactivated_is_not_told_and_does_not_meet_the_next_frame(bench, paper_bundle):
    results = bench.listen(Classification, 'classification', FRAME_QOS)
    node = inference(bench, paper_bundle)
    held, inside, most, classify = threading.Event(), [], [], node._classifier.classify

    def alone(image):
        inside.append(image)
        most.append(len(inside))
        assert held.wait(60.0)
        inside.pop()
        return classify(image)

    node._classifier.classify = alone
    bench.publisher(Image, 'image_preprocessed').publish(image_bytes(1, np.full((32, 32, 3), 200, np.uint8)))
    wait_for(lambda: inside, 'a frame in the model')
    began = time.monotonic()
    node.trigger_deactivate()
    node.trigger_activate()
    assert time.monotonic() - began < 10.0, 'it does not wait for the model'
    wait_for(lambda: bench.probe.count_subscribers('image_preprocessed') == 1, 'the new subscription alone')
    publisher = bench.publisher(Image, 'image_preprocessed')
    publisher.publish(image_bytes(2, np.full((32, 32, 3), 200, np.uint8)))
    wait_for(lambda: node._input.received, 'the next frame')
    held.set()
    wait_for(lambda: results, 'a result')
    assert ([stamp_ns(message.header) for message in results], most) == ([2], [1, 1])
    assert node.counts['errors'] == 0


def test_what_is_in_a_slow_model_when_the_node_is_deactivated_is_not_told(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inference_node, 'SLOW_S', -1.0)
    results, node = bench.listen(Classification, 'classification', FRAME_QOS), inference(bench, paper_bundle)
    held, begun, classify = threading.Event(), [], node._classifier.classify
    node._classifier.classify = lambda image: (begun.append(1), held.wait(60.0), classify(image))[-1]
    publisher = bench.publisher(Image, 'image_preprocessed')
    publisher.publish(image_bytes(1, np.full((32, 32, 3), 200, np.uint8)))
    wait_for(lambda: begun, 'a frame in the model')
    publisher.publish(image_bytes(2, np.full((32, 32, 3), 200, np.uint8)))
    node.trigger_deactivate()
    node.trigger_cleanup()
    node.trigger_configure()  # a model of its own
    node.trigger_activate()
    publisher = bench.publisher(Image, 'image_preprocessed')
    publisher.publish(image_bytes(3, np.full((32, 32, 3), 200, np.uint8)))
    wait_for(lambda: results, 'a result, while the old model hangs')
    node.trigger_deactivate()
    held.set()
    wait_for(lambda: not node.turned, 'the end of both threads')
    time.sleep(0.3)
    assert [stamp_ns(message.header) for message in results] == [3]
    assert (len(begun), node.counts['published'], node.counts['errors']) == (1, 1, 0)


def test_a_model_that_does_not_come_back_is_an_error(bench, paper_bundle, monkeypatch):
    monkeypatch.setattr(inputs, 'STUCK_S', 0.5)
    node, newest = inference(bench, paper_bundle), bench.diagnostics('inference')
    held, classify = threading.Event(), node._classifier.classify
    node._classifier.classify = lambda image: (held.wait(60.0), classify(image))[-1]
    monkeypatch.setattr(inputs, 'TURN_S', 0.1)
    bench.publisher(Image, 'image_preprocessed').publish(image_bytes(1, np.full((32, 32, 3), 200, np.uint8)))
    wait_for(lambda: newest().get('', '').startswith('2 has been at one frame of image_preprocessed for'), 'the diagnostic')
    held.set()
    wait_for(lambda: newest().get('', '').startswith('0'), 'its end')


def test_the_first_frame_is_not_lost_to_a_node_that_is_being_activated(bench, paper_bundle, monkeypatch):
    """Handed over, or there as soon as it subscribes: its thread may be faster than who starts it."""
    start = FrameInput.start_thread

    def slowly(self):
        self.hand_over(view_of(Header(Stamp(1, 0), 'camera'), np.full((32, 32, 3), 200, np.uint8), 'rgb8'), 1)
        start(self)
        time.sleep(0.3)

    monkeypatch.setattr(inputs, 'TURN_S', 60.0)  # not because it comes round by itself
    monkeypatch.setattr(FrameInput, 'start_thread', slowly)
    monkeypatch.setattr(FrameInput, '_refresh', lambda self: setattr(self, '_local', True))
    node = inference(bench, paper_bundle)
    wait_for(lambda: node.counts['published'] == 1, 'the result')


def test_a_thread_of_an_input_that_does_not_come_round_keeps_the_watchdog_quiet(bench, paper_bundle):
    """As an executor's does: runner.run looks at both."""
    node = inference(bench, paper_bundle)
    input_, held, begun, classify = node._input, threading.Event(), [], node._classifier.classify
    first = node.turned[input_]
    wait_for(lambda: node.turned[input_] > first, 'another, with nothing to do')
    node._classifier.classify = lambda image: (begun.append(1), held.wait(60.0), classify(image))[-1]
    publisher = bench.publisher(Image, 'image_preprocessed')
    publisher.publish(image_bytes(1, np.full((32, 32, 3), 200, np.uint8)))
    wait_for(lambda: begun, 'a frame in the model')
    stuck = node.turned[input_]
    time.sleep(1.5)
    assert node.turned[input_] == stuck
    held.set()
    wait_for(lambda: node.turned[input_] > stuck, 'the next round')
    node.trigger_deactivate()
    wait_for(lambda: not node.turned, 'the end of the thread')


def test_what_rcl_refuses_ends_no_thread(bench, paper_bundle, monkeypatch):
    node = inference(bench, paper_bundle)
    refused, next_ = [], node._input._next
    monkeypatch.setattr(node._input, '_next', lambda: 1 / 0 if len(refused) < 2 and not refused.append(1) else next_())
    publisher = bench.publisher(Image, 'image_preprocessed')

    def told():
        publisher.publish(image_bytes(1, np.full((32, 32, 3), 200, np.uint8)))
        return node.counts['published']

    wait_for(told, 'a result')
    assert node.counts['errors'] == 2


def test_results_that_wait_are_told_when_the_node_is_deactivated(bench, paper_bundle):
    told, hang = [], threading.Event()
    node = inference(bench, paper_bundle)
    node._aside.call(hang.wait)
    for n in range(3):
        node._aside.call(partial(told.append, n), here=True)  # not now: the others wait
    assert not told
    node._aside.call(lambda: 1 / 0)
    hang.set()
    node.trigger_deactivate()
    wait_for(lambda: node.counts['errors'] == 1, 'the last call')
    assert told == [0, 1, 2]
    wait_for(lambda: not node._aside._thread.is_alive(), 'the end of the thread')


@pytest.mark.parametrize(('delay_s', 'order'), [(0.0, ['told', 'asked']), (0.2, ['asked', 'told'])])
def test_the_next_frame_is_asked_for_last_by_a_model_that_waits_for_its_camera(bench, paper_bundle, monkeypatch, delay_s, order):
    node, calls = inference(bench, paper_bundle, delay_s), []
    images = bench.publisher(Image, 'image_preprocessed')
    tell = node._output.publish
    monkeypatch.setattr(node._output, 'publish', lambda results: calls.append('told') or tell(results))
    monkeypatch.setattr(node, '_ask', lambda free_s: calls.append('asked'))
    for number in range(6):
        images.publish(image_bytes(number + 1))
        wait_for(lambda number=number: calls.count('told') == number + 1, 'a result')
        time.sleep(0.05)
    assert calls[-4:] == order * 2
