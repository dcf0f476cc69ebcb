"""Runs the pipeline and prints what it does, on a machine without ros2 launch: the same nodes, the same arguments.

    edge_resnet_demo source:=/dev/video0 model:=resnet50_traffic_lights composed:=true

Ends on Ctrl-C, or with an error when one of the nodes ends by itself and is not, or no longer, to be started again.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from edge_resnet.exceptions import EdgeResnetError
from edge_resnet.stopping import StopRequest

GRACE_S = 8.0
PR_SET_PDEATHSIG = 1


def _prepare_child() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, while it imports: until its own handler is there, our SIGTERM ends it
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main(argv: Sequence[str] | None = None) -> int:
    stop = StopRequest().on_signals()  # before what takes time
    from edge_resnet.deployment import ARGUMENTS, RESPAWN_DELAY_S, RespawnLimit, plan, use_transport_profile

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
    if 'ROS_DOMAIN_ID' not in os.environ:  # two demos don't hear each other, nor know who was stopped
        os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
        os.environ['TMPDIR'] = folder = tempfile.mkdtemp(prefix='edge_resnet_')
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    use_transport_profile()
    _use_writable_log_folder()
    if deployment.waits:
        print('autostart is false: the nodes wait for a lifecycle manager', flush=True)
    print(f'edge_resnet on ROS_DOMAIN_ID={os.environ["ROS_DOMAIN_ID"]}, Ctrl-C ends it', flush=True)
    namespace = ['-r', f'__ns:=/{deployment.namespace.strip("/")}'] if deployment.namespace else []
    commands = {name: [*arguments, *namespace] for name, arguments in {'console_node': ['--ros-args'], **deployment.executables}.items()}
    children = {name: _start(name, arguments) for name, arguments in commands.items()}
    limits = {name: RespawnLimit() for name in commands}
    due: dict[str, float] = {}  # what is to be started again, and when
    failed = ''
    while not failed and not stop.wait(0.1):
        for name in [name for name, child in children.items() if child.poll() is not None and name not in due]:
            code, off = children[name].returncode, deployment.off_arguments(name)
            if off is not None:
                subprocess.run([sys.executable, '-m', 'edge_resnet.tools.actuator_off', *off, *namespace], check=False)
            if not (deployment.respawn and limits[name].allows(code)):
                failed = f'{name} {f"{limits[name]}, the last time" if deployment.respawn else "ended by itself"} with exit code {code}'
                break
            print(f'{name} ended with exit code {code}: started again in {RESPAWN_DELAY_S:g} s', file=sys.stderr, flush=True)
            due[name] = time.monotonic() + RESPAWN_DELAY_S
        for name in [name for name, at in due.items() if time.monotonic() >= at]:
            del due[name]
            children[name] = _start(name, commands[name])
    _stop(children)
    if failed and not stop.is_set():
        print(failed, file=sys.stderr)
        return 1
    return 0


def _start(name: str, arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-m', f'edge_resnet.nodes.{name}', *arguments], preexec_fn=_prepare_child)


def _use_writable_log_folder() -> None:
    """Without a usable HOME, ROS has no place for its logs, and no node starts."""
    if not {'ROS_LOG_DIR', 'ROS_HOME'} & os.environ.keys():
        home = os.environ.get('HOME', '')
        if not (home and os.access(home, os.W_OK)):
            import tempfile  # slow

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
