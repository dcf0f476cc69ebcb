"""Runs the pipeline and prints what it does, on a machine without ros2 launch: the same nodes, the same arguments.

    edge_resnet_demo source:=/dev/video0 model:=resnet50_traffic_lights composed:=true

Ends on Ctrl-C, or with an error when one of the nodes ends by itself.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from edge_resnet.deployment import ARGUMENTS, plan, use_transport_profile
from edge_resnet.exceptions import EdgeResnetError
from edge_resnet.stopping import StopRequest

GRACE_S = 5.0
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    listing = '\n'.join(f'  {argument.name}:={argument.default or "..."}  {argument.description}' for argument in ARGUMENTS)
    parser = argparse.ArgumentParser(prog='edge_resnet_demo', description=__doc__, epilog=f'arguments:\n{listing}',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('arguments', nargs='*', metavar='name:=value')
    given = parser.parse_args(argv).arguments
    for text in given:
        if ':=' not in text:
            parser.error(f'{text!r} is not of the form name:=value')
    try:
        deployment = plan(dict(text.split(':=', 1) for text in given))
    except EdgeResnetError as error:
        parser.error(str(error))

    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))  # two demos don't hear each other
    use_transport_profile()
    _use_writable_log_folder()
    if deployment.waits:
        print('autostart is false: the nodes wait for a lifecycle manager', flush=True)
    print(f'edge_resnet on ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]}, Ctrl-C ends it', flush=True)
    stop = StopRequest().on_signals()
    namespace = ['-r', f'__ns:=/{deployment.namespace.strip("/")}'] if deployment.namespace else []
    commands = {'console_node': ['--ros-args'], **deployment.executables}
    children = {
        name: subprocess.Popen([sys.executable, '-m', f'edge_resnet.nodes.{name}', *arguments, *namespace],
                               preexec_fn=_die_with_parent)
        for name, arguments in commands.items()
    }
    ended: list[str] = []
    while not stop.wait(0.2) and not ended:
        ended = [name for name, child in children.items() if child.poll() is not None]
    _stop(children)
    if ended and not stop.is_set():
        print(f'{ended[0]} ended by itself with exit code {children[ended[0]].returncode}', file=sys.stderr)
        return 1
    return 0


def _use_writable_log_folder() -> None:
    """Without a usable HOME, ROS has no place for its logs, and no node starts."""
    if not {'ROS_LOG_DIR', 'ROS_HOME'} & os.environ.keys():
        home = os.environ.get('HOME', '')
        if not (home and os.access(home, os.W_OK)):
            os.environ['ROS_LOG_DIR'] = tempfile.mkdtemp(prefix='edge_resnet_log_')


def _stop(children: dict[str, subprocess.Popen]) -> None:
    """Ask every child to end, and end those that don't."""
    for child in children.values():
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for name, child in children.items():
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            print(f'{name} does not end, killed', file=sys.stderr)
            child.kill()
            child.wait()


if __name__ == '__main__':
    raise SystemExit(main())
