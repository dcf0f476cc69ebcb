"""Messages that are wrong, callbacks that raise or hang, clocks that jump, quality of service that does not fit."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import time

import numpy as np
import pytest
from actuator_rig import Rig
from bench import image_bytes, image_message, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import wait_until
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.qos import qos_profile_sensor_data
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, TimeReference
from std_msgs.msg import Float64
from tiny_model import patch, write_bundle
from vision_msgs.msg import Classification

from edge_resnet.conversions import ENCODINGS, Header, ImageView, Stamp, image_array, stamp_ns, write_stage
from edge_resnet.exceptions import ImageError
from edge_resnet.nodes.base import RECORD_QOS
from edge_resnet.nodes.frames import FRAME_QOS
from edge_resnet.nodes.inference_node import InferenceNode
from edge_resnet.nodes.latency_monitor_node import TOPICS, LatencyMonitorNode
from edge_resnet.nodes.preprocess_node import PreprocessNode
from edge_resnet.pipeline.latency import STAGES

BAD_SCORES = (math.nan, math.inf, -math.inf, 1.0001, -0.0001, 1e308)
HOUR_NS = 3_600_000_000_000


def rss_mb(pid: int) -> float:
    with open(f'/proc/{pid}/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('VmRSS:')) / 1024


class Log:
    """Stands for a node's logger and remembers what it was told."""

    def __init__(self, node) -> None:
        self.lines: list[str] = []
        node.get_logger = lambda: self

    def error(self, text: str) -> None:
        self.lines.append(text)

    warning = info = error


@pytest.mark.row(1)
def test_malformed_images_called_directly(row):
    small = st.integers(0, 40)
    number = st.one_of(small, st.sampled_from((2**16, 2**31, 2**32 - 1)))
    tried = [0]

    @settings(max_examples=row.times(10_000, 300), deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(encoding=st.one_of(st.sampled_from(list(ENCODINGS)), st.text(max_size=8)), width=number, height=number,
           step=st.one_of(st.none(), number), length=st.one_of(st.none(), st.integers(0, 5000)), bigendian=st.sampled_from((0, 1, 2, 255)))
    def attempt(encoding, width, height, step, length, bigendian):
        tried[0] += 1
        row_bytes = step if step is not None else width * ENCODINGS.get(encoding, (3,))[0]
        rows = height * 3 // 2 if encoding.startswith('nv') else height
        data = bytes(min(200_000, row_bytes * rows) if length is None else length)
        try:
            image, order = image_array(ImageView(Header(), height, width, encoding, bigendian, row_bytes, memoryview(data)))
        except ImageError:
            return
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
        assert order in ('rgb', 'bgr')

    attempt()
    row.trial(count=tried[0])


def spoiled(chance: random.Random) -> Image | bytes:
    """A message that is no image: a wrong field, or bytes cut off, changed in the head, or random."""
    kind = chance.randrange(8)
    if kind == 0:
        good = image_bytes(1)
        return good[:chance.randrange(4, len(good) - 1)]
    if kind == 1:
        return b'\0\1\0\0' + chance.randbytes(chance.randrange(4, 200))
    fields = [{'encoding': chance.choice(('', 'rgb9', '32FC1', 'x' * 200))}, {'step': chance.choice((0, 1, 11, 2**31))},
              {'height': chance.choice((0, 3, 2**31))},
              {'width': chance.choice((0, 5, 70_000))}, {'data': bytes(chance.randrange(23))}, {'is_bigendian': chance.randrange(2, 256)}]
    return image_message(**fields[kind - 2])


@pytest.mark.row(2)
def test_malformed_images_over_dds(row, processes, bench, tmp_path):
    model = write_bundle(tmp_path / 'tiny')
    results, newest = bench.listen(Classification, 'classification', FRAME_QOS), bench.diagnostics('preprocess')
    running = [processes.start(name, model=model) for name in ('preprocess_node', 'inference_node')]
    processes.start('actuator_node', state_file=tmp_path / 'actuator.state')
    publisher = bench.probe.create_publisher(Image, 'image_raw', FRAME_QOS)
    red, chance = np.ascontiguousarray(patch('red', np.random.default_rng(7), 64)), random.Random(2)

    def good(stamp_ns_: int) -> float:
        results.clear()
        start = time.monotonic()
        publisher.publish(image_bytes(stamp_ns_, red))
        wait_until(lambda: [message for message in results if stamp_ns(message.header) == stamp_ns_], 'the good frame')
        return time.monotonic() - start

    wait_until(lambda: publisher.get_subscription_count() and bench.probe.count_subscribers('image_preprocessed') and results == [], 'the nodes')
    wait_until(lambda: publisher.publish(image_bytes(time.time_ns(), red)) or results, 'the first result')
    worst_s, refused = 0.0, 0
    while refused < row.times(2000, 100):  # the node's own count: what was superseded by the next is not tried
        for _ in range(50):
            publisher.publish(spoiled(chance))
            time.sleep(0.002)
        worst_s = max(worst_s, good(time.time_ns()))
        refused = int(newest().get('Input refused', 0))
    row.trial(seconds=worst_s, count=refused)
    assert all(process.poll() is None for process in running)


@pytest.mark.row(4)
def test_an_image_of_100_mb(row, processes, bench, tmp_path):
    newest, prepared = bench.diagnostics('preprocess'), bench.listen(Image, 'image_preprocessed', qos_profile_sensor_data)
    process = processes.start('preprocess_node', model=write_bundle(tmp_path / 'tiny'))
    publisher = bench.probe.create_publisher(Image, 'image_raw', FRAME_QOS)
    wait_until(publisher.get_subscription_count, 'preprocess')
    wait_until(lambda: publisher.publish(image_bytes(1)) or prepared, 'a good image')
    before_mb = rss_mb(process.pid)
    huge = image_bytes(2, np.zeros((5774, 5774, 3), np.uint8))
    for n in range(1, row.times(5, 1) + 1):
        publisher.publish(huge)
        wait_until(lambda n=n: int(newest().get('Input refused', 0)) >= n, f'refusal {n}', 60.0)
        row.trial()
    prepared.clear()
    wait_until(lambda: publisher.publish(image_bytes(3)) or prepared, 'a good image afterwards')
    wait_until(lambda: rss_mb(process.pid) < before_mb + 20, f'the memory, {rss_mb(process.pid) - before_mb:.0f} MB more')
    row.note = f'RSS {rss_mb(process.pid) - before_mb:+.1f} MB'


@pytest.mark.row(5)
def test_scores_that_are_none(row, bench, tmp_path):
    rig = Rig(bench, tmp_path)
    for step in range(row.times(1000, 30)):
        rig.see(times=2)
        assert rig.on
        rig.see(score=BAD_SCORES[step % len(BAD_SCORES)], times=1)
        row.trial(not rig.on)


@pytest.mark.row(17)
def test_a_callback_that_raises(row, bench, tmp_path):
    node = bench.start(InferenceNode, model=str(write_bundle(tmp_path / 'tiny')))
    log, results = Log(node), bench.listen(Classification, 'classification', FRAME_QOS)
    classify, node._classifier.classify = node._classifier.classify, lambda image: 1 / 0
    publisher, tries = bench.publisher(Image, 'image_preprocessed'), row.times(1000, 50)
    picture = np.full((32, 32, 3), 250, np.uint8)
    start = time.monotonic()
    for n in range(1, tries + 1):
        publisher.publish(image_bytes(n, picture))
        wait_for(lambda n=n: node._input.received >= n, f'message {n}')
        row.trial()
    wait_for(lambda: node.counts['errors'] == tries, 'the count')
    assert 1 <= len(log.lines) <= 2 + (time.monotonic() - start) / 5, log.lines
    node._classifier.classify = classify
    publisher.publish(image_bytes(tries + 1, picture))
    wait_for(lambda: results, 'a result')


@pytest.mark.row(17)
def test_a_callback_that_hangs_while_on(row, bench, tmp_path):
    rig = Rig(bench, tmp_path)
    rig.see()
    assert rig.on
    observe, rig.node._gate.observe = rig.node._gate.observe, lambda *_: time.sleep(1.5)
    message = Classification()
    message.header.stamp.sec = 1
    start = time.monotonic()
    rig.feed.publish(message)
    wait_for(lambda: not rig.on, 'OFF by the guard')
    row.trial()
    row.note = f'hanging: OFF after {1000 * (time.monotonic() - start):.0f} ms'
    assert time.monotonic() - start < 1.4
    rig.node._gate.observe = observe
    time.sleep(1.6)
    rig.see()
    assert rig.on, 'and afterwards it works'


@pytest.mark.row(17)
def test_a_parameter_of_a_type_that_is_none(row, bench, tmp_path):
    """Any participant can send one, and rclpy's own service raises on it."""
    rig = Rig(bench, tmp_path)
    client = bench.probe.create_client(SetParameters, '/actuator/set_parameters')
    assert client.wait_for_service(20.0)
    for n in range(row.times(100, 3)):
        client.call_async(SetParameters.Request(parameters=[Parameter(name='gpio_pin', value=ParameterValue(type=200))]))
        wait_for(lambda n=n: rig.node.counts['errors'] > n, 'the count')
        row.trial()
    rig.see()
    assert rig.on


@pytest.mark.row(18)
def test_stamps_that_are_wrong(row, bench, tmp_path):
    rig, newest = Rig(bench, tmp_path), bench.diagnostics('actuator')
    for step in range(row.times(100, 3)):
        for age_s in (None, 3600.0, -3600.0):
            rig.see(times=2)
            assert rig.on
            rig.see(age_s=age_s, times=3)
            row.trial(not rig.on)
            if step == 0:
                word = {None: 'age', 3600.0: '3.6e+03 s old', -3600.0: '3.6e+03 s in the future'}[age_s]
                wait_for(lambda word=word: word in newest().get('', ''), f'"{word}" in the diagnostics')


class Replay(Rig):
    """A rig whose time is what it publishes on /clock."""

    def __init__(self, bench, tmp_path, **parameters) -> None:
        super().__init__(bench, tmp_path, use_sim_time=True, **parameters)
        self.publish = bench.probe.create_publisher(Clock, '/clock', RECORD_QOS).publish
        self.now_ns = lambda: self.ns
        self.set(100_000_000_000_000)

    def set(self, ns: int) -> None:
        self.ns, message = ns, Clock(clock=Time(nanoseconds=ns).to_msg())
        wait_for(lambda: self.publish(message) or self.node.now_ns() == ns, '/clock')


@pytest.mark.row(19)
def test_the_clock_jumps(row, bench, tmp_path):
    """The ROS clock is what a jump of the system clock would move; the watchdog has to be on another."""
    limit_s = 0.4
    rig = Replay(bench, tmp_path, max_result_age_s=limit_s)
    for step in range(row.times(20, 2)):
        rig.set(rig.ns + 100_000_000)
        rig.see(times=2)
        seen = time.monotonic()
        assert rig.on
        rig.set(rig.ns + HOUR_NS * (1 if step % 2 else -1))
        wait_for(lambda: not rig.on, 'OFF by the watchdog')
        row.trial(seconds=max(0.0, time.monotonic() - seen - limit_s))


@pytest.mark.row(20)
def test_replay_pauses_and_loops(row, bench, tmp_path):
    rig = Replay(bench, tmp_path, max_result_age_s=0.3)
    heard = [bench.listen(Float64, f'latency/{name}_ms', 10) for name in TOPICS]
    monitor = bench.start(LatencyMonitorNode, use_sim_time=True)
    stages = bench.publisher(TimeReference, 'stage_times', RECORD_QOS)
    first_ns = rig.ns
    for loop in range(row.times(10, 2)):
        for frame in range(10):
            time.sleep(0.033)  # at its own pace: a clock that runs faster would be a fault of its own
            rig.set(first_ns + frame * 33_000_000 + loop)  # each loop begins where the first began, up to a nanosecond
            rig.see(times=1)
            for n, source in enumerate(STAGES):  # of a frame of its own, the actuator tells of the other
                stages.publish(write_stage(source, Header(Stamp.from_ns(rig.ns + 7)), rig.ns + 7 + n * 3_000_000))
        assert rig.on
        wait_for(lambda: not rig.on, 'OFF while /clock and the frames pause')  # as a paused player does
        row.trial()
        last = Header(Stamp.from_ns(first_ns + 250_000_003))
        for n, source in enumerate(STAGES[:-1] if loop == 0 else STAGES[-1:]):  # of a frame on its way when the clock goes back, its end told after
            stages.publish(write_stage(source, last, first_ns + 251_000_000 + n if loop == 0 else first_ns + 10_000_000))
    wait_for(lambda: all(heard), 'latencies')
    time.sleep(1.0)  # the monitor looks now and then
    values = [message.data for topic in heard for message in topic]
    assert min(values) >= 0
    assert monitor.active


@pytest.mark.row(20)
def test_a_clock_before_zero(row, bench, tmp_path):
    """rclpy's own callback raises on it: counted and told by topic, and the time stands still until /clock is good again."""
    rig = Replay(bench, tmp_path, max_result_age_s=0.3)
    log, bad = Log(rig.node), Clock()
    bad.clock.sec = -1
    for _ in range(row.times(20, 2)):
        rig.set(rig.ns + 100_000_000)
        rig.see()
        assert rig.on
        errors = rig.node.counts['errors']
        wait_for(lambda errors=errors: rig.publish(bad) or rig.node.counts['errors'] > errors, 'the count')
        assert rig.node.now_ns() == rig.ns
        wait_for(lambda: not rig.on, 'OFF')
        row.trial()
    assert any(line.startswith('/clock: ValueError') for line in log.lines), log.lines


@pytest.mark.row(21)
@pytest.mark.parametrize(('kind', 'topic', 'name'), [
    (PreprocessNode, 'image_raw', 'preprocess'), (InferenceNode, 'image_preprocessed', 'inference'), (None, 'classification', 'actuator')])
def test_quality_of_service_that_does_not_fit(row, bench, tmp_path, kind, topic, name):
    """Of preprocess while nobody wants frames."""
    newest = bench.diagnostics(name)
    if kind is None:
        Rig(bench, tmp_path)
    else:
        bench.start(kind, model=str(write_bundle(tmp_path / 'tiny')))
    wait_for(newest, 'diagnostics')
    start = time.monotonic()
    bench.probe.create_publisher(Classification if kind is None else Image, topic, qos_profile_sensor_data)
    wait_for(lambda: '/probe (best_effort' in newest().get('', ''), 'a diagnostic that names the publisher')
    row.trial(f'/{name} asked for' in newest()[''], time.monotonic() - start)


STOPPER = """
import sys, time, rclpy
from rclpy.qos import qos_profile_sensor_data
from std_msgs.msg import Bool

rclpy.init()
publisher = rclpy.create_node(sys.argv[1]).create_publisher(Bool, 'emergency_stop', qos_profile_sensor_data)
while not publisher.get_subscription_count():
    time.sleep(0.01)
print('ready', flush=True)
input()
while True:  # best effort: as whoever means it
    publisher.publish(Bool(data=True))
    time.sleep(0.02)
"""


@pytest.mark.row(27)
def test_emergency_stop_by_a_node_that_dies(row, bench, tmp_path):
    rig = Rig(bench, tmp_path)
    for attempt in range(row.times(20, 2)):
        name = f'stopper{attempt}'
        stopper = subprocess.Popen([sys.executable, '-c', STOPPER, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert stopper.stdout.readline() == 'ready\n'
        wait_for(lambda name=name: name in {info.node_name for info in rig.node.get_publishers_info_by_topic('/emergency_stop')}, name)
        rig.see(times=3)
        assert rig.on
        start = time.monotonic()
        print(file=stopper.stdin, flush=True)
        wait_for(lambda: not rig.on, 'OFF')
        took_s = time.monotonic() - start
        stopper.kill()
        stopper.communicate()
        rig.see(times=4)
        row.trial(not rig.on, took_s)
        assert rig.call(True).success
