"""Are two mathematical answers the same value? Asked of math-verify, in a process of its own.

Symbolic comparison can run for ever or take all memory (one answer such as 9^(9^9) is enough), and math-verify's own
alarms work in main threads only. So a child compares, and the system ends it when one question has used its share of
processor time (`comparer`), whatever the thread that asked and however busy the machine.
"""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

from asu.errors import AsuError

SCRIPT = Path(__file__).with_name("comparer.py")
# How the child ends at its limits: processor time, memory (killed by the system), too deep a recursion in C.
LIMITS = (-signal.SIGPROF, -signal.SIGKILL, -signal.SIGSEGV)


class Comparer:
    """The child and the lock around it; started by the first question, and again after a question that ended it."""

    def __init__(self, script: Path = SCRIPT, cpu_s: float = 5.0):
        self._command = [sys.executable, str(script), str(cpu_s)]
        self._lock = threading.Lock()
        self._child = None

    def __call__(self, expected: str, answer: str) -> bool:
        """Whether the two are equal; False when deciding it takes more than the child may use."""
        with self._lock:
            if self._child is None:
                # A session of its own: Ctrl-C belongs to the parent. The child leaves when its input closes.
                self._child = subprocess.Popen(self._command, text=True, start_new_session=True, stdin=subprocess.PIPE,
                                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            child = self._child
            try:
                child.stdin.write(json.dumps([expected, answer]) + "\n")
                child.stdin.flush()
                verdict = child.stdout.readline()
            except BrokenPipeError:
                verdict = ""
            except BaseException:  # Ctrl-C while waiting: its late verdict must not answer the next question
                self._child = None
                child.kill()
                child.communicate()
                raise
            if verdict:
                return json.loads(verdict)
            self._child = None
            said = child.stderr.read().strip()[-500:]
            if child.wait() in LIMITS:
                return False
            raise AsuError(f"math-verify's process ended with status {child.returncode}, answers not compared: {said}",
                           "install the project's locked packages again with `make setup`, then repeat the command")


equal = Comparer()
