"""An actuator node of this process, fed with classifications over DDS."""

from __future__ import annotations

import time

from bench import wait_for
from std_msgs.msg import Bool
from std_srvs.srv import SetBool
from vision_msgs.msg import Classification, ObjectHypothesis

from edge_resnet.conversions import Stamp
from edge_resnet.nodes.actuator_node import ActuatorNode
from edge_resnet.nodes.base import LATCHED_QOS


class Rig:
    """An actuator node, its state file and topics, and a feed of classifications."""

    def __init__(self, bench, tmp_path, **parameters):
        self.bench, self.file, self.now_ns = bench, tmp_path / 'actuator.state', time.time_ns
        self.node = bench.start(ActuatorNode, state_file=str(self.file), refractory_s=0.0, **parameters)
        self.states = bench.listen(Bool, 'actuator/state', LATCHED_QOS)
        self.feed = bench.publisher(Classification, 'classification')
        wait_for(lambda: self.states, 'the latched state')

    @property
    def on(self):
        return self.file.read_text() == '1\n'

    def see(self, label='red', score=0.95, age_s=0.0, times=3):
        for _ in range(times):
            done_ns = self.node._input._done_at_ns
            message = Classification(results=[ObjectHypothesis(class_id=label, score=score)])
            stamp = Stamp(0, 0) if age_s is None else Stamp.from_ns(self.now_ns() - round(age_s * 1e9))
            message.header.stamp.sec, message.header.stamp.nanosec = stamp.sec, stamp.nanosec
            self.feed.publish(message)
            wait_for(lambda done_ns=done_ns: self.node._input._done_at_ns > done_ns, 'the end of the callback')

    def call(self, armed):
        client = self.bench.probe.create_client(SetBool, 'actuator/arm')
        assert client.wait_for_service(10.0)
        answer = client.call_async(SetBool.Request(data=armed))
        wait_for(answer.done, 'the answer')
        return answer.result()
