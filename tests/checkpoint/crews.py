"""Threads in place of processes that write together."""

import threading

WAIT = 60


class Threads:
    """A crew of threads."""

    def __init__(self, count):
        self.count = count
        self._barrier = threading.Barrier(count, timeout=WAIT)
        self._values = [None] * count

    def member(self, index):
        return Member(self, index)

    def gather(self, index, value):
        self._values[index] = value
        self._barrier.wait()
        found = list(self._values)
        self._barrier.wait()
        return found


class Member:
    def __init__(self, crew, index):
        self.crew, self.index, self.is_first = crew, index, index == 0

    def gather(self, value):
        return self.crew.gather(self.index, value)


def run_all(count, work):
    """The results, or errors, of `work(member)` of each."""
    crew, found = Threads(count), [None] * count

    def one(index):
        try:
            found[index] = work(crew.member(index))
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=one, args=[index]) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive(), "a process waits for ever"
    return found
