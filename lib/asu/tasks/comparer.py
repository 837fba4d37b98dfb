"""The child process of `equality`: reads [expected, answer] as JSON lines, writes true or false for each."""

import json
import logging
import resource
import signal
import sys

from math_verify import parse, verify

CPU_SECONDS = 5
MEMORY_BYTES = 2 << 30


def same(expected: str, answer: str) -> bool:
    """Whether two LaTeX or plain expressions are equal; may never return."""
    left, right = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (expected, answer))
    return bool(verify(left, right, timeout_seconds=None))


def main():
    """Answer questions until input closes; the system ends the process at CPU_SECONDS spent on one of them."""
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # The default action ends the process even inside a C loop, where a Python handler would wait for ever.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        verdict = same(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main()
