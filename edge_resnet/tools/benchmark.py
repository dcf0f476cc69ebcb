"""How fast models are on this machine, cold and hot, and what they cost: every model x threads x runtime, each in processes of its own.

    ros2 run edge_resnet benchmark --models resnet50_traffic_lights models/my --threads 1 2 4 --seconds 60 --out reports/pi4
    ros2 run edge_resnet benchmark --models build/my --runtimes litert tflite_runtime --no-delegate --runs 200 --out reports/my

A latency is that of the classifier: network-sized image in, scores out, on frames fitted beforehand as the pipeline does it. The
combinations take turns, in --rounds, so that whatever else the machine does hits all alike; with --rounds 1 each runs in one go and
heats the board as the pipeline does. Temperature, clock, throttling and power are read beside, and unknown where there is no sensor.
MB are 1e6 bytes. Writes benchmark.json, benchmark.md and latency.png into --out, all or nothing.
"""

from __future__ import annotations

import argparse
import json
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edge_resnet.exceptions import EdgeResnetError, ModelError, ParameterError
from edge_resnet.hardware.power import PowerSensor
from edge_resnet.hardware.thermal import ThermalReader, ThermalReading, TransitionLog
from edge_resnet.pipeline.bundle import Bundle, find_shared
from edge_resnet.pipeline.classifier import Classifier
from edge_resnet.pipeline.interpreter import RUNTIMES, find_runtime
from edge_resnet.pipeline.latency import percentile
from edge_resnet.tools import plots, report  # not dataset: OpenCV would count in the memory of a measured process

FILES = ('benchmark.json', 'benchmark.md', 'latency.png')
BOUNDS = {'threads': (1, 64), 'runs': (1, 10 ** 7), 'seconds': (0.1, 86_400), 'rounds': (1, 1000), 'timeout': (1, 86_400)}
FRAMES, WARM_UP = 8, 5
FIRST_S = 60.0
SAMPLE_S = 1.0  # between two looks at the board's sensors
PERCENTILES = {'p50': 50, 'p95': 95, 'p99': 99, 'max': 100}
HEAD = ('model', 'size', 'runtime', 'threads', 'load ms', *(f'{name} ms' for name in PERCENTILES), 'first p50', 'steady p50', 'peak MB', 'hottest C',
        'throttled', 'mJ a run')
CHILD = 'import sys; from edge_resnet.tools import benchmark; benchmark.child(sys.argv[1])'


class Combination(NamedTuple):
    model: str
    runtime: str
    threads: int
    delegate: bool

    def __str__(self) -> str:
        return f'{self.model}, {self.runtime}{"" if self.delegate else " without delegate"}, {self.threads} thread{"s" * (self.threads > 1)}'


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('benchmark', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', required=True, help="bundles' names or folders, or folders with float.tflite")
    parser.add_argument('--threads', type=int, nargs='+', default=[1], help='of one inference (default: 1)')
    parser.add_argument('--runtimes', nargs='+', choices=tuple(RUNTIMES), default=['litert'], help='(default: litert)')
    parser.add_argument('--no-delegate', action='store_true', help='also without the default delegate, XNNPACK')
    parser.add_argument('--frames', type=Path, help=f'folder of images, of which {FRAMES} are used (default: the sample frames)')
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--runs', type=int, help='inferences of each combination')
    length.add_argument('--seconds', type=float, default=20.0, help='time for each combination instead (default: %(default)g)')
    parser.add_argument('--rounds', type=int, default=3, help='parts that it is cut into (default: %(default)s)')
    parser.add_argument('--timeout', type=float, default=600.0, metavar='S', help='most that a part may take beyond its time (default: %(default)g)')
    parser.add_argument('--sysfs-root', type=Path, default=Path('/'), help='where sys/ and proc/ with the sensors are (default: /)')
    return report.options(parser).parse_args(argv)


def measure(bundle: Bundle, frames: np.ndarray, how: Combination, runs: int | None, seconds: float, sysfs_root: Path) -> dict[str, Any]:
    """Load, warm up, then run ``runs`` times, or for ``seconds``. ``frames``: (N, H, W, 3) uint8. ``timeline`` has what the sensors
    said each second with the latency since; ``at`` is the system's monotonic clock, in s."""
    board, power = ThermalReader(sysfs_root), PowerSensor(sysfs_root)
    find_runtime(how.runtime)  # its import is not the model's load time
    begin = time.perf_counter()
    classifier = Classifier(bundle, how.runtime, how.threads, default_delegate=how.delegate, trial=False)  # this process is the trial
    loaded = time.perf_counter()
    classifier.classify(frames[0])
    first = time.perf_counter()
    classifier.warm_up(WARM_UP)
    latency: list[float] = []
    timeline: list[dict[str, Any]] = []
    cpu, seen, start, done = 0.0, 0, time.perf_counter(), False
    while True:
        now = time.perf_counter()
        if done or not timeline or now - timeline[-1]['at'] >= SAMPLE_S:
            reading, since = board.read(), latency[seen:]
            timeline.append({
                'at': now, 'runs': len(since), 'p50_ms': round(percentile(since, 50), 3) if since else None, 'power_w': report.rounded(power.read()),
                **{name: getattr(reading, name) for name in ('temperature_c', 'clock_mhz', 'throttle_bits', 'load_1min')}})
            seen = len(latency)
        if done:
            break
        worked, now = time.process_time(), time.perf_counter()
        classifier.classify(frames[len(latency) % len(frames)])
        end = time.perf_counter()
        cpu += time.process_time() - worked
        latency.append(1000 * (end - now))
        done = len(latency) >= runs if runs else end - start >= seconds
    status = Path('/proc/self/status')  # getrusage's maximum would count the parent's memory at the fork
    peaks = [1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith('VmHWM')] if status.is_file() else []
    return {'latency': latency, 'timeline': timeline, 'cpu': 1000 * cpu / len(latency), 'load': 1000 * (loaded - begin),
            'first': 1000 * (first - loaded), 'rss': peaks[0] / 1e6 if peaks else None, 'power_sensor': power.name}


def child(folder: str) -> None:
    """In a process of its own: ``measure`` what ``folder``/job.pickle says, into ``folder``/result.json."""
    try:
        bundle, frames, how, *rest = pickle.loads(Path(folder, 'job.pickle').read_bytes())
        result = measure(bundle, frames, Combination(*how), *rest)
    except (EdgeResnetError, ValueError, RuntimeError, MemoryError) as error:
        result = {'error': str(error).strip().split('\n')[0] or type(error).__name__}
    Path(folder, 'result.json').write_text(json.dumps(result))


def in_a_child(timeout_s: float, *job: Any) -> dict[str, Any]:
    """The result of ``measure(*job)`` in a child process, or its {'error': reason}, whatever becomes of that process."""
    with tempfile.TemporaryDirectory() as temp:
        Path(temp, 'job.pickle').write_bytes(pickle.dumps(job))
        try:
            ended = subprocess.run([sys.executable, '-c', CHILD, temp], capture_output=True, text=True, errors='replace', timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return {'error': f'did not end within {timeout_s:g} s'}
        if ended.returncode < 0:
            return {'error': f'crashed ({signal.Signals(-ended.returncode).name})'}
        if ended.returncode:
            return {'error': (ended.stderr.strip().splitlines() or [f'exit code {ended.returncode}'])[-1]}
        return json.loads(Path(temp, 'result.json').read_text())


def percentiles(values: np.ndarray) -> dict[str, float]:
    return {name: round(percentile(values.tolist(), q), 3) for name, q in PERCENTILES.items()}


def summary(parts: list[dict[str, Any]], origin: float) -> dict[str, Any]:
    """The figures of one combination from its ``parts``, one a round; ``t_s`` counts from ``origin``."""
    latency = np.concatenate([part['latency'] for part in parts])
    timeline = [{'t_s': round(entry['at'] - origin, 2), **entry} for part in parts for entry in part['timeline']]
    known = {name: [entry[name] for entry in timeline if entry[name] is not None] for name in timeline[0]}
    for entry in timeline:
        del entry['at']
    spent = np.cumsum(latency) / 1000  # its own time, without the others' turns
    first_s = max(spent[0], min(FIRST_S, spent[-1] / 4))
    watts, memory = known['power_w'], [part['rss'] for part in parts if part['rss'] is not None]
    flags = {flag for bits in known['throttle_bits'] for flag, on in TransitionLog().update(ThermalReading(throttle_bits=bits)) if on}
    load_ms, first_run_ms, cpu_ms = (round(percentile([part[name] for part in parts], 50), 3) for name in ('load', 'first', 'cpu'))
    return {
        'runs': len(latency), 'latency_ms': percentiles(latency), 'cpu_ms': cpu_ms, 'load_ms': load_ms, 'first_run_ms': first_run_ms,
        'first_part_s': round(float(first_s), 3), 'first_part_ms': percentiles(latency[spent <= first_s]),
        'steady_ms': percentiles(latency[spent >= spent[-1] / 2]), 'peak_rss_mb': round(max(memory), 1) if memory else None,
        'temperature_max_c': max(known['temperature_c'], default=None), 'clock_min_mhz': min(known['clock_mhz'], default=None),
        'throttled': sorted(flags) if known['throttle_bits'] else None, 'power_sensor': parts[0]['power_sensor'],
        'energy_mj_per_run': round(float(np.mean(watts) * np.mean(latency)), 3) if watts else None, 'timeline': timeline}


def load(models: Iterable[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Bundle]]:
    """(what the report says of each model, the bundles of those that are not refused), by name."""
    said: dict[str, dict[str, Any]] = {}
    bundles: dict[str, Bundle] = {}
    for model in models:
        try:
            bundle = report.open_model(model)
            entry = report.described(model, bundle)
        except EdgeResnetError as error:
            said[model] = {'name': model, 'error': str(error)}
            continue
        if said.get(bundle.name, entry).get('sha256') != entry['sha256']:
            raise ParameterError(f'models: {said[bundle.name]["model"]} and {model} are both named {bundle.name} but differ')
        said[bundle.name], bundles[bundle.name] = entry, bundle
    return said, bundles


def benchmark(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """(the report, all latencies of each row that ran, by its name); ParameterError refuses, ModelError when nothing could run."""
    from edge_resnet.pipeline.preprocessing import resize
    from edge_resnet.tools.dataset import images, progress, read_rgb

    report.check(args, BOUNDS)
    files = images(args.frames or find_shared('samples'))
    photos = [read_rgb(files[index]) for index in np.unique(np.linspace(0, len(files) - 1, FRAMES).astype(int))]
    said, bundles = load(args.models)
    frames = {name: np.stack([resize(photo, bundle.preprocessing) for photo in photos]) for name, bundle in bundles.items()}
    ways = product(said, args.runtimes, args.threads, [True, False][:1 + args.no_delegate])
    refused = {how: said[how.model].get('error', '') for how in map(Combination._make, ways)}
    parts: dict[Combination, list[dict[str, Any]]] = {how: [] for how in refused}
    runs, origin = args.runs and -(-args.runs // args.rounds), time.perf_counter()
    seconds = 0.0 if runs else args.seconds / args.rounds
    turns = [how for turn in range(args.rounds) for how in list(parts)[::-1 if turn % 2 else 1]]  # there and back: a steady drift cancels out
    for how in progress(turns, 'benchmarking, part'):
        if not refused[how]:
            part = in_a_child(seconds + args.timeout, bundles[how.model], frames[how.model], tuple(how), runs, seconds, args.sysfs_root)
            refused[how] = part.get('error', '')
            parts[how].append(part)
    if all(refused.values()):
        how, reason = next(iter(refused.items()))
        raise ModelError(f'none of {len(refused)} combinations could run; {how}: {reason}')
    rows = [{**how._asdict(), **({'error': refused[how]} if refused[how] else summary(some, origin))} for how, some in parts.items()]
    board = sorted((entry for row in rows for entry in row.get('timeline', ())), key=lambda entry: entry['t_s'])
    log, settings = TransitionLog(), {name: getattr(args, name) for name in ('runs', 'seconds', 'rounds')}
    events = [{'t_s': entry['t_s'], 'flag': flag, 'on': on} for entry in board
              for flag, on in log.update(ThermalReading(throttle_bits=entry['throttle_bits']))]
    settings.update(seconds=None if args.runs else args.seconds, warm_up_runs=1 + WARM_UP, frames=len(photos), source=files[0].parent.resolve().name)
    result = {**report.header('benchmark'), 'settings': settings, 'models': list(said.values()), 'rows': rows,
              'throttle_events': events if any(entry['throttle_bits'] is not None for entry in board) else None}
    return result, {str(how): [ms for part in some for ms in part['latency']] for how, some in parts.items() if not refused[how]}


def markdown(result: dict[str, Any], drawn: bool) -> str:
    sizes = {entry['name']: report.megabytes(entry['size_bytes']) for entry in result['models'] if 'size_bytes' in entry}
    rows, reasons, host = [], [], result['host']
    for row in result['rows']:
        how = Combination(*(row[name] for name in Combination._fields))
        if 'error' in row:
            reasons.append(f'- {how}: {row["error"]}\n')
            continue
        rows.append([
            how.model, sizes[how.model], how.runtime if how.delegate else f'{how.runtime}, no delegate', how.threads, row['load_ms'],
            *row['latency_ms'].values(), row['first_part_ms']['p50'], row['steady_ms']['p50'], row['peak_rss_mb'], row['temperature_max_c'],
            None if row['throttled'] is None else ', '.join(row['throttled']) or 'no', row['energy_mj_per_run']])
    return '\n'.join([
        f'# Benchmark on {host["processor"]}, {host["cores"]} cores, {host["memory_mb"]} MB\n', report.table(HEAD, rows),
        f'First: the first minute of its time, or quarter of less. Steady: the last half. {host["packages"]}; {host["kernel"]}.\n',
        *(['## Could not run\n', ''.join(reasons)] if reasons else []), '![Latency](latency.png)\n' if drawn else report.NO_PLOTS])


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)

    def work() -> int:
        report.check_out(args.out, FILES, args.force)
        result, latencies = benchmark(args)
        return report.deliver(args, FILES, result, markdown, ((9, 5 + 0.3 * len(latencies)), lambda chart: plots.latency(result, latencies, chart)))

    return report.run('benchmark', work)


if __name__ == '__main__':
    raise SystemExit(main())
