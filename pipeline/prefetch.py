"""A thread that makes results ahead of the one who takes them."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

P = TypeVar("P")
S = TypeVar("S")
R = TypeVar("R")


class Prefetch(Generic[P, S, R]):
    """A thread begins and completes results for `inputs`, at most `prefetch` more than were asked for.

    Where that leaves room, the next result is begun before one is completed.
    """

    def __init__(
        self, inputs: Iterator[P], begin: Callable[[P], S], complete: Callable[[S], R], prefetch: int
    ):
        self._inputs, self._begin, self._complete = inputs, begin, complete
        self._begun: deque[tuple[P, S]] = deque()
        self._free = threading.Semaphore(prefetch)
        self._ready: queue.Queue[tuple[P, R] | BaseException | None] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="leantad-loader", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for value in self._inputs:
                if not self._free.acquire(blocking=False):
                    self._complete_all_but(0)
                    self._free.acquire()
                if self._stop.is_set():
                    return
                self._begun.append((value, self._begin(value)))
                self._complete_all_but(1)
            self._complete_all_but(0)
            self._ready.put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            self._ready.put(error)

    def _complete_all_but(self, left: int) -> None:
        while len(self._begun) > left:
            value, begun = self._begun.popleft()
            self._ready.put((value, self._complete(begun)))

    def __iter__(self) -> Iterator[tuple[P, R]]:
        while not self._stop.is_set():
            self._free.release()
            item = self._ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stop after the result in the making and join the thread; whoever waits for one gets no more."""
        self._stop.set()
        self._free.release()
        self._thread.join()
        self._ready.put(None)
