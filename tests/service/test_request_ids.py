"""An id is the trace id of a valid traceparent, or fresh; nothing else of clients gets through."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.request_ids import request_id, trace_id

TRACE = b"0af7651916cd43dd8448eb211c80319c"
PARENT = b"b7ad6b7169203331"
IDS = re.compile("[0-9a-f]{32}")


def header(version=b"00", trace=TRACE, parent=PARENT, flags=b"01", more=b""):
    return b"-".join([version, trace, parent, flags]) + more


@pytest.mark.parametrize(
    "valid",
    [header(), header(flags=b"00"), header(flags=b"ff"), header(b"01"), header(b"cc", more=b"-x-")],
)
def test_a_valid_traceparent_gives_its_trace_id(valid):
    assert trace_id(valid) == TRACE.decode()
    assert request_id([(b"host", b"a"), (b"traceparent", valid)]) == TRACE.decode()


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"00",
        TRACE,
        header(trace=b"0" * 32),
        header(parent=b"0" * 16),
        header(b"ff"),
        header(b"0"),
        header(b"0g"),
        header(trace=TRACE.upper()),
        header(trace=TRACE[:-1]),
        header(trace=TRACE + b"0"),
        header(parent=PARENT[:-1]),
        header(flags=b"1"),
        header(more=b"-extra"),
        header(b"01", more=b"extra"),
        header() + b"\n",
        b" " + header(),
        header().replace(b"-", b"_"),
    ],
)
def test_a_broken_one_is_ignored(broken):
    assert trace_id(broken) is None
    fresh = request_id([(b"traceparent", broken)])
    assert IDS.fullmatch(fresh)
    assert fresh != TRACE.decode()


def test_two_of_them_are_ignored():
    assert request_id([(b"traceparent", header())] * 2) != TRACE.decode()


def test_fresh_ids_differ():
    assert len({request_id([]) for _ in range(1_000)}) == 1_000


@given(st.binary(max_size=80))
def test_an_id_is_32_hexadecimal_digits_whatever_is_sent(value):
    for sent in (value, header(more=value), value + header()):
        assert IDS.fullmatch(request_id([(b"traceparent", sent)]))
