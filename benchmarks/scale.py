"""What more of everything costs: pipelines on one machine, pixels, hosts, threads and cores.

    make bench-scale                     # everything
    make bench-scale PARTS='hosts'       # of: scale resolution hosts cores
    make bench-scale ARGS='--repeats 5 --seconds 20'

The cells of a part take turns, and all of it is repeated; reported are the median over the repeats and, in brackets, the lowest and the highest.

hosts needs root. Two network namespaces stand for two hosts; all there is in them is a loopback each and the cable between them, so that nothing can
leave the machine. Each has a /dev/shm of its own. They share the clock, so latencies between them are true.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from footprint import pss_mb
from pipeline import (
    COMPOSED,
    RESNET50,
    SEPARATE,
    SMALL,
    Case,
    Recorder,
    Value,
    check_durations,
    command,
    end_with_children,
    family,
    figures,
    node_line,
    processor_s,
    running,
    wait_for_frame,
)

from edge_resnet.deployment import transport_environment
from edge_resnet.pipeline.latency import CAPTURED, FRAME_READY, INFERENCE_STARTED, percentile

CABLE, SLOW_CABLE = 'cable', '100mbit'
SETTLE_S = 1.0  # for the last frames and records to arrive
Commands = dict[str, list[str]]
Cell = Callable[[], dict[str, float]]
Columns = tuple[tuple[str, str], ...]  # (figure, title); a figure after '/' is its ratio to the first cell's in the same repeat
Times = Mapping[int, Mapping[str, int]]  # as Recorder.times gives them


class Run(NamedTuple):
    begin_ns: int
    end_ns: int
    cpu_s: dict[str, float]  # of each process
    pss_mb: float
    counted: dict[str, float]  # how far each of the counters went


def observe(commands: Commands, recorders: Sequence[Recorder], args: argparse.Namespace, counters: Callable[[], dict[str, float]] = dict) -> Run:
    """Run ``commands`` until each recorder has seen a frame through, and then for the time that is measured."""
    for recorder in recorders:
        recorder.renew()
    launched_ns = time.time_ns()
    with running(commands) as children:
        wait_for_frame(lambda: all(recorder.first_command_ns(launched_ns) for recorder in recorders), ', '.join(commands), 30.0 * len(recorders))
        time.sleep(args.warm_s)
        begin_ns, before, counted = time.time_ns(), {name: processor_s(child.pid) for name, child in children.items()}, counters()
        time.sleep(args.seconds)
        end_ns, after, memory = time.time_ns(), {name: processor_s(child.pid) - before[name] for name, child in children.items()}, 0.0
        counted = {name: value - counted[name] for name, value in counters().items()}
        memory = sum(pss_mb(pid) for child in children.values() for pid in family(child.pid))
        time.sleep(SETTLE_S)
    return Run(begin_ns, end_ns, after, memory, counted)


def lines(kind: str, case: Case, framerate: float, folder: Path, namespace: str = '', inference: Sequence[str] = (), others: Sequence[str] = (),
          threads: int = 1) -> Commands:
    """The processes of one pipeline; ``inference`` and ``others`` come before the command lines, such as nice."""
    extra = [*(['-r', f'__ns:=/{namespace}'] if namespace else []), *(['-p', f'num_threads:={threads}'] if threads > 1 else [])]
    folder = folder / (namespace or 'one')
    return {namespace + name: [*(inference if name == 'inference' else others), sys.executable, *line, *extra]
            for name, line in command(kind, case, framerate, 1e9, folder).items()}


def one(kind: str, case: Case, framerate: float, recorder: Recorder, args: argparse.Namespace, **how: object) -> dict[str, float]:
    """Figures of one pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        run = observe(lines(kind, case, framerate, Path(folder), **how), [recorder], args)
    return figures(recorder.frames(), run.begin_ns, run.end_ns, run.cpu_s, run.pss_mb, how.get('threads', 1)) | spans(
        recorder.times(), run.begin_ns, run.end_ns, CAPTURED, FRAME_READY)


def scale(args: argparse.Namespace) -> Iterator[tuple[str, Columns, dict[str, Cell]]]:
    case, framerate = Case('scale', SMALL), 10.0
    recorders = [Recorder(f'p{n}') for n in range(4)]

    def cell(kind: str, count: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            commands = {name: line for n in range(count) for name, line in lines(kind, case, framerate, Path(folder), f'p{n}').items()}
            run = observe(commands, recorders[:count], args)
        each = [recorder.frames() for recorder in recorders[:count]]
        found = figures([frame for frames in each for frame in frames], run.begin_ns, run.end_ns, run.cpu_s, run.pss_mb, 1)
        rates = [sum(run.begin_ns <= frame[3] < run.end_ns for frame in frames) / args.seconds for frames in each]
        return found | {'least': min(rates), 'most': max(rates), 'cores': sum(run.cpu_s.values()) / args.seconds}

    columns = (('total_p50', 'total p50 ms'), ('total_p99', 'p99'), ('least', 'results/s, slowest'), ('most', 'fastest'), ('cpu', 'CPU ms/frame'),
               ('cores', 'cores'), ('rss_mb', 'PSS MB, all'))
    yield f'pipelines, small model, 640x480, {framerate:g} Hz each', columns, {
        f'{count} {kind}': lambda kind=kind, count=count: cell(kind, count) for kind in (SEPARATE, COMPOSED) for count in (1, 2, 4)}


def resolution(args: argparse.Namespace) -> Iterator[tuple[str, Columns, dict[str, Cell]]]:
    recorder, framerate = Recorder(), 10.0
    columns = (('span_p50', 'camera to frame ready p50 ms'), ('span_p99', 'p99'), ('total_p50', 'total p50 ms'),
               ('cpu', 'CPU ms/frame'), ('lost', 'published, not preprocessed %'), ('throughput', 'results/s'))
    yield f'resolution, small model, {framerate:g} Hz', columns, {
        f'{width}x{height} {kind}': lambda kind=kind, width=width, height=height: one(kind, Case('', SMALL, width, height), framerate, recorder, args)
        for kind in (SEPARATE, COMPOSED) for width, height in ((320, 240), (640, 480), (1280, 720), (1920, 1080))}


def cores(args: argparse.Namespace) -> Iterator[tuple[str, Columns, dict[str, Cell]]]:
    have = sorted(os.sched_getaffinity(0))
    if len(have) < 2:
        print('cores: skipped, it needs two cores')
        return
    recorder, first, rest = Recorder(), str(have[0]), ','.join(map(str, have[1:]))
    ways = {'one thread': {}, 'two threads': {'threads': 2},
            f'inference on core {first}, the others on {rest}': {'inference': ['taskset', '-c', first], 'others': ['taskset', '-c', rest]},
            'inference nicer by 5': {'inference': ['nice', '-n', '5']}, 'the others nicer by 5': {'others': ['nice', '-n', '5']}}
    columns = (('inference', 'inference p50 ms'), ('/inference', 'ratio'), ('total_p50', 'total p50 ms'), ('/total_p50', 'ratio'),
               ('total_p99', 'p99 ms'), ('throughput', 'results/s'), ('cpu', 'CPU ms/frame'))
    yield f'ResNet50 640x480, separate processes, 30 Hz, {len(have)} cores', columns, {
        name: lambda how=how: one(SEPARATE, Case('', RESNET50), 30.0, recorder, args, **how) for name, how in ways.items()}


def hosts(args: argparse.Namespace) -> Iterator[tuple[str, Columns, dict[str, Cell]]]:
    """The inner half: runs as the second host."""
    with ExitStack() as stack:
        first = stack.enter_context(cabled())
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'SUBNET'  # of the two namespaces
        recorder, framerate = Recorder(), 30.0
        second, jpeg = ['preprocess', 'inference', 'actuator'], ['-p', 'preprocess:image_transport:=compressed']
        layouts = {'network-sized': (['camera', 'preprocess'], second[1:], [], 224 * 224 * 3), 'raw': (['camera'], second, [], 640 * 480 * 3),
                   'compressed': (['camera'], second, jpeg, 5_000)}  # and the bytes that an image has at least

        def cell(layout: str, case: Case, bandwidth: str) -> dict[str, float]:
            here, there, extra, least = layouts[layout]
            for enter in (first, []):
                shape(enter, bandwidth)
            with tempfile.TemporaryDirectory() as folder:
                commands = {'first': [*first, sys.executable, *node_line(here, case, framerate, f'{folder}/state')],
                            'second': [sys.executable, *node_line(there, case, framerate, f'{folder}/state'), *extra]}
                run = observe(commands, [recorder], args, lambda: interface_bytes(Path('/proc/net/dev').read_text(), CABLE))
            found = spans(recorder.times(), run.begin_ns, run.end_ns, CAPTURED, INFERENCE_STARTED)
            if run.counted['received'] < 0.8 * least * found['ended']:
                raise SystemExit(f'hosts: {found["ended"]:g} {layout} images and only {run.counted["received"]:g} bytes on the cable')
            sizes = {f'{name}_mb': value / args.seconds / 1e6 for name, value in run.counted.items()}
            return found | sizes | {f'{name}_cpu': 1000 * value / max(1, found['ended']) for name, value in run.cpu_s.items()}

        columns = (('received_mb', 'MB/s'), ('sent_mb', 'MB/s back'), ('rate', 'inferred/s'), ('lost', 'published, not inferred %'),
                   ('span_p50', 'capture to inference p50 ms'), ('span_p99', 'p99'), ('first_cpu', 'CPU ms/frame, camera host'),
                   ('second_cpu', 'the other'))
        for name, case in (('small model, every frame', Case('', SMALL)), ('model of 200 ms', Case('', SMALL, inference_s=0.2))):
            for bandwidth in ('', SLOW_CABLE) if shutil.which('tc') else ('',):
                yield f'two hosts, 640x480, {framerate:g} Hz, {name}, {bandwidth or "cable without limit"}', columns, {
                    layout: lambda layout=layout, case=case, bandwidth=bandwidth: cell(layout, case, bandwidth) for layout in layouts}


@contextmanager
def cabled() -> Iterator[list[str]]:
    """A second host and the cable to it; what has to stand before a command that is to run there. We are in namespaces of our own."""
    def shell(text: str, enter: Sequence[str] = ()) -> None:
        subprocess.run([*enter, 'sh', '-ec', text], check=True)

    up = 'ip addr add 10.77.0.{}/24 dev cable; ip link set cable up; ip route add 224.0.0.0/4 dev cable'
    shell('mount -t tmpfs tmpfs /dev/shm; ip link set lo up')
    # cat ends when we do, and the namespace with it
    other = subprocess.Popen(['unshare', '--net', '--mount', 'sh', '-ec', 'mount -t tmpfs tmpfs /dev/shm; ip link set lo up; echo; exec cat'],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        other.stdout.readline()
        enter = ['nsenter', '-t', str(other.pid), '--net', '--mount']
        shell(f'ip link add {CABLE} type veth peer name {CABLE} netns {other.pid}; {up.format(2)}')
        shell(up.format(1), enter)
        for net in (Path('/proc/net/dev'), Path(f'/proc/{other.pid}/net/dev')):
            if (names := interfaces(net.read_text())) != {'lo', CABLE}:
                raise SystemExit(f'hosts: expected no interface but lo and {CABLE}, found {", ".join(sorted(names))}')
        yield enter
    finally:
        other.kill()
        other.wait()


def shape(enter: Sequence[str], bandwidth: str) -> None:
    """Limit what leaves this end of the cable; empty: no limit."""
    if shutil.which('tc'):
        subprocess.run([*enter, 'tc', 'qdisc', 'del', 'dev', CABLE, 'root'], stderr=subprocess.DEVNULL, check=False)
    if bandwidth:
        bucket = ['tbf', 'rate', bandwidth, 'burst', '64kb', 'latency', '100ms']
        subprocess.run([*enter, 'tc', 'qdisc', 'add', 'dev', CABLE, 'root', *bucket], check=True)


def interfaces(net_dev: str) -> set[str]:
    return {line.partition(':')[0].strip() for line in net_dev.splitlines()[2:]}


def interface_bytes(net_dev: str, name: str) -> dict[str, float]:
    """What ``name`` received and sent, from /proc/net/dev."""
    line = next(line for line in net_dev.splitlines() if line.partition(':')[0].strip() == name)
    columns = line.partition(':')[2].split()
    return {'received': float(columns[0]), 'sent': float(columns[8])}


def spans(times: Times, begin_ns: int, end_ns: int, begun: str, ended: str) -> dict[str, float]:
    """From capture to stage ``ended``, of the frames with stage ``begun`` in the given time, and how many of these never came there."""
    inside = {stamp: stages for stamp, stages in times.items() if begin_ns <= stages.get(begun, 0) < end_ns}
    through = [(stages[ended] - stamp) / 1e6 for stamp, stages in inside.items() if ended in stages]
    if not through:
        raise SystemExit(f'no frame of {len(inside)} came to {ended}')
    return {'ended': len(through), 'rate': 1e9 * len(through) / (end_ns - begin_ns), 'lost': 100 * (1 - len(through) / len(inside)),
            'span_p50': percentile(through, 50), 'span_p99': percentile(through, 99)}


def table(title: str, columns: Columns, runs: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    base = next(iter(runs.values()))
    rows = [f'**{title}**', '', f'| | {" | ".join(name for _, name in columns)} | load |', f'|---|{"---|" * (len(columns) + 1)}']
    for name, repeats in runs.items():
        cells = [Value.of([run[key[1:]] / other[key[1:]] for run, other in zip(repeats, base, strict=True)] if key.startswith('/') else
                          [run[key] for run in repeats]) for key, _ in (*columns, ('load', ''))]
        rows.append(f'| {name} | {" | ".join(map(str, cells))} |')
    return '\n'.join([*rows, ''])


PARTS = {'scale': scale, 'resolution': resolution, 'hosts': hosts, 'cores': cores}


def isolated() -> bool:
    """Whether hosts can run; if so, it runs from here in namespaces of its own."""
    missing = [tool for tool in ('ip', 'unshare', 'nsenter') if not shutil.which(tool)]
    if os.geteuid() or missing:
        print(f'hosts: skipped, it needs root, ip, unshare and nsenter{"; there is no " + missing[0] if missing else ""}')
        return False
    if not shutil.which('tc'):
        print('hosts: there is no tc, so no slow cable')
    return True


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', metavar='PART', help=f'of {", ".join(PARTS)}; none: all')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--seconds', type=float, default=6.0, help='measured of each run')
    parser.add_argument('--warm-s', type=float, default=1.5, help='left out at the start of each run')
    parser.add_argument('--only', default='', help='cells with this text in their title or name')
    parser.add_argument('--out', type=Path, default=Path('build'), help='folder of scale_PART.json')
    parser.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)  # the namespaces of hosts
    args = parser.parse_args(argv)
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f'no part {unknown[0]}, expected some of {", ".join(PARTS)}')
    check_durations(parser, args)
    end_with_children()
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    os.environ.update(transport_environment(os.environ))
    failed = 0
    for part in args.parts or PARTS:
        if part == 'hosts' and not args.inside:
            options = [f'--{name.replace("_", "-")}={getattr(args, name)}' for name in ('repeats', 'seconds', 'warm_s', 'only', 'out')]
            inner = ['unshare', '--net', '--mount', sys.executable, str(Path(__file__).resolve()), 'hosts', '--inside', *options]
            failed += isolated() and subprocess.run(inner, check=False).returncode != 0
            continue
        measure(part, args)
    return int(failed > 0)


def measure(part: str, args: argparse.Namespace) -> None:
    """Run, print and keep one part."""
    kept = {}
    for title, columns, cells in PARTS[part](args):
        wanted = {name: cell for name, cell in cells.items() if args.only in f'{title} {name}'}
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
        for repeat in range(args.repeats):
            for name, cell in wanted.items():
                runs[name].append(cell() | {'load': os.getloadavg()[0]})
                print(f'{repeat + 1}/{args.repeats} {title}, {name}: ' + ', '.join(f'{key} {value:.4g}' for key, value in runs[name][-1].items()),
                      file=sys.stderr, flush=True)
        if runs:
            print(table(title, columns, runs), flush=True)
        kept[title] = runs
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f'scale_{part}.json').write_text(json.dumps({
        'host': {'machine': platform.machine(), 'cores': os.cpu_count(), 'python': platform.python_version()}, 'seconds': args.seconds, 'runs': kept},
        indent=1))


if __name__ == '__main__':
    raise SystemExit(main())
