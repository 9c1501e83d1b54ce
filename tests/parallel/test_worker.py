"""Tasks on a thread: in order, with their results and errors."""

import threading

import pytest

from erniekit.parallel.worker import Worker


def test_tasks_are_done_in_order_beside_the_one_who_hands_them_in():
    worker, go, done = Worker(), threading.Event(), []
    first = worker.submit(lambda: (go.wait(10), done.append(1), threading.current_thread().name)[2])
    second = worker.submit(lambda: done.append(2))
    assert done == []
    go.set()
    assert second.result() is None and done == [1, 2]
    assert first.result() == "exchange"


def test_without_a_thread_they_are_done_at_once():
    worker, done = Worker(apart=False), []
    task = worker.submit(lambda: done.append(threading.current_thread()))
    assert done == [threading.current_thread()] and task.result() is None


@pytest.mark.parametrize("apart", [True, False])
def test_what_a_task_raises_is_for_who_asks_and_the_next_one_is_done(apart):
    worker = Worker(apart=apart)
    failed = worker.submit(lambda: 1 / 0)
    assert worker.submit(lambda: 3).result() == 3
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_what_a_task_holds_is_let_go_of_by_who_asks_for_the_result():
    class Held:
        def __del__(self):
            where.append(threading.current_thread())

    worker, where = Worker(), []
    task = worker.submit(lambda held=Held(): id(held))
    worker.submit(lambda: None).result()
    assert where == []
    task.result()
    assert where == [threading.current_thread()]
