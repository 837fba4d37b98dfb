"""The child process of `equality`: reads [expected, answer] as JSON lines, writes true or false for each.

Its one argument is the processor time that one question may take [s].
"""

import json
import logging
import resource
import signal
import sys

from math_verify import parse, verify

MEMORY_BYTES = 2 << 30


def same(expected: str, answer: str) -> bool:
    """Whether two LaTeX or plain expressions are equal; may never return."""
    left, right = (parse(f"\\boxed{{{text}}}", parsing_timeout=None) for text in (expected, answer))
    return bool(verify(left, right, timeout_seconds=None))


def main(cpu_s: float):
    """Answer questions until input closes; the system ends the process when one of them has used `cpu_s`."""
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # The default action ends the process even inside a C loop, where a Python handler would wait for ever.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        verdict = same(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(verdict), flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
