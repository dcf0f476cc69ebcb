"""Calls beside what their owner does."""

import threading

from edge_resnet.nodes.aside import WAITING, Aside


def test_one_that_hangs_holds_up_the_caller_once_a_few_wait_and_not_the_end():
    hang, made, given = threading.Event(), [], []
    aside = Aside(lambda call: call, 'aside')
    aside.call(hang.wait)

    def caller():
        for n in range(WAITING + 5):
            aside.call(lambda n=n: made.append(n))
            given.append(n)

    thread = threading.Thread(target=caller, daemon=True)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert len(given) == WAITING
    assert not made
    aside.close(within_s=0.1)
    hang.set()
    thread.join(10.0)
    assert len(given) == WAITING + 5
    aside.close(within_s=10.0)
    assert made == given


def test_here_means_now_unless_others_wait():
    began, hang, made = threading.Event(), threading.Event(), []
    aside = Aside(lambda call: call, 'aside')
    aside.call(lambda: made.append(threading.current_thread()), here=True)
    assert made == [threading.current_thread()]
    aside.call(lambda: began.set() or hang.wait())
    began.wait(10.0)
    aside.call(lambda: made.append(threading.current_thread()), here=True)
    hang.set()
    aside.close(within_s=10.0)
    assert made[1] is not threading.current_thread()
