"""A pulse between the processes of a training: each knows soon when another is gone, even while it waits for it.

Process 0 has a connection to each of the others. Over it both say a byte every few seconds. A connection that ends
without a good-bye, or is silent for too long, means that a process was killed, or its machine or network is gone; the
sums over all devices, which the others wait for, may then never come.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable

BEAT = 2.0  # seconds from byte to byte
SILENCE = 60.0  # seconds after which the other side counts as gone
ALIVE, GOOD_BYE = b".", b"q"


class Pulse:
    """The connections of one process.

    Args:
        lost: called once, in a thread of its own, when another process is gone.
        beat: seconds from byte to byte.
        silence: seconds after which the other side counts as gone.
    """

    def __init__(self, lost: Callable[[], None], *, beat: float = BEAT, silence: float = SILENCE):
        self._lost = lost
        self._beat = beat
        self._silence = silence
        self._server: socket.socket | None = None
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._leaving = threading.Event()
        self._once = threading.Lock()

    def listen(self) -> int:
        """Process 0: opens a port for the others, and returns its number."""
        self._server = socket.create_server(("", 0), backlog=128)
        return self._server.getsockname()[1]

    def accept(self, others: int) -> None:
        """Process 0: waits for so many others.

        Raises:
            OSError: they did not come.
        """
        self._server.settimeout(self._silence)
        with contextlib.closing(self._server):
            for _ in range(others):
                self._watch(self._server.accept()[0])

    def connect(self, host: str, port: int) -> None:
        """The others: connects to process 0.

        Raises:
            OSError: it does not answer.
        """
        self._watch(socket.create_connection((host, port), timeout=self._silence))

    def leave(self) -> None:
        """Says good-bye: from now on the others may go, and this process may."""
        self._leaving.set()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.sendall(GOOD_BYE)

    def wait_for_others(self, seconds: float) -> None:
        """Waits until all others have said good-bye, or are gone."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _watch(self, connection: socket.socket) -> None:
        self._connections.append(connection)
        thread = threading.Thread(target=self._listen_to, args=(connection,), daemon=True)
        self._threads.append(thread)
        thread.start()
        threading.Thread(target=self._beat_on, args=(connection,), daemon=True).start()

    def _beat_on(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # who listens notices, too
            while not self._leaving.wait(self._beat):
                connection.sendall(ALIVE)

    def _listen_to(self, connection: socket.socket) -> None:
        connection.settimeout(self._silence)
        try:
            while said := connection.recv(64):
                if GOOD_BYE in said:
                    return
        except OSError:
            pass
        if not self._leaving.is_set() and self._once.acquire(blocking=False):
            self._lost()
