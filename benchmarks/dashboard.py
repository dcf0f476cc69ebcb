"""What the dashboard costs: processor time and memory of its process with no, one and three pages open, beside the running pipeline.

    make bench-dashboard

A page is a client that reads the events as they come; what a browser makes of them is the viewer's own time.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from footprint import cpu_s, pss_mb

from edge_resnet.deployment import plan, transport_environment


class Viewer(threading.Thread):
    """Counts updates, pictures and bytes until it is closed."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.updates = self.pictures = self.octets = 0
        self._connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
        self._connection.request('GET', '/events')
        self._response, self._open = self._connection.getresponse(), True
        self.start()

    def run(self) -> None:
        while self._open and (line := self._response.readline()):
            self.octets += len(line)
            self.updates += line.startswith(b'data: ')
            self.pictures += b'"picture":"data:' in line

    def close(self) -> None:
        self._open = False
        self.join(5.0)
        self._connection.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=20.0, help='length of each measurement')
    parser.add_argument('--repeat', type=int, default=2, help='measurements of each number of pages')
    args = parser.parse_args(argv)
    os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    environment = {**os.environ, **transport_environment(os.environ), 'PYTHONUNBUFFERED': '1'}
    log = Path(tempfile.mkstemp(suffix='.log')[1])
    pipeline = plan({'composed': 'true', 'log_level': 'warn'}).executables['pipeline']
    commands = {'pipeline': pipeline, 'dashboard_node': ['--ros-args', '-p', 'port:=0']}
    with log.open('w') as output:
        children = {name: subprocess.Popen([sys.executable, '-m', f'edge_resnet.nodes.{name}', *arguments], env=environment,
                                           stderr=output if name == 'dashboard_node' else subprocess.DEVNULL) for name, arguments in commands.items()}
    try:
        time.sleep(10.0)
        found = re.search(r'dashboard on http://127\.0\.0\.1:(\d+)/', log.read_text())
        if found is None:
            raise SystemExit(f'no dashboard: {log.read_text()}')
        pid = children['dashboard_node'].pid
        print('pages   processor   memory (PSS)   updates/s   pictures/s   kB/s each')
        for pages in (0, 1, 3) * args.repeat:
            viewers = [Viewer(int(found[1])) for _ in range(pages)]
            time.sleep(2.0)
            before = [(viewer.updates, viewer.pictures, viewer.octets) for viewer in viewers]
            begun_s, used_s = time.monotonic(), cpu_s(pid)
            time.sleep(args.seconds)
            passed_s = time.monotonic() - begun_s
            percent = 100 * (cpu_s(pid) - used_s) / passed_s
            rates = [0.0, 0.0, 0.0]
            if viewers:
                after = (viewers[-1].updates, viewers[-1].pictures, viewers[-1].octets)
                rates = [(later - earlier) / passed_s for later, earlier in zip(after, before[-1], strict=True)]
            print(f'{pages:5} {percent:9.2f} % {pss_mb(pid):11.1f} MB {rates[0]:11.1f} {rates[1]:12.1f} {rates[2] / 1000:11.1f}', flush=True)
            for viewer in viewers:
                viewer.close()
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.wait()
        log.unlink()
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
