"""SIGINT and SIGTERM: the first asks for a graceful stop, the second ends the process at once."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from workflows.exits import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop:
    """Listens for signals within a `with` block.

    Until `hold` is called there is nothing to save and a signal raises `Interrupted`.

    Attributes:
        signal: the one that asked to stop, or None.
        on_abrupt_end: called before the process ends at once, to leave the terminal usable.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.on_abrupt_end: Callable[[], None] | None = None
        self._held = False
        self._before: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 + the signal, or 0."""
        return 128 + self.signal if self.signal is not None else 0

    def __enter__(self) -> Self:
        self._before = {number: signal.getsignal(number) for number in _SIGNALS}
        self._listen()
        return self

    def hold(self) -> None:
        """From now on the first signal only sets `signal`; the caller stops when it can."""
        self._held = True
        self._listen()  # again: starting Ray puts a handler of its own there

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _listen(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is None:
            self.signal = signal.Signals(number)
            if not self._held:
                self._end_before_the_run(name, number)
            _say(f"\n{name}: stopping after this iteration; again ends at once\n")
            return
        if self.on_abrupt_end is not None:
            self.on_abrupt_end()
        _say(f"\n{name} again: ended at once\n")
        # Not sys.exit: finally blocks could wait. Ray's processes end with this one.
        os._exit(128 + number)

    def _end_before_the_run(self, name: str, number: int) -> None:
        module = sys.modules.get("pipelines.pipeline")
        if not hasattr(module, "Pipeline"):
            # torch is being imported, whose C++ aborts on an exception; nothing was written yet.
            _say(f"\n{name}: ended before the run began\n")
            os._exit(128 + number)
        raise Interrupted(128 + number)


def _say(text: str) -> None:
    # Not print: a handler that interrupts a write to the same buffer may not enter it again.
    os.write(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2, text.encode())
