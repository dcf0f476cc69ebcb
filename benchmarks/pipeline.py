"""How close the pipeline comes to the floor: one process that captures, preprocesses, invokes and commands in a straight line.

    make bench            # everything
    make bench SHORT=1    # what the targets need
    make bench CHECK=1    # exit code 1 and a line for each target that is missed

Floor, composed pipeline, separate processes and a plain tutorial take turns on the same frames, model and threads, and all of it is repeated.
A ratio is of two runs of the same repeat; reported are the median over the repeats and, in brackets, the lowest and the highest.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import rclpy
from rclpy.context import Context
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import TimeReference

from edge_resnet.conversions import stamp_ns
from edge_resnet.deployment import transport_environment
from edge_resnet.pipeline.latency import ACTUATOR_COMMANDED, INFERENCE_DONE, INFERENCE_STARTED, percentile
from edge_resnet.tools.calibrate import processor

STAGES = ('camera', 'preprocess', 'inference', 'actuator')
FLOOR, COMPOSED, SEPARATE, TUTORIAL = 'floor', 'composed', 'separate', 'tutorial'
LOADS = Path(__file__).with_name('loads.py')
RESNET50, SMALL = 'resnet50_traffic_lights', 'mobilenetv3_small_minimalistic_traffic_lights'
SATURATING = 9.7  # frames per floor time: one is always there, and not in step
SLOW_CAMERA = 0.6
SLOW_MODEL_S, SLOW_MODEL_HZ = 0.2, 30.0  # six camera periods
START_S = 30.0


@dataclass(frozen=True)
class Case:
    """One cell of the table. ``camera``: 'slow' or 'saturating' against the floor time; ``inference_s``: of the test double, 0 is the model."""

    name: str
    model: str = RESNET50
    width: int = 640
    height: int = 480
    camera: str = 'slow'
    inference_s: float = 0.0
    busy: bool = False
    kinds: tuple[str, ...] = (FLOOR, COMPOSED, SEPARATE, TUTORIAL)

    def framerate(self, floor_s: float) -> float:
        if self.inference_s:
            return SLOW_MODEL_HZ
        return min(240.0, SATURATING / floor_s) if self.camera == 'saturating' else min(30.0, SLOW_CAMERA / floor_s)


def cases(short: bool) -> list[Case]:
    slow = Case('slow model (sleeping)', inference_s=SLOW_MODEL_S, kinds=(COMPOSED, SEPARATE, TUTORIAL))
    found = [Case('ResNet50 640x480, slow camera'), Case('ResNet50 640x480, saturating camera', camera='saturating'), slow]
    if not short:
        found.append(Case('slow model (busy)', inference_s=SLOW_MODEL_S, busy=True, kinds=(COMPOSED, SEPARATE)))
        for camera in ('slow', 'saturating'):
            found.append(Case(f'ResNet50 1280x720, {camera} camera', width=1280, height=720, camera=camera))
            for width, height in ((640, 480), (1280, 720)):
                found.append(Case(f'small model {width}x{height}, {camera} camera', SMALL, width, height, camera))
    return found


class Recorder:
    """Everything on ``stage_times`` of ``namespace``. It takes what has come now and then, since a callback for each record would take a share of
    the processor."""

    def __init__(self, namespace: str = '') -> None:
        self._namespace = namespace
        self._records: list[Any] = []
        self._lock, self._closed = threading.Lock(), False
        self._start()
        threading.Thread(target=self._collect, daemon=True).start()
        atexit.register(self._close)  # or its participant leaves files in /dev/shm

    def _start(self) -> None:
        self._context = Context()
        self._context.init([])
        self._node = rclpy.create_node('benchmark', namespace=self._namespace, context=self._context)
        # Best effort, which spares the nodes the acknowledgements.
        qos = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5000, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscription = self._node.create_subscription(TimeReference, 'stage_times', lambda _: None, qos)

    def _stop(self) -> None:
        self._node.destroy_node()
        self._context.try_shutdown()

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            self._stop()

    def _collect(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                with (handle := self._subscription.handle):
                    while (taken := handle.take_message(TimeReference, False)) is not None:
                        self._records.append(taken[0])
            time.sleep(0.1)

    def renew(self) -> None:
        """Forget everything, and be as new to those who start now as they are: a participant that has been there for long is found late."""
        with self._lock:
            self._stop()
            self._records.clear()
            self._start()

    def times(self) -> dict[int, dict[str, int]]:
        """Stamp -> stage -> time, in ns."""
        times: dict[int, dict[str, int]] = defaultdict(dict)
        for record in list(self._records):
            times[stamp_ns(record.header)][record.source] = record.time_ref.sec * 1_000_000_000 + record.time_ref.nanosec
        return times

    def frames(self) -> list[tuple[int, int, int, int]]:
        """(stamp, inference start, inference end, command) of the frames that came all the way, in ns."""
        wanted = (INFERENCE_STARTED, INFERENCE_DONE, ACTUATOR_COMMANDED)
        return [(stamp, *(entry[name] for name in wanted)) for stamp, entry in self.times().items() if all(name in entry for name in wanted)]

    def first_command_ns(self, since_ns: int) -> int:
        """When the first command after ``since_ns`` was given; 0 when there was none."""
        return min((frame[3] for frame in self.frames() if frame[0] > since_ns), default=0)


def command(kind: str, case: Case, framerate: float, saturating: float, folder: Path) -> dict[str, list[str]]:
    """Name -> command line of each process."""
    state, double = str(folder / 'state'), double_arguments(case)
    common = ['--model', case.model, '--width', str(case.width), '--height', str(case.height), '--framerate', str(framerate), '--state', state,
              *double]
    if kind == FLOOR:
        return {FLOOR: [str(LOADS), FLOOR, *common, '--saturating', str(saturating), '--out', str(folder / 'floor.json')]}
    if kind == TUTORIAL:
        return {name: [str(LOADS), TUTORIAL, '--node', name, *common, '--out', str(folder / f'{name}.json')] for name in STAGES}
    groups = {'pipeline': list(STAGES)} if kind == COMPOSED else {name: [name] for name in STAGES}
    return {name: node_line(inside, case, framerate, state) for name, inside in groups.items()}


def double_arguments(case: Case) -> list[str]:
    return ['--inference-s', str(case.inference_s), *(['--busy'] if case.busy else [])] if case.inference_s else []


def node_line(inside: Sequence[str], case: Case, framerate: float, state: str) -> list[str]:
    """Command line of one process with the nodes ``inside``, in whatever namespace; it ends with its ROS arguments. Parameters are put beside
    the file ``state``."""
    parameters = {'camera': {'image_width': case.width, 'image_height': case.height, 'framerate': float(framerate)},
                  'preprocess': {'model': case.model}, 'inference': {'model': case.model}, 'actuator': {'state_file': state, 'target_class': 'red'}}
    file = Path(f'{state}_{"_".join(inside)}.yaml')
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({f'/**/{node}': {'ros__parameters': parameters[node]} for node in inside}))
    ros = ['--ros-args', '--log-level', 'warn', '--params-file', str(file)]
    if 'inference' in inside and case.inference_s:
        return [str(LOADS), 'nodes', '--node', ','.join(inside), *double_arguments(case), *ros]
    if len(inside) > 1:
        return ['-m', 'edge_resnet.nodes.pipeline', *inside, *ros]
    return ['-m', f'edge_resnet.nodes.{inside[0]}_node', *ros]


@contextmanager
def running(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, subprocess.Popen]]:
    """Processes of these names and command lines, which are ended at the end."""
    children = {name: subprocess.Popen(line, env={**os.environ, **transport_environment(os.environ)}, stderr=sys.stderr)
                for name, line in commands.items()}
    try:
        yield children
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            try:
                child.wait(10.0)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def wait_for_frame(came: Callable[[], object], what: str, within_s: float = START_S) -> None:
    """SystemExit when no frame came all the way in time."""
    end = time.monotonic() + within_s
    while not came():
        time.sleep(0.1)
        if time.monotonic() > end:
            raise SystemExit(f'{what}: no frame came all the way within {within_s:g} s')


def family(pid: int) -> list[int]:
    """``pid`` and the processes that it started, such as the actuator's guard."""
    children = {int(child) for task in Path(f'/proc/{pid}/task').iterdir() for child in (task / 'children').read_text().split()}
    return [pid, *(member for child in children for member in family(child))]


def processor_s(pid: int) -> float:
    """Processor time of all living threads of ``pid`` and of its children."""
    total = 0
    for member in family(pid):
        for task in Path(f'/proc/{member}/task').iterdir():
            try:
                total += int((task / 'schedstat').read_text().split()[0])
            except OSError:
                continue
    return total / 1e9


def rss_mb(pid: int) -> float:
    return sum(int(line.split()[1]) for member in family(pid) for line in Path(f'/proc/{member}/status').read_text().splitlines()
               if line.startswith('VmRSS')) / 1024


def measure(kind: str, case: Case, framerate: float, saturating: float, recorder: Recorder, seconds: float, warm_s: float) -> dict[str, float]:
    """One run from start to end; figures of the ``seconds`` after the warm-up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recorder.renew()
        launched_ns = time.time_ns()
        lines = {name: [sys.executable, *line] for name, line in command(kind, case, framerate, saturating, folder).items()}
        with running(lines) as children:
            wait_for_frame(lambda: recorder.first_command_ns(launched_ns) if kind in (COMPOSED, SEPARATE) else (folder / 'ready').exists(), kind)
            first_ns = recorder.first_command_ns(launched_ns)
            time.sleep(warm_s)
            begin_ns, before = time.time_ns(), {name: processor_s(child.pid) for name, child in children.items()}
            time.sleep(seconds)
            for ended, child in children.items():
                if child.poll() is not None:
                    raise SystemExit(f'{kind}: {ended} ended with exit code {child.returncode} while it was measured')
            end_ns, after = time.time_ns(), {name: processor_s(child.pid) for name, child in children.items()}
            memory = sum(rss_mb(child.pid) for child in children.values())
            time.sleep(0.3)  # the last records
        if kind == FLOOR:
            frames = [tuple(entry) for entry in json.loads((folder / 'floor.json').read_text())]
        elif kind == TUTORIAL:
            begun, commanded = (json.loads((folder / f'{name}.json').read_text()) for name in ('inference', 'actuator'))
            ends = dict(commanded)
            frames = [(stamp, start, done, ends[stamp]) for stamp, start, done in begun if stamp in ends]
        else:
            frames = recorder.frames()
    cpu = {name: after[name] - before[name] for name in lines}
    return figures(frames, begin_ns, end_ns, cpu, memory, 0 if case.inference_s and not case.busy else 1) | (
        {'first_result_s': (first_ns - launched_ns) / 1e9} if first_ns else {})


def figures(frames: Iterable[tuple[int, ...]], begin_ns: int, end_ns: int, cpu: dict[str, float], memory_mb: float,
            invoking: int) -> dict[str, float]:
    """``frames`` as ``Recorder.frames`` gives them. ``invoking``: processors that are busy while the model runs."""
    inside = sorted((frame for frame in frames if begin_ns <= frame[3] < end_ns), key=lambda frame: frame[3])
    if len(inside) < 5:
        raise SystemExit(f'only {len(inside)} frames came all the way')
    stamps, starts, dones, commands = (np.array(column, np.float64) / 1e6 for column in zip(*inside, strict=True))  # ms
    totals, ages, inference = commands - stamps, starts - stamps, dones - starts
    gaps = np.diff(commands)
    area = ((commands[:-1] - stamps[:-1]) * gaps + gaps ** 2 / 2).sum()
    cpu_ms = sum(cpu.values()) * 1000 / len(inside)
    return {
        'frames': len(inside), 'total_p50': percentile(totals, 50), 'total_p95': percentile(totals, 95), 'total_p99': percentile(totals, 99),
        'age_mean': float(ages.mean()), 'age_p99': percentile(ages, 99), 'inference': percentile(inference, 50),
        'information_age': float(area / gaps.sum()), 'throughput': 1000 * len(gaps) / float(gaps.sum()), 'cpu': cpu_ms,
        'cpu_outside': cpu_ms - invoking * float(inference.mean()), 'rss_mb': memory_mb,
        **{f'cpu_{name}': 1000 * value / len(inside) for name, value in cpu.items()}}


COLUMNS = (('total_p50', 'p50 ms'), ('total_p95', 'p95'), ('total_p99', 'p99'), ('age_mean', 'age at start ms'),
           ('information_age', 'age of info ms'), ('throughput', 'results/s'), ('cpu', 'CPU ms/frame'), ('cpu_outside', 'outside invoke'),
           ('rss_mb', 'RSS MB'))


@dataclass(frozen=True)
class Value:
    """Median over the repeats with the lowest and the highest."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Value:
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        digits = 0 if self.middle >= 100 else 1 if self.middle >= 10 else 2 if self.middle >= 2 else 3
        return f'{self.middle:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})'


Runs = dict[str, dict[str, list[dict[str, float]]]]  # case -> kind -> repeats


def ratio(runs: dict[str, list[dict[str, float]]], kind: str, key: str, base: str = FLOOR) -> Value:
    return Value.of([run[key] / other[key] for run, other in zip(runs[kind], runs[base], strict=True)])


def ratios(runs: Runs) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Case -> kind -> column of the table -> middle, low and high of the ratios to the floor."""
    return {case: {kind: {key: vars(ratio(kinds, kind, key)) for key, _ in COLUMNS} for kind in kinds if kind != FLOOR}
            for case, kinds in runs.items() if FLOOR in kinds}


def table(runs: Runs) -> str:
    lines = []
    for case, kinds in runs.items():
        lines += [f'**{case}**', '', f'| | {" | ".join(title for _, title in COLUMNS)} |', f'|---|{"---|" * len(COLUMNS)}']
        for kind, repeats in kinds.items():
            cells = [str(Value.of([run[key] for run in repeats])) for key, _ in COLUMNS]
            lines.append(f'| {kind} | {" | ".join(cells)} |')
            if FLOOR in kinds and kind != FLOOR:
                lines.append(f'| {kind} / floor | {" | ".join(str(ratio(kinds, kind, key)) for key, _ in COLUMNS)} |')
        lines.append('')
    return '\n'.join(lines)


def targets(runs: Runs) -> list[tuple[str, Value, float, bool]]:
    """(what, value, bound, whether it holds) for ResNet50 at 640x480 and for the slow model."""
    slow, fast, sleepy = (runs[case.name] for case in cases(True))
    period_ms, inference_ms = 1000 / SLOW_MODEL_HZ, 1000 * SLOW_MODEL_S
    found = [
        ('separate processes, total p50 / floor p50', ratio(slow, SEPARATE, 'total_p50'), 1.15),
        ('composed, total p50 / floor p50', ratio(slow, COMPOSED, 'total_p50'), 1.05),
        ('separate processes, p99 / p50 of total', Value.of([run['total_p99'] / run['total_p50'] for run in slow[SEPARATE]]), 1.35)]
    for kind in (SEPARATE, COMPOSED):
        found.append((f"{kind}, results a second / the floor's, saturating camera, at least", ratio(fast, kind, 'throughput'), 0.97))
        found.append((f'{kind}, slow model: frame age at start less T/2, mean, ms',
                      Value.of([run['age_mean'] - period_ms / 2 for run in sleepy[kind]]), 4.0))
        found.append((f'{kind}, slow model: frame age at start p99 / T', Value.of([run['age_p99'] / period_ms for run in sleepy[kind]]), 1.2))
        found.append((f'{kind}, slow model: mean age of information / S',
                      Value.of([run['information_age'] / inference_ms for run in sleepy[kind]]), 1.53))
        found.append((f'{kind}, slow model: processor time a frame / tutorial', ratio(sleepy, kind, 'cpu_outside', TUTORIAL), 1 / 3))
        found.append((f'{kind}, launch to first result, s', Value.of([run['first_result_s'] for run in slow[kind]]), 3.0))
    return [(what, value, bound, value.middle >= bound if what.endswith('at least') else value.middle <= bound) for what, value, bound in found]


def end_with_children() -> None:
    """From now on SIGTERM and Ctrl-C unwind, so that what was started ends with us."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def check_durations(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with a usage error when ``repeats``, ``seconds`` or ``warm_s`` can't be measured."""
    for name, low in (('repeats', 1), ('seconds', 1.0), ('warm_s', 0.0)):
        if not getattr(args, name) >= low:
            parser.error(f'--{name.replace("_", "-")} is {getattr(args, name)}, expected at least {low}')


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--short', action='store_true', help='only the cases that the targets need')
    parser.add_argument('--check', action='store_true', help='exit code 1 when a target is missed')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--seconds', type=float, default=8.0, help='measured of each run')
    parser.add_argument('--warm-s', type=float, default=1.5, help='left out at the start of each run')
    parser.add_argument('--only', default='', help='cases with this text in their name')
    parser.add_argument('--kinds', default=','.join((FLOOR, COMPOSED, SEPARATE, TUTORIAL)))
    parser.add_argument('--out', type=Path, default=Path('build/bench.json'))
    args = parser.parse_args(argv)
    check_durations(parser, args)
    wanted, kinds = [case for case in cases(args.short) if args.only in case.name], args.kinds.split(',')
    if not wanted:
        parser.error(f'--only is {args.only!r}, expected part of one of: {"; ".join(case.name for case in cases(args.short))}')
    if unknown := set(kinds) - {FLOOR, COMPOSED, SEPARATE, TUTORIAL}:
        parser.error(f'--kinds has {min(unknown)!r}, expected some of {FLOOR},{COMPOSED},{SEPARATE},{TUTORIAL}')
    complete = not args.only and set(kinds) == {FLOOR, COMPOSED, SEPARATE, TUTORIAL}
    if args.check and not complete:
        parser.error('--check needs all cases and kinds, without --only and --kinds')
    args.out.parent.mkdir(parents=True, exist_ok=True)
    end_with_children()
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    os.environ.update(transport_environment(os.environ))
    recorder = Recorder()
    floor_s = {case: measure(FLOOR, case, 1e6, 1e6, recorder, 2.0, 0.5)['total_p50'] / 1000 for case in wanted if not case.inference_s}
    runs: Runs = {case.name: {kind: [] for kind in case.kinds if kind in kinds} for case in wanted}
    for repeat in range(args.repeats):
        for case in wanted:
            framerate = case.framerate(floor_s.get(case, 0.0))
            for kind in runs[case.name]:
                run = measure(kind, case, framerate, framerate if case.camera == 'saturating' else 1e9, recorder, args.seconds, args.warm_s)
                runs[case.name][kind].append(run)
                print(f'{repeat + 1}/{args.repeats} {case.name} at {framerate:.1f} Hz, {kind}: ' + ', '.join(
                    f'{key} {value:.4g}' for key, value in run.items()), file=sys.stderr, flush=True)
    print(table(runs))
    found = targets(runs) if complete else []
    if found:
        print('| target | measured | bound | |\n|---|---|---|---|')
    for what, value, bound, holds in found:
        print(f'| {what} | {value} | {bound:.3g} | {"holds" if holds else "missed"} |')
    missed = [f'missed: {what} is {value}, the bound is {bound:.3g}' for what, value, bound, holds in found if not holds]
    args.out.write_text(json.dumps({
        'host': {'machine': platform.machine(), 'processor': processor(), 'cores': os.cpu_count(), 'python': platform.python_version()},
        'seconds': args.seconds, 'runs': runs, 'ratios': ratios(runs),
        'targets': [{'what': what, **vars(value), 'bound': bound, 'holds': holds} for what, value, bound, holds in found]}, indent=1))
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed and args.check else 0


if __name__ == '__main__':
    raise SystemExit(main())
