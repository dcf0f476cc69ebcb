"""Serves a web page of the whole pipeline: what it sees, how long that takes, how warm the board is, and two buttons for the actuator."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from builtin_interfaces.msg import Duration
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Bool
from std_srvs.srv import SetBool
from vision_msgs.msg import Classification

from edge_resnet.conversions import image_array, read_image, read_results, stamp_ns
from edge_resnet.exceptions import BackendError
from edge_resnet.nodes.base import LATCHED_QOS, OK, Health, ManagedNode
from edge_resnet.nodes.frames import BEST_EFFORT_QOS, FRAME_QOS, request_topic
from edge_resnet.nodes.parameters import param
from edge_resnet.nodes.polled import Polled, StageTimes
from edge_resnet.nodes.runner import run
from edge_resnet.web.state import LiveState

if TYPE_CHECKING:
    from edge_resnet.web.server import DashboardServer

PERIOD_S = 0.2  # of an update
MAX_PICTURE_PX = 480
PICTURES_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=60, reliability=ReliabilityPolicy.RELIABLE)  # until their results have come
RESULT_PATIENCE_S = 2.0  # without a result pictures are shown as they come
STOP_TICKS = 3  # an emergency stop is best effort, so it is said again


@dataclass(frozen=True)
class DashboardParameters:
    autostart: bool = param(True, 'configure and activate without a lifecycle manager')
    host: str = param('127.0.0.1', 'address to listen on; 0.0.0.0: all, and whoever reaches this machine can press the buttons')
    port: int = param(8080, 'TCP port to listen on; 0: a free one, which is logged', low=0, high=65535)
    jpeg_quality: int = param(75, 'quality of the picture', low=1, high=100, live=True)


class DashboardNode(ManagedNode[DashboardParameters]):
    """All topics are polled, by one timer, so that a fast camera costs no more than a slow one. The picture is subscribed to, encoded and
    sent only while a page is open."""

    Parameters = DashboardParameters

    def __init__(self, **options: Any) -> None:
        super().__init__('dashboard', **options)
        self._state = LiveState(self.get_namespace())
        self._server: DashboardServer | None = None
        self._inputs: list[Polled] = []
        self._picture: Polled | None = None
        self._requests: Any = None
        self._held: dict[int, Any] = {}  # pictures by their stamps, oldest first
        self._result = (0, 0.0)  # stamp of the newest, and when it came
        self._timer: Any = None
        self._stop_ticks = 0
        self._emergency_stop = self.create_publisher(Bool, 'emergency_stop', BEST_EFFORT_QOS)
        self._arm = self.create_client(SetBool, 'actuator/arm')

    def configure(self) -> None:
        try:
            from edge_resnet.web.server import find_plotly
        except ModuleNotFoundError as error:
            raise BackendError(f'the dashboard needs {error.name}: "sudo apt install python3-aiohttp" or "pip install aiohttp"') from error
        self._plotly = find_plotly()

    def activate(self) -> None:
        from edge_resnet.web.server import DashboardServer, is_loopback

        p = self.parameters
        state = self._state = LiveState(self.get_namespace())
        server = DashboardServer(p.host, p.port, lambda: state.points[:], self._order, self._plotly)
        self.get_logger().info(f'dashboard on {server.start()}')
        self._server = server
        if not is_loopback(p.host):
            self.get_logger().warning(f'host is {p.host}: whoever reaches this machine over the network sees the picture and can press the buttons')
        self._stages = StageTimes(self)
        self._healths = Polled(self, DiagnosticArray, '/diagnostics')
        self._results = Polled(self, Classification, 'classification', FRAME_QOS, raw=True)
        self._actuator = Polled(self, Bool, 'actuator/state', LATCHED_QOS)
        self._inputs = [self._stages, self._healths, self._results, self._actuator]
        self._timer = self.create_timer(PERIOD_S, self._tick, clock=self._steady)

    def deactivate(self) -> None:
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None
        self._watch(False)
        for topic in self._inputs:
            topic.close()
        self._inputs = []
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _tick(self) -> None:
        for record in self._stages.records():
            self._state.stage(*record[:3])
        for array, _ in self._healths.take():
            for status in array.status:
                self._state.diagnostic(status.name, status.level[0], status.message, {entry.key: entry.value for entry in status.values},
                                       stamp_ns(array.header) / 1e9)
        for data, _ in self._results.take():
            self.guarded(self._on_result, 'classification')(data)
        for message, _ in self._actuator.take():
            self._state.actuator(message.data)
        self._state.tick()
        if self._stop_ticks > 0:
            self._stop_ticks -= 1
            self._emergency_stop.publish(Bool(data=True))
        server = self._server
        if server is not None:
            self._watch(server.viewers > 0)
            if server.viewers:
                server.push({**self._state.snapshot(), 'picture': self._encoded()})

    def _on_result(self, data: bytes) -> None:
        header, scores = read_results(data)
        self._state.result([(entry.label, entry.score) for entry in scores])
        self._result = (stamp_ns(header), time.monotonic())

    def _watch(self, wanted: bool) -> None:
        """Have the picture's topic subscribed to exactly while it is ``wanted``, by one who could ask for frames and leaves that to inference:
        so none is made for the page alone."""
        if wanted and self._picture is None:
            self._requests = self.create_publisher(Duration, request_topic(self.resolve_topic_name('image_preprocessed')), FRAME_QOS)
            self._picture = Polled(self, Image, 'image_preprocessed', PICTURES_QOS, raw=True)
        elif not wanted and self._picture is not None:
            self._picture.close()
            self.destroy_publisher(self._requests)
            self._picture = None
            self._held.clear()

    def _newest(self) -> Any:
        """The picture that the newest result is of, the newest one when no results come; None when it was given before."""
        for data, _ in self._picture.take() if self._picture is not None else ():
            taken = read_image(data)
            self._held[stamp_ns(taken.header)] = taken
        of_result, came_s = self._result
        waits = time.monotonic() - came_s < RESULT_PATIENCE_S
        if not waits and self._picture is not None:
            self._requests.publish(Duration())  # inference may be asking for none
        chosen = of_result if waits or of_result in self._held else next(reversed(self._held), 0)
        image = self._held.get(chosen)
        self._held = dict([entry for entry in self._held.items() if image is None or entry[0] > chosen][-PICTURES_QOS.depth:])
        return image

    def _encoded(self) -> str | None:
        """A data: URL of the ``_newest`` picture."""
        newest = self._newest()
        if newest is None:
            return None
        import cv2  # only while somebody watches

        image, order = image_array(newest)
        larger = max(image.shape) / MAX_PICTURE_PX
        if larger > 1:
            image = cv2.resize(image, (round(image.shape[1] / larger), round(image.shape[0] / larger)), interpolation=cv2.INTER_AREA)
        pixels = np.ascontiguousarray(image if order == 'bgr' else image[..., ::-1])
        _, jpeg = cv2.imencode('.jpg', pixels, (cv2.IMWRITE_JPEG_QUALITY, self.parameters.jpeg_quality))
        self.counts['pictures'] += 1
        return f'data:image/jpeg;base64,{base64.b64encode(jpeg.data).decode()}'

    def _order(self, name: str) -> Future[str]:
        """Arm, disarm, or stop at once and disarm too, since that is answered and an emergency stop is not."""
        self.get_logger().warning(f'{name} pressed on the dashboard')
        if name == 'stop':
            self._stop_ticks = STOP_TICKS
            self._emergency_stop.publish(Bool(data=True))
        else:
            self._stop_ticks = 0
        done: Future[str] = Future()
        if not self._arm.service_is_ready():
            done.set_exception(BackendError('there is no actuator node'))
            return done

        def answered(call: Any) -> None:
            answer = call.result()
            if not done.set_running_or_notify_cancel():  # nobody waits any more, nor expects it to be armed
                if name == 'arm':
                    self._arm.call_async(SetBool.Request(data=False))
                return
            if answer.success:
                done.set_result(answer.message)
            else:
                done.set_exception(BackendError(f'the actuator refused: {answer.message}'))

        self._arm.call_async(SetBool.Request(data=name == 'arm')).add_done_callback(self.guarded(answered))
        return done

    def diagnose(self, health: Health) -> None:
        server = self._server
        viewers = server.viewers if server is not None else 0
        health.report(OK, f'{viewers} {"page" if viewers == 1 else "pages"} open')
        health.values.update({'Pages open': viewers, 'Picture rate (Hz)': self.rate('pictures')})


def main(argv: Sequence[str] | None = None) -> int:
    return run([DashboardNode], argv)


if __name__ == '__main__':
    raise SystemExit(main())
