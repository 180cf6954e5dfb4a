"""The HTTP contract, asked of a real server that runs without torch."""

from __future__ import annotations

import io
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import sklearn.metrics
from PIL import Image

SNEAKER = 7


def encode(pixels: np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format, **options)
    return buffer.getvalue()


def a_sneaker(garment_images: dict[str, np.ndarray], number: int = 0) -> bytes:
    rows = np.flatnonzero(garment_images["labels"] == SNEAKER)
    return encode(garment_images["images"][rows[number]])


def ask(server: Any, body: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{server.url}/v1/predict", content=body, headers=named, timeout=20)


def error_code(response: httpx.Response) -> str:
    content = response.json()
    assert set(content) == {"error"}
    assert set(content["error"]) == {"code", "message"}
    return str(content["error"]["code"])


def form(*images: bytes, name: str = "image") -> list[tuple[str, tuple[str, bytes]]]:
    return [(name, ("x", image)) for image in images]


def test_the_start_says_who_is_served(server):
    assert "no API keys: only this machine is served" in server.log.read_text()


class TestPredictions:
    def test_a_sneaker_is_called_a_sneaker_and_is_not_flagged(self, server, garment_images):
        answer = ask(server, a_sneaker(garment_images)).json()
        prediction = answer["predictions"][0]
        assert prediction["labels"] == ["sneaker"]
        assert prediction["error"] is None
        assert prediction["out_of_domain"]["flagged"] is False
        assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert uuid.UUID(prediction["id"]).version == 7
        assert answer["model"]["stage"] == "champion"

    def test_digits_and_photographs_score_above_garments_and_are_flagged_more_often(
        self, server, garment_images
    ):
        digits = sklearn.datasets.load_digits().images[:40]
        photographs = [
            encode(skimage.data.astronaut()),
            encode(skimage.data.coffee(), "JPEG"),
            encode(skimage.data.chelsea(), "WEBP"),
        ]
        foreign = [
            encode((digit * 15.9).astype(np.uint8).repeat(4, 0).repeat(4, 1)) for digit in digits
        ] + photographs
        garments = [encode(image) for image in garment_images["images"][:60]]
        asked = [
            httpx.post(f"{server.url}/v1/predict", files=form(*images), timeout=20).json()
            for images in (foreign, garments)
        ]
        foreign_rows, garment_rows = (
            [row["out_of_domain"] for row in answer["predictions"]] for answer in asked
        )
        scores = [row["score"] for row in foreign_rows + garment_rows]
        is_foreign = [True] * len(foreign_rows) + [False] * len(garment_rows)
        # Three trainings with other seeds gave 0.98 and more.
        assert sklearn.metrics.roc_auc_score(is_foreign, scores) > 0.9
        flagged_foreign, flagged_garments = (
            np.mean([row["flagged"] for row in rows]) for rows in (foreign_rows, garment_rows)
        )
        # Of garments one in a hundred. A model trained for seconds flags a tenth of these.
        assert flagged_foreign > 0.05
        assert flagged_foreign > 3 * flagged_garments

    def test_jpeg_png_and_webp_of_one_image_get_one_answer(self, server, garment_images):
        image = np.repeat(garment_images["images"][0][:, :, None], 3, axis=2)
        encoded = [
            encode(image),
            encode(image, "JPEG", quality=98),
            encode(image, "WEBP", lossless=True),
        ]
        labels = [ask(server, body).json()["predictions"][0]["labels"] for body in encoded]
        assert labels == [["ankle boot"]] * 3

    def test_answers_do_not_depend_on_neighbours(self, server, garment_images):
        images = [encode(image) for image in garment_images["images"][:48]]
        alone = [ask(server, image).json()["predictions"][0] for image in images]
        with ThreadPoolExecutor(24) as threads:
            crowded = list(threads.map(lambda image: ask(server, image).json(), images))
        together = httpx.post(f"{server.url}/v1/predict", files=form(*images)).json()
        for one, other, third in zip(alone, crowded, together["predictions"], strict=True):
            for neighbour in (other["predictions"][0], third):
                assert neighbour["labels"] == one["labels"]
                for name, chance in one["probabilities"].items():
                    assert neighbour["probabilities"][name] == pytest.approx(chance, abs=0.005)
                p_value = one["out_of_domain"]["p_value"]
                assert neighbour["out_of_domain"]["p_value"] == pytest.approx(p_value, abs=0.005)


class TestManyImages:
    def test_eight_concurrent_requests_with_a_bad_one_answer_the_other_seven(
        self, server, garment_images
    ):
        bodies = [a_sneaker(garment_images, number) for number in range(8)]
        alone = [ask(server, body).json()["predictions"][0]["labels"] for body in bodies]
        bodies[3] = bodies[3][:200]
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda body: ask(server, body), bodies))
        assert [answer.status_code for answer in answers] == [200] * 3 + [422] + [200] * 4
        for number, answer in enumerate(answers):
            if number != 3:
                assert answer.json()["predictions"][0]["labels"] == alone[number]
        assert alone.count(["sneaker"]) > 4

    def test_a_bad_part_gets_its_error_and_its_neighbours_their_answers(
        self, server, garment_images
    ):
        good = a_sneaker(garment_images)
        answer = httpx.post(f"{server.url}/v1/predict", files=form(good, b"junk", good)).json()
        first, bad, last = answer["predictions"]
        assert first["labels"] == last["labels"] == ["sneaker"]
        assert bad == {
            "id": None,
            "labels": [],
            "probabilities": {},
            "out_of_domain": None,
            "error": {"code": "unsupported_type", "message": bad["error"]["message"]},
        }

    def test_with_no_good_part_the_first_error_is_the_answer(self, server, garment_images):
        truncated = a_sneaker(garment_images)[:200]
        response = httpx.post(f"{server.url}/v1/predict", files=form(truncated, b"junk"))
        assert (response.status_code, error_code(response)) == (422, "undecodable")

    def test_sixty_four_parts_are_taken_and_sixty_five_are_not(self, server, garment_images):
        image = a_sneaker(garment_images)
        most = httpx.post(f"{server.url}/v1/predict", files=form(*[image] * 64), timeout=20)
        assert len(most.json()["predictions"]) == 64
        more = httpx.post(f"{server.url}/v1/predict", files=form(*[image] * 65), timeout=20)
        assert (more.status_code, error_code(more)) == (413, "too_large")

    def test_parts_of_other_names_are_refused(self, server, garment_images):
        files = form(a_sneaker(garment_images), name="picture")
        response = httpx.post(f"{server.url}/v1/predict", files=files)
        assert (response.status_code, error_code(response)) == (400, "malformed")


def with_sets(server: Any, coverage: float, *images: bytes) -> list[dict[str, Any]]:
    response = httpx.post(
        f"{server.url}/v1/predict",
        params={"coverage": coverage},
        files=form(*images),
        timeout=60,
    )
    assert response.status_code == 200, response.text
    rows: list[dict[str, Any]] = response.json()["predictions"]
    return rows


class TestPredictionSets:
    def told(self, server: Any) -> dict[str, Any]:
        """What can be asked for, as the service says."""
        sets: dict[str, Any] = httpx.get(f"{server.url}/v1/model").json()["prediction_sets"]
        return sets

    def test_are_there_only_where_a_coverage_is_asked_for(self, server, garment_images):
        good = a_sneaker(garment_images)
        plain = ask(server, good).json()["predictions"][0]
        assert set(plain) == {"id", "labels", "probabilities", "out_of_domain", "error"}
        first, bad, last = with_sets(server, 0.99, good, b"junk", good)
        assert first["set"] == last["set"]
        assert "sneaker" in first["set"]
        assert "set" not in bad

    def test_hold_every_class_that_is_probable_enough_the_most_probable_first(
        self, server, garment_images
    ):
        images = [encode(image) for image in garment_images["images"][1000:1032]]
        smaller, larger = (with_sets(server, coverage, *images) for coverage in (0.9, 0.99))
        for small, large in zip(smaller, larger, strict=True):
            chances = large["probabilities"]
            assert large["set"] == sorted(large["set"], key=lambda name: -chances[name])
            assert set(small["set"]) <= set(large["set"])
        inside = [row["probabilities"][name] for row in larger for name in row["set"]]
        outside = [
            chance
            for row in larger
            for name, chance in row["probabilities"].items()
            if name not in row["set"]
        ]
        assert min(inside) >= max(outside) - 2e-6  # both are rounded

    @pytest.mark.parametrize("coverage", [0.8, 0.95])
    def test_hold_the_true_class_as_often_as_was_promised(self, server, garment_images, coverage):
        names = httpx.get(f"{server.url}/v1/model").json()["classes"]
        calibration_images = self.told(server)["calibration_images"]
        chosen = slice(2000, 2640)
        images = [encode(image) for image in garment_images["images"][chosen]]
        truth = [names[label] for label in garment_images["labels"][chosen]]
        rows = [
            row
            for start in range(0, len(images), 64)
            for row in with_sets(server, coverage, *images[start : start + 64])
        ]
        held = np.mean([name in row["set"] for name, row in zip(truth, rows, strict=True)])
        # Four deviations: of 640 images, and of what so many to calibrate with can tell.
        deviation = np.sqrt(coverage * (1 - coverage) * (1 / 640 + 1 / calibration_images))
        assert abs(held - coverage) < 4 * deviation

    def test_neighbours_of_other_coverages_do_not_mix(self, server, garment_images):
        images = [encode(image) for image in garment_images["images"][:48]]
        coverages = [(0.5, 0.9, 0.99, None)[number % 4] for number in range(48)]

        def ask_one(image: bytes, coverage: float | None) -> dict[str, Any]:
            if coverage is None:
                row: dict[str, Any] = ask(server, image).json()["predictions"][0]
                return row
            return with_sets(server, coverage, image)[0]

        with ThreadPoolExecutor(24) as threads:
            crowded = list(threads.map(ask_one, images, coverages))
        for coverage in (0.5, 0.9, 0.99):
            mine = [number for number in range(48) if coverages[number] == coverage]
            alone = with_sets(server, coverage, *[images[number] for number in mine])
            for number, row in zip(mine, alone, strict=True):
                # The probabilities of a class on the border may differ by as much.
                for name in set(row["set"]) ^ set(crowded[number]["set"]):
                    border = min(row["probabilities"][its] for its in row["set"] or [name])
                    assert row["probabilities"][name] == pytest.approx(border, abs=0.01)
        assert all(
            ("set" in row) == (coverage is not None)
            for row, coverage in zip(crowded, coverages, strict=True)
        )

    @pytest.mark.parametrize(
        "query",
        [
            *("coverage=", "coverage=nan", "coverage=2", "coverage=1", "coverage=0"),
            *("coverage=-0.9", "coverage=much", "coverage=0.9%20", "coverage=%ff", "coverage"),
            *("coverage=0.9&coverage=0.9", "coverage=inf", "coverage=0.99999"),
        ],
    )
    def test_a_wrong_coverage_gets_one_clear_error(self, server, garment_images, query):
        highest = self.told(server)["highest_coverage"]
        response = httpx.post(
            f"{server.url}/v1/predict?{query}", content=a_sneaker(garment_images), timeout=20
        )
        assert (response.status_code, error_code(response)) == (422, "invalid")
        message = response.json()["error"]["message"]
        if query == "coverage=0.99999":
            assert f"at most {highest} can" in message
        else:
            assert "valid is a number between 0 and 1" in message

    def test_the_model_tells_the_highest_and_it_can_be_had(self, server, garment_images):
        sets = self.told(server)
        count = sets["calibration_images"]
        assert sets["highest_coverage"] == pytest.approx(count / (count + 1), abs=1e-6)
        assert [its["coverage"] for its in sets["measured"]] == [0.8, 0.9, 0.95, 0.99]
        assert sets["measured_on"] == "test"
        with_sets(server, sets["highest_coverage"], a_sneaker(garment_images))

    def test_other_query_parameters_are_not_looked_at(self, server, garment_images):
        body = a_sneaker(garment_images)
        response = httpx.post(f"{server.url}/v1/predict?colour=blue", content=body, timeout=20)
        assert response.status_code == 200
        assert "set" not in response.json()["predictions"][0]


def a_png_that_claims(width: int, height: int) -> bytes:
    png = encode(np.zeros((8, 8), np.uint8))
    return png[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + png[24:]


class TestBadImages:
    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            (b"", 400, "empty"),
            (b"just some text, no image", 415, "unsupported_type"),
            (b"GIF89a" + bytes(40), 415, "unsupported_type"),
            (encode(skimage.data.coffee(), "JPEG")[:-2000], 422, "undecodable"),
            (b"\xff\xd8\xff" + bytes(100), 422, "undecodable"),
            (b"\x89PNG\r\n\x1a\n" + bytes(100), 422, "undecodable"),
            (a_png_that_claims(50_000, 50_000), 413, "too_large"),
            (encode(np.zeros((2, 30), np.uint8)), 422, "undecodable"),
            (b"\xff\xd8\xff" + bytes(11 * 2**20), 413, "too_large"),
        ],
        ids=[
            "empty",
            "text",
            "gif",
            "truncated jpeg",
            "jpeg signature alone",
            "png signature alone",
            "too many pixels",
            "too small",
            "too many bytes",
        ],
    )
    def test_gets_one_clear_error(self, server, body, status, code):
        response = ask(server, body)
        assert (response.status_code, error_code(response)) == (status, code)

    def test_a_mislabelled_image_is_judged_by_its_content(self, server, garment_images):
        jpeg = encode(garment_images["images"][0], "JPEG")
        assert ask(server, jpeg, content_type="image/png").status_code == 200

    @pytest.mark.parametrize("kind", ["text/plain", "application/json", "multipart/mixed"])
    def test_other_content_types_are_refused(self, server, garment_images, kind):
        response = ask(server, a_sneaker(garment_images), content_type=kind)
        assert (response.status_code, error_code(response)) == (415, "unsupported_type")

    @pytest.mark.parametrize(
        "kind", ["application/octet-stream", "application/x-www-form-urlencoded", "image/jpeg"]
    )
    def test_absent_and_general_content_types_are_taken(self, server, garment_images, kind):
        assert ask(server, a_sneaker(garment_images), content_type=kind).status_code == 200

    def test_compressed_bodies_are_refused(self, server, garment_images):
        response = ask(server, a_sneaker(garment_images), content_encoding="gzip")
        assert response.status_code == 415


class TestRoutes:
    def test_model_tells_what_is_in_force(self, server, trained):
        model = httpx.get(f"{server.url}/v1/model").json()
        assert f"{model['name']}:{model['version']}" == trained.tag
        assert model["classes"][SNEAKER] == "sneaker"
        assert model["input"]["size"] == 28
        assert model["alpha"] == 0.01
        assert 0 <= model["metrics"]["accuracy"]["value"] <= 1

    def test_unknown_paths_and_wrong_methods_get_the_error_object(self, server):
        missing = httpx.get(f"{server.url}/v1/nothing")
        assert (missing.status_code, error_code(missing)) == (404, "not_found")
        assert httpx.post(f"{server.url}/v1/predict/").status_code == 404
        wrong = httpx.get(f"{server.url}/v1/predict")
        assert (wrong.status_code, error_code(wrong)) == (405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"

    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/docs", "/openapi.json"])
    def test_probes_and_documents_answer(self, server, path):
        assert httpx.get(f"{server.url}{path}").status_code == 200

    def test_every_route_is_documented(self, server):
        document = httpx.get(f"{server.url}/openapi.json").json()
        page = httpx.get(f"{server.url}/docs").text
        for path in document["paths"]:
            assert path in page
        for path, methods in document["paths"].items():
            for method in methods:
                found = httpx.request(method, f"{server.url}{path}")
                assert found.status_code not in (404, 405)

    def test_metrics_count_images_by_outcome(self, server, garment_images):
        def count(outcome: str) -> float:
            text = httpx.get(f"{server.url}/metrics").text
            line = f'plumbline_images_total{{outcome="{outcome}"}} '
            return sum(float(row.rpartition(" ")[2]) for row in text.splitlines() if line in row)

        good, bad = count("ok"), count("unsupported_type")
        ask(server, a_sneaker(garment_images))
        ask(server, b"junk")
        assert (count("ok"), count("unsupported_type")) == (good + 1, bad + 1)

    def test_other_host_names_are_refused_without_keys(self, server, garment_images):
        for header in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            response = ask(server, a_sneaker(garment_images), **header)
            assert (response.status_code, error_code(response)) == (403, "forbidden")


class TestDeadlines:
    def test_one_with_time_enough_changes_nothing(self, server, garment_images):
        answer = ask(server, a_sneaker(garment_images), X_Request_Deadline_Ms="5000")
        assert answer.json()["predictions"][0]["labels"] == ["sneaker"]

    @pytest.mark.parametrize("given", ["0", "-1", "1.5", "soon", "5001"])
    def test_one_that_is_none_gets_one_clear_error(self, server, garment_images, given):
        response = ask(server, a_sneaker(garment_images), X_Request_Deadline_Ms=given)
        assert (response.status_code, error_code(response)) == (422, "invalid")
        assert "milliseconds" in response.json()["error"]["message"]


class TestFeedback:
    def give(self, server: Any, content: Any) -> httpx.Response:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        return httpx.post(f"{server.url}/v1/feedback", content=body)

    def test_is_taken_for_a_prediction_and_for_ids_not_seen(self, server, garment_images):
        seen = ask(server, a_sneaker(garment_images)).json()["predictions"][0]["id"]
        for prediction_id in (seen, str(uuid.uuid4())):
            given = self.give(server, {"id": prediction_id, "labels": ["sandal"]})
            assert given.status_code == 202

    @pytest.mark.parametrize(
        ("content", "status", "code"),
        [
            (b"not json", 400, "malformed"),
            ({"id": str(uuid.uuid4())}, 422, "invalid"),
            ({"id": str(uuid.uuid4()), "labels": "sandal"}, 422, "invalid"),
            ({"id": str(uuid.uuid4()), "labels": ["hat"]}, 422, "invalid"),
            ({"id": "17", "labels": ["sandal"]}, 422, "invalid"),
            ({"id": str(uuid.uuid4()), "labels": ["sandal"] * 65}, 422, "invalid"),
        ],
    )
    def test_bad_feedback_gets_one_clear_error(self, server, content, status, code):
        response = self.give(server, content)
        assert (response.status_code, error_code(response)) == (status, code)


def test_predictions_are_recorded(trained, serving, garment_images, tmp_path):
    from monitoring.records import read_records

    records = tmp_path / "records"
    with serving(trained.path, records_url=str(records)) as server:
        prediction = ask(server, a_sneaker(garment_images)).json()["predictions"][0]
        ask(server, b"junk")
    rows = read_records(str(records)).to_pylist()
    assert [row["id"] for row in rows] == [prediction["id"]]
    assert rows[0]["labels"] == ["sneaker"]
    assert rows[0]["model"] == trained.tag
    assert (rows[0]["width"], rows[0]["height"], rows[0]["format"]) == (28, 28, "png")
    assert len(rows[0]["logits"]) == 10
    assert rows[0]["client"] not in ("", "127.0.0.1")


@pytest.mark.slow
def test_records_can_be_switched_off(trained, serving, garment_images, tmp_path):
    records = tmp_path / "records"
    with serving(trained.path, records_url=str(records), record="false") as server:
        assert ask(server, a_sneaker(garment_images)).status_code == 200
    assert not records.exists()


def test_a_full_queue_sheds_load_with_retry_after(trained, serving, garment_images):
    image = a_sneaker(garment_images)
    with serving(trained.path, queue_images="8", limit_parts="8") as server:
        with ThreadPoolExecutor(12) as threads:
            answers = list(
                threads.map(
                    lambda _: httpx.post(f"{server.url}/v1/predict", files=form(*[image] * 8)),
                    range(36),
                )
            )
        shed = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert {error_code(answer) for answer in shed} == {"overloaded"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in shed)
        assert ask(server, image).status_code == 200


@pytest.mark.slow
def test_a_slow_body_is_given_up(trained, serving):
    def trickle():
        yield b"\xff\xd8"
        time.sleep(3)
        yield b"\xff"

    with serving(trained.path, body_timeout_seconds="0.5") as server:
        response = httpx.post(f"{server.url}/v1/predict", content=trickle(), timeout=20)
    assert (response.status_code, error_code(response)) == (408, "too_slow")
