"""`python` and `nas-edit` that start at once: forked from one process that has imported torch and transformers.

The documentation has dozens of commands, and importing takes most of the time of nearly all of them.

    python -m tests.docs.preloaded serve SOCKET            the process to fork from, until its input ends
    python tests/docs/preloaded.py call SOCKET NAME ...    run `python ...` or `nas-edit ...` in a fork of it
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback

IMPORTS = ("nas_plugin.evaluation.runner", "nas_plugin.evaluation.report", "nas_plugin.session", "matplotlib.figure")
_ROOM = 1 << 20


def serve(path: str) -> None:
    """Fork for every call, until the standard input is closed."""
    import importlib

    for name in IMPORTS:
        importlib.import_module(name)
    # Nobody waits for the forks: their callers hear of their end.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                carry_out(connection)
            connection.close()


def carry_out(connection: socket.socket) -> None:
    """Do what a caller asks for, with its folder, environment and standard streams; never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, descriptors, _, _ = socket.recv_fds(connection, _ROOM, 3)
    asked = json.loads(message)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    code = 1
    try:
        run(asked["name"], asked["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:  # noqa: BLE001 - whatever it is, it is the caller's
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(bytes([code & 255]))
    os._exit(0)


def run(name: str, arguments: list[str]) -> None:
    """Run the command of that name, or Python with a script, `-m module` or `-c code`."""
    if name == "nas-edit":
        sys.argv = ["nas-edit", *arguments]
        runpy.run_module("nas_plugin.cli", run_name="__main__", alter_sys=True)
    elif arguments[0] == "-m":
        sys.argv = arguments[1:]
        sys.path[0] = os.getcwd()
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")


def call(path: str, name: str, arguments: list[str]) -> int:
    """Ask for a command and wait for its end.

    Returns:
        Its exit code.
    """
    asked = {"name": name, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        connection.connect(path)
        socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
        answer = connection.recv(1)
    return answer[0] if answer else 70  # it died without a word


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(call(sys.argv[2], sys.argv[3], sys.argv[4:]))
