"""A thread that talks to other processes while this one computes, one task after the other.

What all processes hand in, in the same order, they do in the same order: collectives of one group never
cross. The thread does not keep a process from ending.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any


class Task:
    """Something that is done, or going to be.

    What its function holds is let go of by who asks for the result: memory of native operators is given
    back by Python, and a thread that does so inside Paddle's locks waits for one that makes a tensor.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function: Callable[[], Any] | None = function
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Do it, once."""
        assert self._function is not None
        try:
            self._result = self._function()
        except BaseException as error:  # for whoever asks for the result
            self._error = error
        self._done.set()

    def result(self) -> Any:
        """What it gave, when it is done; raises what it raised."""
        self._done.wait()
        self._function = None
        if self._error is not None:
            raise self._error
        return self._result


class Worker:
    """Does tasks on a thread of its own, or where they are handed in."""

    def __init__(self, *, apart: bool = True) -> None:
        """Without `apart` there is no thread: a task is done when it is handed in."""
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._apart = apart

    def submit(self, function: Callable[[], Any]) -> Task:
        """Have `function` called after everything that was handed in before."""
        task = Task(function)
        if not self._apart:
            task.run()
            return task
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="exchange", daemon=True)
            self._thread.start()
        self._tasks.put(task)
        return task

    def _work(self) -> None:
        while True:
            self._tasks.get().run()
