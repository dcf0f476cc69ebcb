"""Runs the pipeline for a long time and watches each process: memory, open files, threads, and the latency of its frames.

    make soak MINUTES=60

Writes soak.csv (a line every few seconds), soak.json and soak.png to --out. Exit code 1 when a process grew by more than --max-growth MB
of resident memory between the end of the settling time and the end, or its files or threads grew. Pages of shared memory are told apart:
a reader maps the 16 MiB segment of each writer, and counts more of it once more messages than ever before were on their way at a time; they
are the writer's, which has all of it from the start. They may grow by one segment.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from sensor_msgs.msg import TimeReference

from edge_resnet.conversions import stamp_ns
from edge_resnet.deployment import plan, transport_environment
from edge_resnet.nodes.base import RECORD_QOS
from edge_resnet.pipeline.latency import SLICES, StageJoiner, percentile

GROWING = ('rss_mb', 'shared_mb', 'files', 'threads')
FIELDS = (*GROWING, 'cpu_percent')
SEGMENT_MB = 16.0  # config/fastdds.xml
START_S = 60.0  # for the first frame to come through, which is where the time begins
EDGE_SHARE = 0.1  # growth is the median of the last tenth minus that of the first tenth after settling: single readings jump by a page or two


def sample(pid: int) -> dict[str, float]:
    """Resident memory in MB and how much of it is shared memory, open files, threads and processor seconds of a process."""
    status = dict(line.split(':', 1) for line in Path(f'/proc/{pid}/status').read_text().splitlines())
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    rss_mb, shared_mb = (int(status[key].split()[0]) / 1024 for key in ('VmRSS', 'RssShmem'))
    return {'rss_mb': rss_mb, 'shared_mb': shared_mb, 'files': len(os.listdir(f'/proc/{pid}/fd')), 'threads': int(status['Threads']),
            'cpu_s': (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')}


def guard_of(pid: int) -> int | None:
    """The guard process of the actuator node in process ``pid``."""
    children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return next((int(child) for child in children if b'edge_resnet.hardware.guard' in Path(f'/proc/{child}/cmdline').read_bytes()), None)


class Latency:
    """The latencies of whole frames since it was last asked."""

    def __init__(self) -> None:
        self._joiner = StageJoiner()
        self._frames: list[float] = []
        self.started = False

    def on_stage(self, message: TimeReference) -> None:
        ended = self._joiner.add(message.source, stamp_ns(message.header), message.time_ref.sec * 1_000_000_000 + message.time_ref.nanosec)
        if ended is not None:
            self._frames.append(getattr(ended, SLICES[-1]))
            self.started = True

    def take(self) -> dict[str, float]:
        frames, self._frames = self._frames, []
        return {'frames': len(frames), 'p50_ms': percentile(frames, 50), 'p95_ms': percentile(frames, 95)}


def growth(rows: list[dict[str, float]], name: str, field: str, settle_s: float) -> float:
    """How much ``field`` of process ``name`` grew after the settling time; medians of both ends."""
    values = [row[f'{name} {field}'] for row in rows if row['time_s'] >= settle_s and not math.isnan(row[f'{name} {field}'])]
    if not values:
        return math.nan
    edge = max(1, round(EDGE_SHARE * len(values)))
    return float(np.median(values[-edge:]) - np.median(values[:edge]))


def plot(rows: list[dict[str, float]], names: list[str], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    minutes = [row['time_s'] / 60 for row in rows]
    figure, axes = plt.subplots(4, 1, figsize=(9, 11), sharex=True, constrained_layout=True)
    for axis, field, label in zip(axes, ('rss_mb', 'files', 'threads'), ('resident memory (MB)', 'open files', 'threads'), strict=False):
        for name in names:
            axis.plot(minutes, [row[f'{name} {field}'] for row in rows], label=name, linewidth=1.2)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(loc='upper left', bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes[3].plot(minutes, [row['p50_ms'] for row in rows], label='p50', linewidth=1.2)
    axes[3].plot(minutes, [row['p95_ms'] for row in rows], label='p95', linewidth=0.8)
    axes[3].set_ylabel('capture to actuator (ms)')
    axes[3].set_ylim(bottom=0)
    axes[3].grid(alpha=0.3)
    axes[3].legend(loc='upper left', bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes[3].set_xlabel('minutes')
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=60.0)
    parser.add_argument('--settle', type=float, default=None, help='minutes that do not count, 5 of an hour')
    parser.add_argument('--period', type=float, default=5.0, help='seconds between two samples')
    parser.add_argument('--framerate', type=float, default=30.0)
    parser.add_argument('--max-growth', type=float, default=5.0, help='MB of resident memory')
    parser.add_argument('--out', type=Path, default=Path('build/soak'))
    parser.add_argument('arguments', nargs='*', metavar='name:=value', help='as of the launch file')
    options = parser.parse_args(argv)
    settle_s = 60 * (options.minutes / 12 if options.settle is None else options.settle)
    options.out.mkdir(parents=True, exist_ok=True)

    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder, 'actuator.state')
        given = dict(text.split(':=', 1) for text in options.arguments)
        extra = {'camera_node': ['-p', f'framerate:={options.framerate}'], 'actuator_node': ['-p', f'state_file:={state}']}
        extra['pipeline'] = [part for arguments in extra.values() for part in arguments]  # composed:=true
        environment = {**os.environ, **transport_environment(os.environ)}
        children = {}
        with (options.out / 'nodes.log').open('w') as log:
            for name, arguments in plan(given).executables.items():
                children[name] = subprocess.Popen([sys.executable, '-m', f'edge_resnet.nodes.{name}', *arguments, *extra.get(name, [])],
                                                  env=environment, stdout=log, stderr=log)
        rclpy.init(args=[], signal_handler_options=rclpy.SignalHandlerOptions.ALL)
        node = rclpy.create_node('soak')
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        latency = Latency()
        node.create_subscription(TimeReference, 'stage_times', latency.on_stage, RECORD_QOS)
        try:
            rows, ended = watch(executor, children, latency, options.minutes * 60, options.period, options.out / 'soak.csv')
        finally:
            for child in children.values():
                child.send_signal(signal.SIGTERM)
            codes = {name: child.wait(20) for name, child in children.items()}
            rclpy.try_shutdown()
        off = state.exists() and state.read_text() == '0\n'
    return report(rows, options, settle_s, [*ended, *(f'{name} ended with exit code {code}' for name, code in codes.items() if code)], off)


def watch(executor: SingleThreadedExecutor, children: dict[str, subprocess.Popen], latency: Latency, seconds: float, period_s: float,
          path: Path) -> tuple[list[dict[str, float]], list[str]]:
    """(samples, what ended early); also written to ``path`` as they come."""
    deadline = time.monotonic() + START_S
    while not latency.started and time.monotonic() < deadline and all(child.poll() is None for child in children.values()):
        executor.spin_once(timeout_sec=0.1)
    start = before = time.monotonic()
    names = [*(name.removesuffix('_node') for name in children), 'guard']
    holder = children['actuator_node' if 'actuator_node' in children else 'pipeline'].pid
    rows: list[dict[str, float]] = []
    cpu_s: dict[str, float] = {}
    ended: list[str] = []
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, ['time_s', 'frames', 'p50_ms', 'p95_ms', *(f'{name} {field}' for name in names for field in FIELDS)])
        writer.writeheader()
        while before - start < seconds and not ended:
            try:
                while time.monotonic() < before + period_s:
                    executor.spin_once(timeout_sec=max(0.0, before + period_s - time.monotonic()))
            except (KeyboardInterrupt, ExternalShutdownException):
                break
            now = time.monotonic()
            row: dict[str, float] = {'time_s': round(now - start, 2), **latency.take()}
            for name, child in zip(names, [*children.values(), None], strict=True):
                try:
                    found = sample(guard_of(holder) or 0 if child is None else child.pid)
                except (OSError, KeyError):
                    row.update({f'{name} {field}': math.nan for field in FIELDS})
                    if name in cpu_s:
                        ended.append(f'{name} was gone after {now - start:.0f} s')
                    continue
                found['cpu_percent'] = 100 * (found['cpu_s'] - cpu_s.get(name, found['cpu_s'])) / (now - before)
                cpu_s[name] = found['cpu_s']
                row.update({f'{name} {field}': round(found[field], 2) for field in FIELDS})
            before = now
            writer.writerow(row)
            file.flush()
            rows.append(row)
    return rows, ended


def report(rows: list[dict[str, float]], options: argparse.Namespace, settle_s: float, faults: list[str], off: bool) -> int:
    names = [key.removesuffix(' rss_mb') for key in rows[0] if key.endswith(' rss_mb')]
    table = []
    print(f'{"process":<18}{"RSS first":>10}{"RSS last":>10}{"growth":>9}{"shared":>9}{"files":>7}{"threads":>9}{"CPU":>8}   '
          f'after {settle_s / 60:.1f} min')
    for name in names:
        grown = {field: growth(rows, name, field, settle_s) for field in GROWING}
        own_mb = grown['rss_mb'] - grown['shared_mb']
        settled = [row for row in rows if row['time_s'] >= settle_s]
        cpu = float(np.median([row[f'{name} cpu_percent'] for row in settled]))
        table.append({'process': name, 'rss_first_mb': settled[0][f'{name} rss_mb'], 'rss_last_mb': settled[-1][f'{name} rss_mb'],
                      'rss_growth_mb': grown['rss_mb'], 'shared_growth_mb': grown['shared_mb'],
                      'files_growth': grown['files'], 'threads_growth': grown['threads'], 'cpu_percent': cpu})
        entry = table[-1]
        print(f'{name:<18}{entry["rss_first_mb"]:>7.1f} MB{entry["rss_last_mb"]:>7.1f} MB{grown["rss_mb"]:>+6.2f} MB{grown["shared_mb"]:>+6.2f} MB'
              f'{grown["files"]:>+7.0f}{grown["threads"]:>+9.0f}{cpu:>7.1f}%')
        for what, by_mb, allowed_mb in (('memory', own_mb, options.max_growth), ('shared memory', grown['shared_mb'], SEGMENT_MB)):
            if not by_mb < allowed_mb:  # so that what could not be looked at is a miss too
                faults.append(f'{name}: {what} grew by {by_mb:.1f} MB, allowed is less than {allowed_mb:g}')
        faults += [f'{name}: {field} grew by {grown[field]:.0f}' for field in ('files', 'threads') if not grown[field] <= 0]
    settled = [row for row in rows if row['time_s'] >= settle_s]
    edge = max(1, round(EDGE_SHARE * len(settled)))
    ends = {field: [float(np.nanmedian([row[field] for row in part])) for part in (settled[:edge], settled[-edge:])]
            for field in ('p50_ms', 'p95_ms')}
    frames = int(sum(row['frames'] for row in rows))
    print(f'{frames} frames in {rows[-1]["time_s"] / 60:.1f} min at {options.framerate:g} Hz; capture to actuator p50 {ends["p50_ms"][0]:.1f} -> '
          f'{ends["p50_ms"][1]:.1f} ms, p95 {ends["p95_ms"][0]:.1f} -> {ends["p95_ms"][1]:.1f} ms')
    if not sum(row['frames'] for row in settled[-edge:]):
        faults.append('no frame came through at the end')
    if not off:
        faults.append('the actuator was on at the end')
    minutes = rows[-1]['time_s'] / 60
    if minutes < options.minutes * 0.99:
        faults.append(f'ended after {minutes:.1f} of {options.minutes:g} minutes')
    result = {'minutes': minutes, 'settle_s': settle_s, 'framerate_hz': options.framerate, 'frames': frames, 'latency_ms': ends,
              'processes': table, 'faults': faults, 'machine': platform.machine(), 'cores': os.cpu_count(), 'python': platform.python_version()}
    (options.out / 'soak.json').write_text(json.dumps(result, indent=1) + '\n')
    plot(rows, names, options.out / 'soak.png', f'{minutes:.0f} minutes at {options.framerate:g} Hz, {os.cpu_count()} cores')
    for fault in faults:
        print(f'soak: {fault}', file=sys.stderr)
    print('soak: ' + ('missed' if faults else 'no growth of memory, files or threads'))
    return int(bool(faults))


if __name__ == '__main__':
    raise SystemExit(main())
