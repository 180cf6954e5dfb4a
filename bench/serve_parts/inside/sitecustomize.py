"""What a measured server does when it starts, besides what it always does.

On the path of a server's processes (`servers.plumbline(..., look_inside=True)`): the kernel learns
the names of Python's threads, so that their CPU time can be told apart. With BENCH_WITHOUT_FREEZE
set the collector looks at everything that lives, as it would without `gc.freeze`.
"""

import ctypes
import gc
import os
import threading

PR_SET_NAME = 15
_libc = ctypes.CDLL(None)
_run = threading.Thread.run


def _named_run(thread: threading.Thread) -> None:
    _libc.prctl(PR_SET_NAME, thread.name.encode()[:15], 0, 0, 0)
    _run(thread)


threading.Thread.run = _named_run
if os.environ.get("BENCH_WITHOUT_FREEZE"):
    gc.freeze = lambda: None
