"""Calls beside what their owner does."""

import threading
import time

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


def test_what_is_for_a_certain_time_is_made_then_between_the_others_and_only_the_latest():
    made, began = [], time.monotonic()
    aside = Aside(lambda call: call, 'aside')
    aside.call_at(began + 60.0, lambda: made.append('given up'))
    aside.call_at(began + 0.3, lambda: made.append(time.monotonic() - began))
    aside.call(lambda: made.append('call'), here=True)
    assert made == ['call'], 'here: nobody is waiting for it'
    aside.call(lambda: made.append('aside'))
    while len(made) < 3 and time.monotonic() < began + 20.0:
        time.sleep(0.01)
    assert made[:2] == ['call', 'aside']
    assert made[2] >= 0.3
    aside.call_at(time.monotonic() + 0.2, lambda: made.append('too late'))
    aside.close(within_s=10.0)
    time.sleep(0.3)
    assert len(made) == 3
    assert not aside._thread.is_alive()


def test_a_thread_with_nothing_to_do_is_there_in_time():
    made, aside = threading.Event(), Aside(lambda call: call, 'aside')
    time.sleep(0.1)  # until it waits
    aside.call_at(time.monotonic() + 0.1, made.set)
    assert made.wait(20.0)
    aside.close(within_s=10.0)


def test_times_take_no_call_its_place_nor_keep_the_thread_from_ending():
    hang, began, made = threading.Event(), threading.Event(), []
    aside = Aside(lambda call: call, 'aside')
    aside.call(lambda: began.set() or hang.wait())
    assert began.wait(20.0)
    for _ in range(100):
        aside.call_at(0.0, lambda: None)
    for n in range(WAITING - 2):
        aside.call(lambda n=n: made.append(n))
    aside.close(within_s=0.1)  # finds its place
    hang.set()
    aside._thread.join(20.0)
    assert not aside._thread.is_alive()
    assert made == list(range(WAITING - 2))


def test_a_time_is_not_waited_for_by_who_gives_it_nor_missed_by_a_call_that_hangs_until_then():
    hang, made = threading.Event(), []
    aside = Aside(lambda call: call, 'aside')
    for _ in range(WAITING + 1):
        aside.call(hang.wait)
    aside.call_at(time.monotonic(), lambda: made.append(1))
    assert not made
    hang.set()
    deadline = time.monotonic() + 20.0
    while not made and time.monotonic() < deadline:
        time.sleep(0.01)
    assert made
    aside.close(within_s=10.0)
