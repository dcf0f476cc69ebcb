"""The overlay: only for those who look, and only what belongs to the same frame."""

import numpy as np
import pytest
from bench import image_bytes, wait_for
from sensor_msgs.msg import CompressedImage, Image, TimeReference
from vision_msgs.msg import Classification

from edge_resnet.conversions import Header, Results, Stamp, write_results, write_stage
from edge_resnet.nodes.base import RECORD_QOS
from edge_resnet.nodes.frames import FRAME_QOS
from edge_resnet.nodes.overlay_node import OverlayNode, drawn
from edge_resnet.pipeline.latency import INFERENCE_DONE
from edge_resnet.pipeline.postprocessing import Score

MS = 1_000_000


def header(stamp_ns):
    message = Classification().header
    message.stamp.sec, message.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    return message


@pytest.fixture
def overlay(bench):
    return bench.start(OverlayNode)


def test_nothing_is_subscribed_to_while_nobody_looks(bench, overlay):
    def subscribed():
        return {topic for topic in ('image_raw', 'classification', 'stage_times') if bench.probe.count_subscribers(topic)}

    wait_for(lambda: bench.probe.count_publishers('overlay'), 'the node in the graph')
    assert subscribed() == set()
    viewer = bench.probe.create_subscription(Image, 'overlay', print, FRAME_QOS)
    wait_for(lambda: len(subscribed()) == 3, 'subscriptions')
    bench.probe.destroy_subscription(viewer)
    wait_for(lambda: subscribed() == set(), 'silence again')


def test_image_result_and_latency_of_the_same_stamp_make_one_picture(bench, overlay):
    seen = bench.listen(Image, 'overlay', FRAME_QOS)
    images = bench.publisher(Image, 'image_raw')
    results = bench.publisher(Classification, 'classification')
    stages = bench.publisher(TimeReference, 'stage_times', RECORD_QOS)
    for stamp in (1000 * MS, 1033 * MS, 1066 * MS):
        images.publish(image_bytes(stamp, encoding='bgr8'))
        wait_for(lambda stamp=stamp: stamp in overlay._pending, 'the image')
    results.publish(write_results(Results(header(1033 * MS), [Score('red', 0.97), Score('green', 0.03)])))
    wait_for(lambda: overlay._pending[1033 * MS].text, 'the result')
    assert seen == [], 'the latency is not known yet'
    stages.publish(write_stage(INFERENCE_DONE, Header(Stamp.from_ns(1033 * MS)), 1053 * MS))
    wait_for(lambda: seen, 'an overlay')
    shown, = seen
    assert (shown.header.stamp.sec, shown.header.stamp.nanosec, shown.header.frame_id, shown.encoding) == (1, 33 * MS, 'lens', 'bgr8')
    pixels = np.frombuffer(shown.data, np.uint8).reshape(shown.height, shown.width, 3)
    assert (pixels[:24] == 128).all(), 'the upper part is as it was'
    assert pixels[-12:].max() > 200, 'there is text'
    assert list(overlay._pending) == [1066 * MS], 'earlier frames are forgotten'


def test_frames_without_a_result_are_forgotten(bench, overlay):
    bench.listen(Image, 'overlay', FRAME_QOS)
    wait_for(lambda: overlay._images, 'to be watched')
    for number in range(200):
        overlay._on_image(Header(Stamp.from_ns(number + 1)), None)
    assert len(overlay._pending) == 48


def test_compressed_images_too(bench):
    bench.start(OverlayNode, image_transport='compressed')
    bench.listen(Image, 'overlay', FRAME_QOS)
    assert bench.publisher(CompressedImage, 'image_raw/compressed')


@pytest.mark.parametrize('size', [(48, 64), (480, 640), (1080, 1920), (16, 400)])
@pytest.mark.parametrize('text', ['red 1.00  28.6 ms', 'a very long label of a model with many classes 0.12  1234.5 ms', 'größe 0.5'])
def test_text_fits_images_of_any_size(size, text):
    grey = np.full((*size, 3), 128, np.uint8)
    shown = drawn(grey, text)
    assert (grey == 128).all()
    assert shown.shape == grey.shape
    assert (shown != grey).any()
    assert (shown[:, -max(1, size[1] // 50):] <= 128).all(), 'it ends before the edge'
