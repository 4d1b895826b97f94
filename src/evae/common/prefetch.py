"""One background thread that stays a few items ahead."""

import queue
import threading
from collections.abc import Iterator
from typing import Any


def ahead(source: Iterator[Any], depth: int) -> Iterator[Any]:
    """The items of `source`, made in a background thread up to `depth` ahead; its errors are raised here."""
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                items.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in source:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=produce, daemon=True, name="evae-prefetch")
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()
