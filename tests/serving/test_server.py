"""The server over real connections: the official client, what people get wrong, and what breaks."""

import base64
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from elit import Guidance, load_model, sample
from elit.cli import main
from elit.errors import UserError
from elit.imprint import read_imprint
from elit.pixels import to_uint8
from elit.serving.messages import Settings
from elit.serving.opened import opened
from elit.serving.policy import replay
from elit.serving.running import bound
from elit.serving.server import LOOPBACK, application
from serving import Running, forked, running, until

HEAD = b"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
LONG = {"prompt": "heart", "n": 4, "steps": 9000, "quality": "high", "deadline_ms": 1e8}


@pytest.fixture(scope="module")
def server(served_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    trace = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    with running(served_model, max_steps=10_000, read_s=0.5, queue=8, trace=trace, page=True, drain_s=5.0) as found:
        yield found
    assert replay(trace)[0] > 20 and replay(trace)[1] == []  # of all that the tests below asked for


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


def test_the_official_client_works_unchanged(server: Running, served_model: Path) -> None:
    """Pictures are those of `elit.sample`, and the answer tells what was granted and spent."""
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any")
    answer = client.images.generate(
        prompt="heart, time",
        n=3,
        size="32x32",
        quality="low",
        response_format="b64_json",
        extra_body={"seed": 7, "steps": 4, "guidance_scale": 1.5, "alone": True},
    )
    model = load_model(served_model)
    names = json.loads((served_model / "card.json").read_text())["label_names"]
    labels = [names.index("heart"), names.index("time"), names.index("heart")]
    expected = to_uint8(sample(model, labels, steps=4, budget=0.25, guidance=Guidance(1.5), seed=7))
    for made, image in zip(answer.data, expected, strict=True):
        assert np.array_equal(pixels(base64.b64decode(made.b64_json)), image.permute(1, 2, 0).numpy())
    told = answer.model_extra["elit"]
    assert told["seed"] == 7 and told["budgets"] == [0.25] * 4 and 0 < told["gflops"] < told["full_gflops"]
    assert told["queue_ms"] >= 0 and told["compute_ms"] > 0 and isinstance(told["deadline_met"], bool)
    assert client.models.list().data[0].model_extra["elit"]["latents"] == 16


def test_a_picture_as_an_address_holds_the_picture(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any")
    url = client.images.generate(prompt="51", response_format="url", extra_body={"steps": 2}).data[0].url
    assert url.startswith("data:image/png;base64,")
    assert pixels(base64.b64decode(url.partition(",")[2])).shape == (32, 32, 3)


def test_the_official_client_streams_pictures_so_far(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any")
    body = {"steps": 6, "seed": 1}
    events = list(client.images.generate(prompt="heart", stream=True, partial_images=3, extra_body=body))
    assert [event.type for event in events] == [*["image_generation.partial_image"] * 2, "image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]  # at steps 2 and 4; the last is the whole
    shown = [pixels(base64.b64decode(event.b64_json)) for event in events]
    assert not np.array_equal(shown[0], shown[-1])


def test_budgets_fall_for_a_deadline_and_only_where_they_may(server: Running) -> None:
    body = {"prompt": "heart", "steps": 8, "n": 2, "seed": 1}
    easy = server.ask({**body, "deadline_ms": 1e7})[1]["elit"]
    assert easy["budgets"] == [1.0] * 8 and easy["deadline_met"]
    lowest = server.ask({**body, "budget": 1 / 16})[1]["elit"]
    assert lowest["budgets"] == [1 / 16] * 8 and lowest["gflops"] < easy["gflops"]
    fixed = server.ask({**body, "budget": 0.3, "deadline_ms": 1e7})[1]["elit"]
    assert fixed["budgets"] == [0.25] * 8
    low = server.ask({**body, "deadline_ms": 0.01})
    assert low[0] == 400 and "lowest budget, on its own" in low[1]["error"]["message"]


BAD = [
    (b'{"prompt": "heart"', 400, "is not JSON"),
    (b"\xff\xfe", 400, "is not JSON"),
    (b"[1]", 400, "the request"),
    (b"", 400, "is not JSON"),
    ({}, 400, "has no prompt"),
    ({"prompt": 3}, 400, "prompt is 3"),
    ({"prompt": "haert"}, 400, "did you mean heart"),
    ({"prompt": "/etc/passwd"}, 400, "there is no label"),
    ({"prompt": "@/etc/passwd"}, 400, "there is no label"),
    ({"prompt": ""}, 400, "there is no label"),
    ({"prompt": "x" * 4000}, 400, "there is no label"),
    ({"prompt": "x" * 4001}, 400, "at most 4000 characters"),
    (b'{"prompt": "\\ud800"}', 400, "is not JSON"),
    (b"[" * 60_000, 400, "is not JSON"),
    (b'{"prompt": "heart", "n": ' + b"9" * 5000 + b"}", 400, "is not JSON"),
    ({"prompt": "heart", "n": 0}, 400, "n is 0"),
    ({"prompt": "heart", "n": 1_000_000}, 400, "at most 16 images"),
    ({"prompt": "heart", "n": True}, 400, "n is True"),
    ({"prompt": "heart", "size": "1024x1024"}, 400, "makes pictures of 32x32"),
    ({"prompt": "heart", "quality": "hd"}, 400, "quality is 'hd'"),
    ({"prompt": "heart", "colour": "red"}, 400, "unknown key 'colour'"),
    (b'{"prompt": "heart", "budget": NaN}', 400, "budget"),
    ({"prompt": "heart", "budget": 0}, 400, "budget is 0"),
    ({"prompt": "heart", "budget": 1.5}, 400, "budget is 1.5"),
    ({"prompt": "heart", "budget": 0.01}, 400, "gives at least 0.0625"),
    ({"prompt": "heart", "deadline_ms": -5}, 400, "deadline_ms is -5"),
    (b'{"prompt": "heart", "deadline_ms": 1e999}', 400, "deadline_ms"),
    ({"prompt": "heart", "seed": -1}, 400, "seed is -1"),
    ({"prompt": "heart", "seed": 2**63}, 400, "seed is"),
    ({"prompt": "heart", "steps": 10_001}, 400, "at most 10000"),
    ({"prompt": "heart", "sampler": "ddim"}, 400, "unknown sampler 'ddim'"),
    ({"prompt": "heart", "guidance_scale": 1e9}, 400, "guidance_scale"),
    (b'{"prompt": "heart", "guidance_interval": [NaN, 1]}', 400, "guidance_interval.0 is nan"),
    (b'{"prompt": "heart", "guidance_budget": 1e-999}', 400, "guidance_budget is 0"),
    ({"prompt": "heart", "n": 16, "steps": 10_000, "deadline_ms": 50}, 400, "fewer images or steps"),
    ({"prompt": "heart", "guidance_interval": [0.8, 0.2]}, 400, "not low <= high"),
    ({"prompt": "heart", "autoguidance": True}, 400, "autoguidance"),
    (b"x" * 100_000, 413, "larger than 65,536 bytes"),
]


@pytest.mark.parametrize(("body", "status", "said"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_what_is_asked_wrongly_is_told_in_a_sentence(server: Running, body: object, status: int, said: str) -> None:
    found, answer, headers = server.ask(body)
    assert (found, answer["error"]["type"]) == (status, "invalid_request_error")
    assert said in answer["error"]["message"] and "\n" not in answer["error"]["message"]
    assert headers["x-content-type-options"] == "nosniff"


def test_a_body_of_100_mb_is_not_read(server: Running) -> None:
    for head in (b"content-length: 100000000\r\n", b"transfer-encoding: chunked\r\n"):
        with server.open() as connection:
            connection.sendall(
                b"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            )
            connection.sendall(head + b"\r\n")
            if b"chunked" in head:
                connection.sendall(b"20000\r\n" + b"x" * 0x20000 + b"\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("begun", [b"GET /", HEAD, HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"])
def test_a_head_without_end_is_not_read(server: Running, begun: bytes) -> None:
    """Whether it is the path, the headers, or headers after the body."""
    with server.open() as connection:
        connection.sendall(begun)
        sent, answer = 0, b""
        with suppress(ConnectionError):
            while sent < 2**22 and not select.select([connection], [], [], 0)[0]:
                connection.sendall(b"x" * 8000)
                sent += 8000
            answer = connection.recv(4096)
        assert sent < 2**22 and answer[:12] in (b"HTTP/1.1 400", b"")
    assert server.ask(None, "/healthz")[0] == 200


def test_slow_bodies_and_bodies_of_other_types_are_refused(server: Running) -> None:
    with server.open() as connection:
        connection.sendall(HEAD + b"content-length: 50\r\n\r\n{")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
    assert server.ask({"prompt": "heart"}, content_type="text/plain")[0] == 415
    assert server.ask({"prompt": "heart"}, host="evil.example")[0] == 421
    assert server.ask(None, "/page/../server.py")[0] == 404 and server.ask(None, "/page/x.js")[0] == 404
    assert server.ask(None, "/v1/images/generations")[0] == 405


def test_clients_that_vanish_leave_the_batch(server: Running) -> None:
    """In all three ways: before the answer, in a stream, and within their own body."""
    asked = [server.post(LONG), server.post({**LONG, "stream": True, "partial_images": 9000})]
    until(lambda: server.metric("elit_running_requests") >= 1)
    with server.open() as half:
        half.sendall(b"POST /v1/images/generations HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{")
    for connection in asked:
        connection.close()
    until(lambda: server.metric("elit_running_requests") + server.metric("elit_waiting_requests") == 0)
    assert server.ask({"prompt": "heart", "steps": 2})[0] == 200


def test_a_full_queue_is_told_with_when_to_ask_again(server: Running) -> None:
    """Of one client's twelve long requests some wait, and the rest are refused at once; none is lost."""
    asked = [server.post({**LONG, "n": 16, "quality": "auto"}) for _ in range(12)]
    until(lambda: len(select.select(asked, [], [], 0)[0]) >= 2)
    for connection in select.select(asked, [], [], 0)[0]:
        answer = HTTPResponse(connection)
        answer.begin()
        assert answer.status == 429 and int(answer.headers["retry-after"]) >= 1
        assert json.loads(answer.read())["error"]["type"] == "rate_limit_error"
    for connection in asked:
        connection.close()
    until(lambda: server.metric("elit_running_requests") + server.metric("elit_waiting_requests") == 0)


def test_a_thousand_connections_keep_nobody_out(server: Running) -> None:
    idle = [server.open() for _ in range(1000)]
    assert server.ask({"prompt": "heart", "steps": 2})[0] == 200
    assert server.ask(None, "/healthz")[:2] == (200, {"status": "ok"})
    for connection in idle:
        connection.close()


def test_requests_of_a_worker_that_dies_are_run_again_and_then_told(server: Running) -> None:
    """Killed in a batch once, the pictures are the same; killed twice, the answer is 503. The server lives."""
    body = {"prompt": "heart", "steps": 100, "seed": 5, "guidance_scale": 1, "quality": "high", "deadline_ms": 1e8}
    expected = server.ask(body)[1]
    answers: list[tuple[int, dict]] = []
    for kills in (1, 2):
        asked = threading.Thread(target=lambda: answers.append(server.ask(body)[:2]))
        asked.start()
        until(lambda: server.metric("elit_running_requests") == 1)
        for _ in range(kills):
            before = server.pool.restarts
            os.kill(server.pool.workers[0].process.pid, signal.SIGKILL)
            until(lambda before=before: server.pool.restarts > before)  # type: ignore[misc]
        asked.join()
    assert answers[0][0] == 200 and answers[0][1]["data"] == expected["data"]
    assert answers[1][0] == 503 and "died" in answers[1][1]["error"]["message"]
    until(lambda: server.ask(None, "/healthz")[0] == 200)
    assert server.metric("elit_worker_restarts") == 3
    assert server.ask({"prompt": "heart", "steps": 2})[0] == 200


def silent(settings: Settings, device: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """A worker that never says anything."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(["sleep", "600"], pass_fds=[theirs.fileno()])
    theirs.close()
    return process, Connection(ours.detach())


def test_requests_of_workers_that_cannot_begin_any_more_are_told(served_model: Path) -> None:
    """Those that were tried for the first time too, once nobody is left to try them again."""
    launches = iter([forked, silent, silent])
    answers: dict[str, tuple[int, dict]] = {}

    def ask(name: str) -> None:
        answers[name] = server.ask({"prompt": "heart", "steps": 2})[:2]

    with running(served_model, lambda settings, device: next(launches)(settings, device)) as server:
        worker, asked = server.pool.workers[0], []
        os.kill(worker.process.pid, signal.SIGKILL)
        for restarts, name in ((1, "early"), (2, "late")):
            until(lambda restarts=restarts: server.pool.restarts == restarts)  # type: ignore[misc]
            asked.append(threading.Thread(target=ask, args=(name,)))
            asked[-1].start()
            until(lambda: len(worker.tickets) == len(asked))
            os.kill(worker.process.pid, signal.SIGKILL)
        for thread in asked:
            thread.join()
        assert [answers[name][0] for name in ("early", "late")] == [503, 503]
        assert "died" in answers["early"][1]["error"]["message"]
        assert "no worker" in answers["late"][1]["error"]["message"]
        assert server.ask({"prompt": "heart"})[0] == server.ask(None, "/healthz")[0] == 503


def test_keys_and_names_are_asked_for_before_anything_else() -> None:
    """No worker is started for this: nothing of it comes so far."""
    app = application(Settings(keys=("a" * 16, "b" * 16)), LOOPBACK)
    client = TestClient(app, base_url="http://localhost")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {'a' * 15}"}):
        answer = client.post("/v1/images/generations", json={"prompt": "heart"}, headers=headers)
        assert answer.status_code == 401 and "Bearer KEY" in answer.json()["error"]["message"]
        assert client.get("/metrics", headers=headers).status_code == 401
    assert client.post("/v1/images/generations", json={}, headers={"authorization": f"Bearer {'b' * 16}"}).status_code == 400
    assert client.get("/healthz").status_code == 503  # no worker is ready
    assert client.get("/", headers={"host": "localhost:8000"}).status_code == 404  # no page was asked for
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 421


def test_a_picture_says_how_it_was_drawn_and_is_drawn_again_to_the_byte(
    server: Running, served_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"prompt": "heart,time", "n": 2, "seed": 3, "steps": 4, "sampler": "heun", "alone": True}
    weak = {"guidance_scale": 2.5, "guidance_budget": 0.25, "guidance_interval": [0.1, 0.9], "budget": 0.5}
    made = server.ask({**body, **weak})[1]
    picture = tmp_path / "time.png"
    picture.write_bytes(base64.b64decode(made["data"][1]["b64_json"]))
    assert read_imprint(picture).levels == (8,) * 4 and read_imprint(picture).index == 1
    command = ["sample", "--from", str(picture), "--model", str(served_model), "--out", str(tmp_path / "again")]
    assert main(command) == 0
    assert (tmp_path / "again/time.png").read_bytes() == picture.read_bytes()
    (tmp_path / "again/time.png").write_bytes(b"another")
    Image.new("RGB", (2, 2)).save(tmp_path / "plain.png")
    (tmp_path / "none.png").write_bytes(b"no picture")
    capsys.readouterr()
    for words, said in [
        (command, "is there and is another picture"),
        ([*command, "--count", "3"], "--from says all of it"),
        ([*command, "--seed", "3"], "--from says all of it"),
        ([*command, "--guidance.scale", "2"], "leave out every option but --out, --model, --codec"),
        (["sample", "--from", str(picture), "--out", str(tmp_path / "b")], "was drawn by the model"),
        (["sample", "--from", str(tmp_path / "plain.png")], "does not say how it was drawn"),
        (["sample", "--from", str(tmp_path / "none.png")], "cannot be read as a PNG file"),
    ]:
        assert main(words) == 2 and said in capsys.readouterr().err


def test_a_device_that_is_none_is_told_by_its_worker(served_model: Path) -> None:
    with pytest.raises(UserError, match="there is no device 'gpu'; give cpu, cuda"):
        opened(Settings(model=str(served_model)), "gpu")


def test_sigterm_ends_it_when_what_is_under_way_is_done(served_model: Path) -> None:
    command = [sys.executable, "-m", "elit", "serve", "--model", str(served_model), "--port", "0", "--max-steps", "10000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert process.stderr.readline() == "loading the model\n"
        where = re.fullmatch(r"serving at http://127.0.0.1:(\d+)\n", process.stderr.readline())
        assert where is not None
        server = Running(int(where[1]))
        answers: list[int] = []
        body = {"prompt": "heart", "steps": 60, "deadline_ms": 1e8}
        asked = threading.Thread(target=lambda: answers.append(server.ask(body)[0]))
        asked.start()
        until(lambda: server.metric("elit_running_requests") == 1)
        process.send_signal(signal.SIGTERM)
        asked.join()
        assert answers == [200]
        assert process.wait(30) == 0 and process.stderr.read() == ""
    finally:
        process.kill()


def test_what_is_not_done_when_the_time_to_drain_is_over_is_answered(served_model: Path) -> None:
    """With 503 and a sentence, streams by an event that says so; nobody is left without an answer."""
    answers: dict[bool, tuple[int, object]] = {}
    bodies = {
        False: {**LONG, "deadline_ms": 2e8},
        True: {**LONG, "stream": True, "partial_images": 9000},
    }  # the stream is first

    def ask(stream: bool) -> None:
        answers[stream] = server.ask(bodies[stream])[:2]

    with running(served_model, max_steps=10_000, drain_s=0.3) as server:
        asked = [threading.Thread(target=ask, args=(stream,)) for stream in bodies]
        for thread in asked:
            thread.start()
        until(lambda: server.metric("elit_running_requests") + server.metric("elit_waiting_requests") == 2)
        until(lambda: server.metric("elit_granted_budget_count") > 2)
    for thread in asked:
        thread.join()
    assert answers[False][0] == 503 and "not done within 0.3 seconds" in answers[False][1]["error"]["message"]  # type: ignore[index]
    assert answers[True][0] == 200 and b"event: error" in answers[True][1] and b"0.3 seconds" in answers[True][1]  # type: ignore[operator]


def test_what_cannot_be_served_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = tmp_path / "keys"
    keys.write_text("short\n")
    for words, said in [
        (["serve", "--api-key-file", str(keys)], "is to hold 1 to 1000 keys"),
        (["serve", "--devices", ","], "names none"),
        (["serve", "--deadline-ms", "-1"], "is not a time"),
        (["serve", "--host", "203.0.113.7"], "cannot be listened at"),
        (["serve", "--min-budget", "2"], "is not in (0, 1]"),
        (["serve", "--model", str(tmp_path / "none"), "--port", "0"], str(tmp_path / "none")),
    ]:
        assert main(words) == 2
        err = capsys.readouterr().err
        assert said in err and "Traceback" not in err and err.splitlines()[-1].startswith("elit: ")


def test_nothing_of_torch_is_loaded_by_the_server_itself() -> None:
    code = "import sys, elit.serving.running; print([n for n in ('torch', 'diffusers', 'matplotlib') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert torch is not None


def test_answers_are_sent_at_once() -> None:
    """asyncio turns Nagle's algorithm off for sockets that are named TCP alone, and with it two-part answers take 40 ms."""
    with bound("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        taken, _ = listening.accept()
        with taken:
            assert taken.proto == socket.IPPROTO_TCP
