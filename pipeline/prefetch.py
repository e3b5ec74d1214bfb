"""A thread that makes results ahead of the one who takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

P = TypeVar("P")
R = TypeVar("R")


class Prefetch(Generic[P, R]):
    """Runs `make` on each of `inputs` in a thread, at most `prefetch` results ahead of what was taken."""

    def __init__(self, inputs: Iterator[P], make: Callable[[P], R], prefetch: int):
        self._inputs, self._make = inputs, make
        self._free = threading.Semaphore(prefetch)
        self._ready: queue.Queue[tuple[P, R] | BaseException | None] = queue.Queue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="leantad-loader", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            for value in self._inputs:
                self._free.acquire()
                if self._stop.is_set():
                    return
                self._ready.put((value, self._make(value)))
            self._ready.put(None)
        except BaseException as error:  # handed to the consumer, who raises it
            self._ready.put(error)

    def __iter__(self) -> Iterator[tuple[P, R]]:
        while not self._stop.is_set():
            item = self._ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            self._free.release()
            yield item

    def close(self) -> None:
        """Stop after the result in the making and join the thread; whoever waits for one gets no more."""
        self._stop.set()
        self._free.release()
        self._thread.join()
        self._ready.put(None)
