"""Execute one notebook in a child process: `python -m asu.execute`, JSON request on stdin, JSON answer on stdout.

A process of its own gives each notebook its environment and lets Ctrl-C end it; papermill changes the directory of
the whole process, which two notebooks at a time would not survive.
"""

import json
import logging
import os
import re
import sys
from pathlib import Path

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def _failure(error: Exception) -> dict:
    """What a user needs of an error in a notebook: cell, message, last lines."""
    lines = [_ANSI.sub("", line) for line in getattr(error, "traceback", []) or []]
    return {"cell": getattr(error, "cell_index", None), "kind": getattr(error, "ename", type(error).__name__),
            "message": _ANSI.sub("", str(getattr(error, "evalue", error))),
            "tail": "\n".join("\n".join(lines).splitlines()[-8:])}


def _private():
    """Settings under which a kernel talks encrypted, where the messaging library can: other users share the machine."""
    import zmq
    from traitlets.config import Config

    return Config(KernelManager={"transport_encryption": "auto" if zmq.has("curve") else "disabled"})


def main() -> None:
    """Execute `source` with `parameters` into `target`, the kernel being this interpreter's."""
    import papermill

    request = json.load(sys.stdin)
    answer_to, sys.stdout = sys.stdout, sys.stderr  # a library that prints must not spoil the answer
    # Another python3 kernel in the user's home would otherwise come first.
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix) / "share" / "jupyter")
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    logging.getLogger("papermill").setLevel(logging.ERROR)
    failure = None
    try:
        papermill.execute_notebook(request["source"], request["target"], parameters=request["parameters"],
                                   cwd=request["cwd"], kernel_name="python3", progress_bar=False,
                                   stderr_file=sys.stderr, config=_private())
    except Exception as error:  # whatever a notebook raised is an answer, not a crash
        failure = _failure(error)
    json.dump({"failure": failure}, answer_to)


if __name__ == "__main__":
    main()
