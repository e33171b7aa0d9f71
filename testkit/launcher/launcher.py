"""Runs one server of the test stack so that it never outlives its caller.

    launcher.py DIRECTORY GRACE_SECONDS clickhouse LIBRARY ARGUMENT...
    launcher.py DIRECTORY GRACE_SECONDS replica LIBRARY INTERSERVER_HOST ARGUMENT...
    launcher.py DIRECTORY GRACE_SECONDS ministack
    launcher.py DIRECTORY GRACE_SECONDS command PROGRAM ARGUMENT...

There are two processes: this one supervises, and its child is the server. The caller holds the
other end of standard input. When that closes, because the caller closed it or died for whatever
reason, the child is ended and DIRECTORY is removed (unless it is "-"). A line "kill" ends the child
with SIGKILL and leaves DIRECTORY as it is, which is how a test makes a server crash. The first line
on standard output is the child's pid; everything else goes to standard error.
"""

import ctypes
import os
import queue
import shutil
import signal
import sys
import threading


def die_with(supervisor, lifeline):
    """Makes the child, which calls this, end with the supervisor, even if that is killed."""
    if sys.platform.startswith("linux"):
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(1)
    else:
        def watch():
            while os.read(lifeline, 1):
                pass
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def clickhouse(library, *arguments):
    engine = ctypes.CDLL(library)
    argv = [b"clickhouse-local", *(argument.encode() for argument in arguments)]
    engine.query_stable_v2.restype = ctypes.c_void_p
    engine.query_stable_v2(len(argv), (ctypes.c_char_p * len(argv))(*argv))
    # Its query never ends, so this is reached only if the server failed to start.
    return 1


def replica(library, interserver_host, *arguments):
    # It is beside this file, and no other server needs it.
    from replica import prepare

    prepare(library, interserver_host, arguments)
    return clickhouse(library, *arguments)


def ministack():
    sys.argv = ["ministack"]
    from ministack.app import main
    from ministack.services import s3

    # S3 announces an object at some time after or before it answers the upload. The announcement
    # comes first here: a test that waits until a queue is empty cannot look before the message is
    # there. ministack by itself sends it from a thread, now before the answer and now after it.
    def announce(bucket, key, event, size=0, etag="", deletion_type=None, **more):
        if bucket in s3._bucket_notifications:
            sequencer = s3._next_event_sequencer(event)
            s3._fire_s3_event(
                bucket, key, event, size, etag, deletion_type, sequencer=sequencer, **more
            )

    s3._fire_s3_event_async = announce
    main()
    return 0


def command(*argv):
    os.execvp(argv[0], argv)


MODES = {
    "clickhouse": clickhouse,
    "replica": replica,
    "ministack": ministack,
    "command": command,
}


def start(mode, arguments):
    lifeline, held = os.pipe()
    supervisor = os.getpid()
    child = os.fork()
    if child:
        os.close(lifeline)
        return child
    os.close(held)
    # Of its own: when the caller dies, the kernel sends SIGHUP to the supervisor's group if a process
    # in it is stopped, as a paused server is, and the supervisor would not remove DIRECTORY.
    os.setpgid(0, 0)
    die_with(supervisor, lifeline)
    # The server must neither read from the caller's pipes nor keep them open.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    code = 1
    try:
        code = MODES[mode](*arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(f"launcher: {end.code}", file=sys.stderr, flush=True)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException as error:  # every error must reach the log, which the caller reads
        print(f"launcher: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code or 0)


def main():
    directory, grace, mode, *arguments = sys.argv[1:]
    child = start(mode, arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.write(1, f"{child}\n".encode())

    events = queue.Queue()

    def wait():
        _, status = os.waitpid(child, 0)
        events.put(("ended", os.waitstatus_to_exitcode(status)))

    def listen():
        for line in sys.stdin:
            events.put(("asked", line.strip()))
        events.put(("asked", "end"))

    def asked_to_end(*_):
        events.put(("asked", "end"))

    signal.signal(signal.SIGTERM, asked_to_end)
    threading.Thread(target=wait, daemon=True).start()
    threading.Thread(target=listen, daemon=True).start()

    remove = directory != "-"
    kind, what = events.get()
    if kind == "asked":
        grace = float(grace)
        if what == "kill":
            remove, grace = False, 0.0
        if grace > 0:
            os.kill(child, signal.SIGTERM)
            what = ended_within(events, grace)
        else:
            what = None
        if what is None:
            os.kill(child, signal.SIGKILL)
            what = ended_within(events, None)
        if remove:
            shutil.rmtree(directory, ignore_errors=True)
    # If the server ended by itself, its directory is kept, since the caller needs the log.
    os._exit(what if what >= 0 else 128 - what)


def ended_within(events, seconds):
    """Returns the child's exit code, or None if it still runs. Ignores further requests."""
    while True:
        try:
            kind, what = events.get(timeout=seconds)
        except queue.Empty:
            return None
        if kind == "ended":
            return what


main()
