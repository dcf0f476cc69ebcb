"""The lifecycle services, as a manager or a hostile user calls them."""

import pytest
from bench import wait_for
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from std_msgs.msg import String

from edge_resnet.nodes.thermal_monitor_node import ThermalMonitorNode


@pytest.mark.parametrize('wrong', [Transition(id=Transition.TRANSITION_CONFIGURE), Transition(id=200), Transition(label='fly')],
                         ids=['not now', 'no such number', 'no such name'])
def test_a_transition_that_is_not_there_is_refused_and_the_node_lives(bench, wrong):
    bench.start(ThermalMonitorNode)
    change = bench.probe.create_client(ChangeState, '/thermal_monitor/change_state')
    state = bench.probe.create_client(GetState, '/thermal_monitor/get_state')

    def ask(client, request):
        wait_for(client.service_is_ready, 'the service')
        answer = client.call_async(request)
        wait_for(answer.done, 'an answer')
        return answer.result()

    assert not ask(change, ChangeState.Request(transition=wrong)).success
    assert ask(state, GetState.Request()).current_state.label == 'active'
    assert ask(change, ChangeState.Request(transition=Transition(id=Transition.TRANSITION_DEACTIVATE))).success
    assert ask(state, GetState.Request()).current_state.label == 'inactive'


@pytest.mark.parametrize('active', [True, False])
def test_what_another_thread_destroyed_is_a_fault_of_an_active_node_only(bench, active):
    node = bench.start(ThermalMonitorNode)
    publisher = node.create_publisher(String, 'gone', 1)
    node.destroy_publisher(publisher)
    if not active:
        node.make_safe()
    node.guarded(lambda: publisher.publish(String()))()
    assert node.counts['errors'] == int(active)
