"""The latency monitor against the truth: real nodes with test doubles that keep a trace of their own."""

import time
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from bench import image_bytes, wait_for
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from fake_board import FakeBoard
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, Temperature, TimeReference
from std_msgs.msg import Float64, String

from edge_resnet.conversions import Header, Stamp, write_stage
from edge_resnet.hardware.cameras import Frame
from edge_resnet.nodes import actuator_node, camera_node, preprocess_node
from edge_resnet.nodes.actuator_node import ActuatorNode
from edge_resnet.nodes.base import LATCHED_QOS, RECORD_QOS
from edge_resnet.nodes.camera_node import CameraNode
from edge_resnet.nodes.inference_node import InferenceNode
from edge_resnet.nodes.latency_monitor_node import LatencyMonitorNode
from edge_resnet.nodes.preprocess_node import PreprocessNode
from edge_resnet.nodes.thermal_monitor_node import ThermalMonitorNode
from edge_resnet.pipeline import latency
from edge_resnet.pipeline.latency import PARTS, SLICES, STAGES
from edge_resnet.pipeline.recording import read_run

DELAY_S = 0.05


class Doubles:
    """Camera, resize, classifier and actuator that say what they did and when, by the frame's number in its pixels, and can be slowed."""

    runtime, input_dtype, live = 'fake', np.dtype(np.int8), True

    def __init__(self, bundle=None):
        self.number, self.trace, self.delay_s = 0, {}, dict.fromkeys(('capture', 'preprocess', 'inference', 'actuator'), 0.0)
        self.bundle, self._invoked, self.period_s = bundle, None, 0.06

    def note(self, number, what):
        self.trace.setdefault(number, {})[what] = time.time_ns()

    def read(self):
        time.sleep(self.period_s)
        self.number += 1
        self.note(self.number, 'capture')
        time.sleep(self.delay_s['capture'])
        return Frame(np.full((48, 64, 3), (*divmod(self.number, 256), 0), np.uint8), self.delay_s['capture'])

    def resize(self, image, spec):
        time.sleep(self.delay_s['preprocess'])
        small = np.ascontiguousarray(image[:32, :32])
        self.note(int(image[0, 0, 0]) * 256 + int(image[0, 0, 1]), 'ready')
        return small

    def warm_up(self):
        pass

    def network_input(self, image):
        return image

    def classify(self, image):
        self._invoked = int(image[0, 0, 2]) * 256 + int(image[0, 0, 1])
        self.note(self._invoked, 'invoke')
        time.sleep(self.delay_s['inference'])
        self.note(self._invoked, 'done')
        return np.array([0.9, 0.1, 0.0], np.float32)

    def write(self, on):
        time.sleep(self.delay_s['actuator'])
        if self._invoked is not None:
            self.note(self._invoked, 'commanded')

    def close(self):
        pass

    def came_to(self, what):
        return {number for number, times in self.trace.items() if what in times}


@pytest.fixture
def pipeline(bench, paper_bundle, monkeypatch):
    doubles = Doubles()
    monkeypatch.setattr(camera_node, 'open_camera', lambda config, wanted: doubles)
    monkeypatch.setattr(preprocess_node, 'resize', doubles.resize)
    monkeypatch.setattr(actuator_node, 'GuardedActuator', lambda *_, **__: doubles)

    def classifier(bundle, *_):
        doubles.bundle = bundle
        return doubles

    frames = []
    monitor = bench.start(LatencyMonitorNode)
    add = monitor._statistics.add
    monkeypatch.setattr(monitor._statistics, 'add', lambda found: (frames.extend(found), add(found)))
    nodes = {
        'actuator': bench.start(ActuatorNode), 'inference': bench.start(lambda **o: InferenceNode(classifier, **o), model=str(paper_bundle)),
        'preprocess': bench.start(PreprocessNode, model=str(paper_bundle)), 'camera': bench.start(CameraNode, framerate=15.0)}
    wait_for(lambda: frames, 'a frame that came through')
    return SimpleNamespace(doubles=doubles, frames=frames, monitor=monitor, nodes=nodes)


def least(pipeline, count=8):
    """Metric -> its least value over the next ``count`` frames: noise only adds."""
    first = len(pipeline.frames) + 4  # those that are under way, and held up
    wait_for(lambda: len(pipeline.frames) >= first + count, f'{count} frames')
    return {name: min(getattr(frame, name) for frame in pipeline.frames[first:first + count]) for name in (*SLICES, *PARTS)}


def test_a_delay_is_found_where_it_is_and_nowhere_else(pipeline):
    before = least(pipeline)
    for place, found in (('capture', 'camera_to_frame_ready'), ('preprocess', 'camera_to_frame_ready'), ('inference', 'frame_to_inference_done'),
                         ('actuator', 'inference_to_actuator')):
        pipeline.doubles.delay_s[place] = DELAY_S
        after = least(pipeline)
        pipeline.doubles.delay_s[place] = 0.0
        grown = {name for name in after if after[name] - before[name] > 500 * DELAY_S}
        assert grown == {place, found, 'total'}
        assert after[place] - before[place] < 2000 * DELAY_S


def test_the_slices_agree_with_an_independent_trace(pipeline):
    least(pipeline, 20)
    traced = {}
    for times in list(pipeline.doubles.trace.values()):
        if len(times) == 5:
            marks = [times[what] for what in ('capture', 'ready', 'done', 'commanded')]
            traced[times['capture']] = [(b - a) / 1e6 for a, b in pairwise(marks)] + [(marks[-1] - marks[0]) / 1e6]
    apart = []
    for frame in pipeline.frames:
        near = min(traced, key=lambda capture_ns: abs(capture_ns - frame.stamp_ns))
        if abs(near - frame.stamp_ns) < 20e6:
            apart.append([abs(getattr(frame, name) - value) for name, value in zip(SLICES, traced[near], strict=True)])
        assert frame.total == frame.camera_to_frame_ready + frame.frame_to_inference_done + frame.inference_to_actuator
    assert len(apart) >= 15
    assert np.median(apart, axis=0).max() < 1.0, 'ms'


def test_a_dropped_hop_shows_in_its_count_exactly(pipeline, bench, monkeypatch):
    newest, doubles = bench.diagnostics('latency_monitor'), pipeline.doubles
    pipeline.nodes['camera'].trigger_deactivate()  # from here on, when everyone hears everyone
    time.sleep(1.0)
    doubles.trace.clear()
    doubles.period_s = 0.15  # so that a frame is written before the next one is classified: the trace knows it by that
    pipeline.monitor._joiner.forget()
    pipeline.monitor._joiner.ended.clear()
    pipeline.nodes['camera'].counts.clear()
    for node, publisher in (('camera', '_image'), ('preprocess', '_output'), ('inference', '_output')):
        lossy(getattr(pipeline.nodes[node], publisher))
    pipeline.nodes['camera'].trigger_activate()
    least(pipeline, 20)
    pipeline.nodes['camera'].trigger_deactivate()
    time.sleep(1.0)  # for what is under way
    monkeypatch.setattr(latency, 'SETTLE_S', 0.0)
    published, (ready, done, commanded) = pipeline.nodes['camera'].counts['published'], map(doubles.came_to, ('ready', 'done', 'commanded'))
    expected = {'captured': published - len(ready), 'frame_ready': len(ready - done), 'inference_done': len(done - commanded)}
    assert min(expected.values()) >= 3
    wait_for(lambda: sum(pipeline.monitor._joiner.ended.values()) == published, 'every frame to be settled')
    ended = pipeline.monitor._joiner.ended
    assert {stage: ended[stage] for stage in expected} == expected
    wait_for(lambda: newest().get('Frames that got to captured and no further') == str(expected['captured']), 'the count on /diagnostics')
    assert newest()['Frames that got to actuator_commanded'] == str(ended['actuator_commanded'])


def lossy(output):
    """Every fourth frame of ``output`` gets lost."""
    sent, publish = [], output.publish

    def publish_some(frame):
        sent.append(1)
        if len(sent) % 4:
            publish(frame)

    output.publish = publish_some


# From records alone

def tell(publisher, stamp_ns, **ms):
    for stage, after_ms in {**dict(zip(STAGES, (1, 2, 3, 4, 20, 21, 22), strict=True)), **ms}.items():
        publisher.publish(write_stage(stage, Header(Stamp.from_ns(stamp_ns), 'lens'), stamp_ns + round(after_ms * 1e6)))


def test_figures_topics_and_clock_faults(bench):
    newest, totals = bench.diagnostics('latency_monitor'), bench.listen(Float64, 'latency/total_ms')
    bench.start(LatencyMonitorNode)
    records, now_ns = bench.publisher(TimeReference, 'stage_times', RECORD_QOS), time.time_ns()
    wait_for(lambda: newest().get('') == '0 no frame has come from the camera to the actuator yet', 'silence')
    for number in range(100):
        tell(records, now_ns + number)
    wait_for(lambda: newest().get('Total p50 (ms)') == '22', 'the figures')
    assert newest()[''].startswith('0 total p50 22.0 ms, p99 22.0 ms')
    assert {newest()[key] for key in ('Inference p99 (ms)', 'Wait for inference p50 (ms)', 'Frame age at inference p95 (ms)')} == {'16', '1', '4'}
    assert newest()['Total max since start (ms)'] == '22'
    wait_for(lambda: len(totals) == 100, 'a message for each frame')
    assert {message.data for message in totals} == {22.0}
    tell(records, now_ns + 1000, inference_started=2.5)
    tell(records, 0)
    wait_for(lambda: newest()['Clock faults'] == '2', 'the faults')
    assert newest()['Total max (ms)'] == '22', 'not averaged in'


def test_what_strangers_say_keeps_no_figures(bench):
    newest = bench.diagnostics('latency_monitor')
    node = bench.start(LatencyMonitorNode)
    records, now_ns = bench.publisher(TimeReference, 'stage_times', RECORD_QOS), time.time_ns()
    wait_for(lambda: newest().get('') == '0 no frame has come from the camera to the actuator yet', 'silence')
    hostile = [{'Input superseded': 'many'}, {'Throttled': 'inf', 'Temperature (C)': 'inf'}]
    bench.publisher(DiagnosticArray, '/diagnostics', RECORD_QOS).publish(DiagnosticArray(status=[
        *(DiagnosticStatus(name='camera', values=[KeyValue(key=key, value=value) for key, value in values.items()]) for values in hostile),
        *(DiagnosticStatus(name=f'stranger{number}', values=[KeyValue(key='Input superseded', value='1')]) for number in range(200))]))
    for text in ('["none"]', '[' * 90_000, '{"node": "camera", "x": NaN}', '{"node": "camera", "x": "' + 'x' * 100_000 + '"}'):
        bench.publisher(String, 'configuration', LATCHED_QOS).publish(String(data=text))
    wait_for(lambda: newest().get('Errors') == '5', 'what is wrong to be counted')
    assert newest()['Temperature (C)'] == 'unknown'
    assert len(node._missed) == 100
    tell(records, now_ns)
    wait_for(lambda: newest().get('Total p50 (ms)') == '22', 'the figures')


def test_a_clock_of_a_recording_that_starts_again_starts_the_figures_again(bench):
    newest = bench.diagnostics('latency_monitor')
    node = bench.start(LatencyMonitorNode, use_sim_time=True)
    clock, records = bench.publisher(Clock, '/clock', RECORD_QOS), bench.publisher(TimeReference, 'stage_times', RECORD_QOS)

    def play(ms):
        for second in range(100, 103):
            message = Clock()
            message.clock.sec = second
            clock.publish(message)
            tell(records, second * 10 ** 9, actuator_commanded=ms)
            wait_for(lambda second=second: node.now_ns() == second * 10 ** 9, 'the time')
            time.sleep(0.3)

    play(50)
    wait_for(lambda: newest().get('Total p50 (ms)') == '50', 'the first play')
    play(80)
    wait_for(lambda: newest().get('Total p50 since start (ms)') == '80', 'the second play alone')
    assert (newest()['Clock jumps'], newest()['Clock faults'], newest()['Late records']) == ('1', '0', '0')


# Heat and recordings

def test_a_run_is_recorded_with_the_board_its_transitions_and_what_ran(bench, paper_bundle, tmp_path):
    board, newest = FakeBoard(tmp_path, 60.0), bench.diagnostics('latency_monitor')
    node = bench.start(LatencyMonitorNode, record_to=str(tmp_path / 'runs'))
    bench.start(ThermalMonitorNode, sysfs_root=str(tmp_path), period_s=0.1)
    bench.start(lambda **options: InferenceNode(lambda bundle, *_: Doubles(bundle), **options), model=str(paper_bundle))
    records, now_ns = bench.publisher(TimeReference, 'stage_times', RECORD_QOS), time.time_ns()
    wait_for(lambda: newest().get('Temperature (C)') == '60', 'the temperature')
    tell(records, now_ns)
    wait_for(lambda: node._joiner.recent, 'the frame')
    board.set(80.5, 1000.0, 0b0100)
    before_ns = time.time_ns()
    wait_for(lambda: newest().get('Temperature (C)') == '80.5', 'the heat')
    tell(records, now_ns + 10 ** 9)
    wait_for(lambda: node.counts['results'] == 2, 'the second frame')
    time.sleep(1.0)
    cut_off = read_run(tmp_path / 'runs')
    assert cut_off.cut_off, 'it is still being written'
    assert cut_off.frames['total'].tolist() == [22.0, 22.0], 'and already there'
    records.publish(write_stage(STAGES[0], Header(Stamp.from_ns(now_ns + 2 * 10 ** 9), 'lens'), now_ns + 2 * 10 ** 9))
    wait_for(lambda: node._joiner._open.keys() >= {now_ns + 2 * 10 ** 9}, 'a frame on its way')
    node.trigger_deactivate()
    node.trigger_cleanup()
    run = read_run(tmp_path / 'runs')
    assert run.drops['ended'] == {'actuator_commanded': 2, 'captured': 1}, 'also what is on its way when the recording ends'
    assert not run.cut_off
    assert [run.frames[name].tolist() for name in ('temperature_c', 'clock_mhz', 'throttle_bits')] == [[60.0, 80.5], [1500.0, 1000.0], [0, 4]]
    (event,) = run.events
    assert (event['event'], event['on'], event['temperature_c'], event['simulated']) == ('throttled', True, 80.5, False)
    assert before_ns < event['time_ns'] < before_ns + 2e9
    assert run.about['configuration']['inference']['parameters']['model'] == str(paper_bundle)
    assert len(run.about['configuration']['inference']['sha256']) == 64
    assert run.about['configuration']['thermal_monitor']['parameters']['sysfs_root'] == str(tmp_path)
    assert 'numpy' in run.about['host']


def test_a_recording_that_fails_is_reported_and_the_figures_go_on(bench, tmp_path, capfd):
    newest = bench.diagnostics('latency_monitor')
    (tmp_path / 'runs').write_text('no folder')
    bench.start(LatencyMonitorNode, record_to=str(tmp_path / 'runs'))
    records = bench.publisher(TimeReference, 'stage_times', RECORD_QOS)
    tell(records, time.time_ns())
    wait_for(lambda: newest().get('Total p50 (ms)') == '22' and newest()[''].startswith('2 '), 'the figures and an ERROR')
    assert f"can't record into {tmp_path / 'runs'}: " in newest()['']
    assert f"can't record into {tmp_path / 'runs'}: " in capfd.readouterr().err
    assert int(newest()['Records lost']) > 0


def test_the_governor_holds_inference_back_when_it_is_hot(bench, paper_bundle):
    newest = bench.diagnostics('inference')
    doubles = Doubles()
    doubles.delay_s['inference'] = 0.02
    node = bench.start(lambda **options: InferenceNode(lambda bundle, *_: setattr(doubles, 'bundle', bundle) or doubles, **options),
                       model=str(paper_bundle), governor=True)
    temperatures = bench.publisher(Temperature, 'cpu_temperature', RECORD_QOS)
    images = bench.publisher(Image, 'image_preprocessed')
    node._governor.share = 0.2

    def feed():
        temperatures.publish(Temperature(temperature=95.0))
        images.publish(image_bytes(time.time_ns()))
        time.sleep(0.03)
        return node.counts['published'] >= 3 and 'Held back by the governor' in newest() and int(newest()['Held back by the governor']) >= 3

    wait_for(feed, 'inferences and rests')
    assert node._governor.share < 0.2
    assert 'the governor holds inference back to' in newest()['']
