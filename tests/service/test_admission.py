"""The door reads no more than it must, takes forms apart, and decodes within its budget."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.requests import Request

from model.errors import ImageError
from model.images import InputSpec, check, prepare, properties
from service import decoding
from service.admission import Admission, split_multipart
from service.decoding import Admitted
from service.errors import ClientGoneError, RequestError
from service.settings import ServiceSettings

SPEC = InputSpec(size=28, mean=(0, 0, 0), std=(1, 1, 1))
FORM = "multipart/form-data; boundary=edge"


class Sender:
    """A client that sends its body in chunks; a number among them is a pause in seconds."""

    def __init__(self, *chunks: bytes | float, breaks_off: bool = False) -> None:
        self.chunks = list(chunks)
        self.breaks_off = breaks_off
        self.received = 0

    async def receive(self) -> dict:
        while self.chunks and not isinstance(self.chunks[0], bytes):
            await asyncio.sleep(self.chunks.pop(0))
        if not self.chunks:
            if self.breaks_off:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": b"", "more_body": False}
        body = self.chunks.pop(0)
        self.received += len(body)
        return {"type": "http.request", "body": body, "more_body": True}

    def request(self, **headers: str) -> Request:
        named = [(name.replace("_", "-").encode(), value.encode("latin-1"))
                 for name, value in headers.items()]  # fmt: skip
        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": named}
        return Request(scope, self.receive)


def at_the_door(story, *, on_drop=lambda reason, count: None, **settings):
    """Play `story(admission)` with these settings."""

    async def play():
        admission = Admission(ServiceSettings(**settings), on_drop=on_drop)
        try:
            return await story(admission)
        finally:
            admission.close()

    return asyncio.run(play())


def read(sender: Sender, *, settings: dict | None = None, **headers: str):
    return at_the_door(
        lambda admission: admission.read_images(sender.request(**headers)), **(settings or {})
    )


def refusal(sender: Sender, *, settings: dict | None = None, **headers: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        read(sender, settings=settings, **headers)
    return caught.value


def form(*parts: tuple[str, bytes], edge: bytes = b"edge", end: bytes = b"--edge--\r\n") -> bytes:
    body = b""
    for name, content in parts:
        body += b"--" + edge + b'\r\nContent-Disposition: form-data; name="' + name.encode()
        body += b'"; filename="x.png"\r\nContent-Type: image/png\r\n\r\n' + content + b"\r\n"
    return body + end


# The type of the body


@pytest.mark.parametrize(
    "kind",
    [
        "image/jpeg",
        "image/png; charset=binary",
        "IMAGE/WEBP",
        "image/anything",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "",
        None,
    ],
)
def test_a_body_of_these_types_is_one_image(kind):
    headers = {} if kind is None else {"content_type": kind}
    assert read(Sender(b"one ", b"image"), **headers) == [b"one image"]


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/json", "video/mp4", "multipart/mixed; boundary=edge", "nonsense",
     "images/png", "\xff"],
)  # fmt: skip
def test_other_types_are_unsupported_and_nothing_is_read(kind):
    sender = Sender(b"body")
    error = refusal(sender, content_type=kind)
    assert (error.code, error.status) == ("unsupported_type", 415)
    assert sender.received == 0


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip", "deflate"])
def test_an_encoded_body_is_unsupported(encoding):
    assert refusal(Sender(b"body"), content_encoding=encoding).code == "unsupported_type"


@pytest.mark.parametrize("encoding", ["identity", "Identity", " identity "])
def test_identity_is_no_encoding(encoding):
    assert read(Sender(b"body"), content_encoding=encoding) == [b"body"]


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_no_content_type_breaks_the_door(kind):
    for prefix in ("", "multipart/form-data;", "multipart/form-data; boundary="):
        with suppress(RequestError):
            read(Sender(b"body"), content_type=prefix + kind)


# Its length and its time


def test_a_body_that_declares_too_much_is_refused_unread():
    sender = Sender(b"x" * 100)
    error = refusal(sender, settings={"limit_part_bytes": 99}, content_length="100")
    assert (error.code, error.status, sender.received) == ("too_large", 413, 0)
    assert error.headers["Connection"] == "close"


def test_a_body_that_grows_too_large_is_refused_without_reading_the_rest():
    sender = Sender(*[b"x" * 10] * 100)
    error = refusal(sender, settings={"limit_part_bytes": 35})
    assert (error.code, sender.received) == ("too_large", 40)
    assert error.headers["Connection"] == "close"


def test_a_body_of_just_the_limit_is_taken():
    sender = Sender(b"x" * 10, b"x" * 10)
    settings = {"limit_part_bytes": 20}
    assert read(sender, settings=settings, content_length="20") == [b"x" * 20]


@pytest.mark.parametrize("declared", ["many", "-5", "\xb2", "1e3", ""])
def test_a_length_that_is_no_number_is_not_believed(declared):
    assert read(Sender(b"body"), content_length=declared) == [b"body"]


def test_a_form_has_a_limit_of_its_own():
    body = form(("image", b"x" * 300))
    settings = {"limit_part_bytes": 10, "limit_request_bytes": len(body)}
    assert read(Sender(body), settings=settings, content_type=FORM) == [b"x" * 300]
    settings["limit_request_bytes"] -= 1
    assert refusal(Sender(body), settings=settings, content_type=FORM).code == "too_large"


@pytest.mark.parametrize("pauses", [(5.0,), (0.03,) * 20], ids=["stalled", "drop by drop"])
def test_a_body_that_does_not_come_in_time_is_too_slow(pauses):
    drops = [piece for pause in pauses for piece in (pause, b"x")]
    error = refusal(Sender(b"start", *drops), settings={"body_timeout_seconds": 0.1})
    assert (error.code, error.status) == ("too_slow", 408)
    assert error.headers["Connection"] == "close"


def test_a_client_that_hangs_up_in_the_middle_of_its_body_is_gone():
    with pytest.raises(ClientGoneError):
        refusal(Sender(b"half", breaks_off=True))


def test_a_body_that_does_not_come_before_the_deadline_is_given_up_and_told():
    dropped = []

    async def story(admission):
        deadline = asyncio.get_running_loop().time() + 0.05
        request = Sender(b"start", 20.0, b"end").request()
        with pytest.raises(RequestError) as caught:
            await admission.read_images(request, deadline=deadline)
        return caught.value

    error = at_the_door(story, on_drop=lambda *told: dropped.append(told))
    assert (error.code, error.status) == ("deadline_exceeded", 504)
    assert error.headers["Connection"] == "close"
    assert dropped == [("deadline", 1)]


def test_a_deadline_after_the_time_for_a_body_does_not_lengthen_it():
    async def story(admission):
        deadline = asyncio.get_running_loop().time() + 60
        with pytest.raises(RequestError) as caught:
            await admission.read_images(Sender(b"start", 20.0).request(), deadline=deadline)
        return caught.value.code

    assert at_the_door(story, body_timeout_seconds=0.05) == "too_slow"


# Forms


def test_the_parts_named_image_come_in_order():
    body = form(("image", b"one"), ("image", b""), ("image", b"\r\n--edg\r\nthree"))
    assert read(Sender(body), content_type=FORM) == [
        b"one",
        b"",
        b"\r\n--edg\r\nthree",
    ]


def test_a_form_may_arrive_byte_by_byte():
    body = form(("image", b"one"), ("image", b"two"))
    sender = Sender(*(bytes([byte]) for byte in body))
    assert read(sender, content_type=FORM) == [b"one", b"two"]


@pytest.mark.parametrize(
    "kind",
    ['multipart/form-data; boundary="edge"', "Multipart/Form-Data;boundary=edge",
     "multipart/form-data; charset=utf-8; boundary=edge"],
)  # fmt: skip
def test_the_boundary_is_read_as_written_by_several_clients(kind):
    assert read(Sender(form(("image", b"one"))), content_type=kind) == [b"one"]


def test_what_stands_behind_the_last_boundary_is_ignored():
    body = form(("image", b"one"), end=b"--edge--\r\nan epilogue")
    assert split_multipart(body, b"edge", 64) == [b"one"]


@pytest.mark.parametrize("name", ["file", "images", "Image", "", "image[]"])
def test_parts_of_other_names_are_malformed_and_the_name_is_said(name):
    error = refusal(Sender(form(("image", b"one"), (name, b"two"))), content_type=FORM)
    assert (error.code, error.status) == ("malformed", 400)
    assert repr(name) in str(error)


def test_a_part_without_a_disposition_is_malformed():
    body = b"--edge\r\nContent-Type: image/png\r\n\r\nbytes\r\n--edge--\r\n"
    assert refusal(Sender(body), content_type=FORM).code == "malformed"


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary="])
def test_a_form_without_a_boundary_is_malformed(kind):
    error = refusal(Sender(form(("image", b"one"))), content_type=kind)
    assert error.code == "malformed"
    assert "boundary" in str(error)


def test_a_form_with_another_boundary_is_malformed():
    kind = "multipart/form-data; boundary=other"
    assert refusal(Sender(form(("image", b"one"))), content_type=kind).code == "malformed"


def test_a_form_is_malformed_wherever_it_is_cut():
    body = form(("image", b"the first image"), ("image", b"the second"), end=b"--edge--")
    for length in range(len(body)):
        with pytest.raises(RequestError) as caught:
            split_multipart(body[:length], b"edge", 64)
        assert caught.value.code == "malformed", body[:length]
    assert len(split_multipart(body, b"edge", 64)) == 2


@pytest.mark.parametrize(("size", "is_aside"), [(1_000, False), (2 * 2**20, True)])
def test_a_large_form_is_taken_apart_in_a_thread_of_its_own(size, is_aside, monkeypatch):
    threads = []

    def watched(*arguments):
        threads.append(threading.current_thread())
        return split_multipart(*arguments)

    monkeypatch.setattr("service.admission.split_multipart", watched)
    images = [b"x" * size, b"y"]
    body = form(*(("image", image) for image in images))
    assert read(Sender(body), content_type=FORM) == images
    assert [thread is not threading.main_thread() for thread in threads] == [is_aside]


def test_64_parts_are_taken_and_65_are_too_large():
    parts = [("image", b"x")] * 65
    assert len(read(Sender(form(*parts[:64])), content_type=FORM)) == 64
    error = refusal(Sender(form(*parts)), content_type=FORM)
    assert (error.code, error.status) == ("too_large", 413)


@pytest.mark.parametrize("body", [b"--edge--\r\n", b"\r\n--edge--\r\n", b"--edge--"])
def test_a_form_without_parts_is_empty_or_malformed_and_never_a_crash(body):
    assert refusal(Sender(body), content_type=FORM).code in {"empty", "malformed"}


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_form_breaks_the_door(junk, place):
    whole = form(("image", b"one"), ("image", b"two"))
    for body in (junk, whole[:place] + junk + whole[place:], whole + junk):
        with suppress(RequestError):
            split_multipart(body, b"edge", 64)


# Decoding


def admit_all(images, *, seconds=20.0, **settings):
    async def story(admission):
        deadline = asyncio.get_running_loop().time() + seconds
        return await admission.admit_all(images, SPEC, deadline=deadline)

    return at_the_door(story, **settings)


def test_an_admitted_image_is_prepared_measured_and_hashed(photograph, encoded):
    data = encoded(photograph, "JPEG")
    (image,) = admit_all([data])
    assert (image.pixels == prepare(data, SPEC)).all()
    assert image.properties == properties(image.pixels)
    assert image.sha256 == hashlib.sha256(data).hexdigest()
    assert image.bytes == len(data)
    assert (image.header.format, image.header.width, image.header.height) == ("jpeg", 200, 150)
    assert image.decode_seconds > 0


def test_a_bad_image_stands_in_its_place_as_its_error(photograph, encoded):
    good = encoded(photograph, "PNG")
    outcomes = admit_all([good, b"", b"text", good[:-50], good])
    kinds = [getattr(outcome, "code", "admitted") for outcome in outcomes]
    assert kinds == ["admitted", "empty", "unsupported_type", "undecodable", "admitted"]
    assert isinstance(outcomes[0], Admitted)
    assert isinstance(outcomes[1], ImageError)


def test_a_single_bad_image_is_its_error_too():
    (outcome,) = admit_all([b"text"])
    assert outcome.code == "unsupported_type"


def test_an_image_is_checked_off_the_event_loop(photograph, encoded, monkeypatch):
    threads = []

    def watched(*arguments):
        threads.append(threading.current_thread())
        return check(*arguments)

    monkeypatch.setattr(decoding, "check", watched)
    (outcome,) = admit_all([encoded(photograph, "JPEG")])
    assert isinstance(outcome, Admitted)
    assert [thread is threading.main_thread() for thread in threads] == [False]


def test_the_limits_of_the_settings_are_those_of_the_door(photograph, encoded):
    data = encoded(photograph, "PNG")
    for name, value in {
        "limit_part_bytes": len(data) - 1,
        "limit_pixels": 200 * 150 - 1,
        "limit_aspect": 1.2,
    }.items():
        assert admit_all([data], **{name: value})[0].code == "too_large", name
    assert admit_all([data], limit_least_side_pixels=151)[0].code == "undecodable"


def test_images_past_the_deadline_are_answered_so(photograph, encoded):
    data = encoded(photograph.resize((3000, 2000)), "PNG")
    for images in ([data], [data] * 3):
        with pytest.raises(RequestError) as caught:
            admit_all(images, seconds=0.001)
        assert caught.value.code == "deadline_exceeded"


class Gate:
    """Stands before a decoder: holds up the first image, and counts those that come through."""

    def __init__(self, decode) -> None:
        self._decode = decode
        self.entered = 0
        self.open = threading.Event()

    def __call__(self, *arguments):
        self.entered += 1
        assert self.open.wait(20)
        return self._decode(*arguments)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(decoding.prepare_checked)
    monkeypatch.setattr(decoding, "prepare_checked", gate)
    return gate


async def until(condition) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("why", ["deadline", "client_gone"])
def test_images_that_nobody_waits_for_are_not_decoded(gate, why, count, photograph, encoded):
    data, dropped = encoded(photograph, "PNG"), []

    async def story(door):
        loop = asyncio.get_running_loop()
        first = asyncio.create_task(door.admit_all([data], SPEC, deadline=loop.time() + 60))
        await until(lambda: gate.entered)
        deadline = loop.time() + (0.05 if why == "deadline" else 60)
        second = asyncio.create_task(door.admit_all([data] * count, SPEC, deadline=deadline))
        await asyncio.sleep(0)
        if why == "client_gone":
            second.cancel()
        await asyncio.wait([second])
        gate.open.set()
        await first
        await door.admit_all([data], SPEC, deadline=loop.time() + 60)

    at_the_door(story, on_drop=lambda *told: dropped.append(told), decode_threads=1)
    assert gate.entered == 2
    assert dropped == [(why, count)]


def test_nothing_is_begun_after_the_deadline(gate, photograph, encoded, monkeypatch):
    looked_at = []
    monkeypatch.setattr(decoding, "check", lambda *arguments: looked_at.append(arguments))
    with pytest.raises(RequestError) as caught:
        admit_all([encoded(photograph, "PNG")], seconds=-1)
    assert caught.value.code == "deadline_exceeded"
    assert (looked_at, gate.entered) == ([], 0)


def test_images_that_need_the_whole_budget_are_decoded_one_after_another(encoded):
    data = encoded(Image.new("RGB", (100, 100), "red"), "PNG")
    assert all(
        isinstance(outcome, Admitted)
        for outcome in admit_all([data] * 10, limit_decoded_bytes=50_000, decode_threads=4)
    )


def test_a_bad_image_gives_its_budget_back(photograph, encoded):
    data = encoded(photograph, "PNG")
    outcomes = admit_all([data[:-50], data] * 10, limit_decoded_bytes=200 * 150 * 4)
    assert sum(isinstance(outcome, Admitted) for outcome in outcomes) == 10
