"""What a measured server does when it starts, besides what it always does.

On the path of a server's processes (`servers.plumbline(..., look_inside=True)`): the kernel learns
the names of Python's threads, so that their CPU time can be told apart. With BENCH_WITHOUT_FREEZE
set the collector looks at everything that lives, as it would without `gc.freeze`. With
BENCH_SERIALISED set predictions are no ready answers: BentoML makes them of the return value of its
API method, as it does in its own application, and a header says so. With BENCH_TIMED_ANEW set no
model takes the batch size over from the one before it.
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


def _serialise() -> None:
    from service import answers

    ready, found = answers.json_response, []

    def through_bentoml(content, status=200, headers=None):
        if "predictions" not in content:
            return ready(content, status, headers)
        if not found:
            from _bentoml_impl.serde import JSONSerde

            from service.app import service

            found.extend([service.apis["classify"].output_spec, JSONSerde()])
        output, serde = found
        try:
            output.to_http_response(content, serde).send(None)  # it waits for nothing
        except StopIteration as done:
            done.value.headers["X-Bench-Serialised"] = "yes"
            return done.value

    answers.json_response = through_bentoml  # before others import it from there


def _time_anew() -> None:
    from service import rollout

    rollout._kind_of = lambda predictor: object()  # like no other


if os.environ.get("BENCH_SERIALISED"):
    _serialise()
if os.environ.get("BENCH_TIMED_ANEW"):
    _time_anew()
