"""How a run is asked to stop: by signals, after which it saves at the next step and returns."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# As schedulers send them before they take the machine away, and as a terminal does when it is closed.
SIGNALS = ("SIGTERM", "SIGHUP", "SIGUSR1")


@contextmanager
def asked_to_stop(names: tuple[str, ...] = SIGNALS, asked: threading.Event | None = None) -> Iterator[threading.Event]:
    """An event that these signals set. Those that the process was started to ignore, as nohup does, stay ignored."""
    asked = asked or threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals belong to the main thread
        yield asked
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {n: signal.signal(n, ask) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
