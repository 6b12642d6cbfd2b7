"""Two replicas on this machine, as `elit serve --ray` begins them: one cluster for all tests of this file."""

import base64
import io
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import openai
import pytest
from PIL import Image

from elit import Guidance, load_model, sample
from elit.cli import main
from elit.pixels import to_uint8
from elit.serving.running import bound
from serving import Running, until

pytestmark = pytest.mark.timeout(300)  # a cluster has a dozen processes, which take their time where little else is free
KEY = "k" * 16
LONG = {"prompt": "heart", "n": 16, "steps": 9000, "deadline_ms": 1e8}


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """That of commands which use a cluster of this machine: its address, and the token without which it answers nobody."""
    options = ("port", "metrics-export-port", "dashboard-agent-grpc-port", "dashboard-agent-listen-port")
    options += ("runtime-env-agent-port", "ray-client-server-port", "node-manager-port", "object-manager-port")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
        free = [stack.enter_context(bound("127.0.0.1", 0)) for _ in options]
        ports = [str(one.getsockname()[1]) for one in free]
        for one in free:
            one.close()
        given = [f"--{name}={port}" for name, port in zip(options, ports, strict=True)]
        usual = ["--num-cpus=2", "--include-dashboard=false", "--include-log-monitor=false", "--disable-usage-stats"]
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        found = os.environ | secret | {"RAY_TMPDIR": folder, "RAY_worker_niceness": "0"}
        command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *given, *usual]
        head = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=found)
        )
        stack.callback(head.terminate)
        assert head.stdout is not None
        said = []
        while not (said and "Ray runtime started" in said[-1]):
            said.append(head.stdout.readline())
            assert said[-1], "".join(said)
        yield found | {"RAY_ADDRESS": f"127.0.0.1:{ports[0]}"}


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str], served_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The server; at the end SIGTERM, with a request under way that is still answered, after which nothing is left."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    with bound("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    words = ["--replicas", "2", "--devices", "cpu", "--queue", "2", "--max-steps", "10000", "--api-key-file", str(keys)]
    command = [sys.executable, "-m", "elit", "serve", "--ray", "--model", str(served_model), "--port", str(port), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        said = process.stderr.readline() + process.stderr.readline()
        assert said == f"starting replicas\nserving at http://127.0.0.1:{port}\n", said + process.stderr.read()
        server = Running(port, authorization=f"Bearer {KEY}")
        yield server
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.ask, {"prompt": "heart", "steps": 600, "deadline_ms": 1e8})
            until(lambda: server.metric("elit_running_requests") == 1)
            process.send_signal(signal.SIGTERM)
            assert asked.result()[0] == 200
        assert (process.wait(60), process.stderr.read()) == (0, "")
        with pytest.raises(ConnectionRefusedError):
            server.open()
    finally:
        process.kill()


def test_both_replicas_answer_the_official_client_with_the_pictures_of_sample(cluster: Running, served_model: Path) -> None:
    client = openai.OpenAI(base_url=f"{cluster.url}/v1", api_key=KEY)
    settings = {"seed": 7, "steps": 20, "guidance_scale": 1.5, "alone": True, "deadline_ms": 1e8}

    def pictures(_: int) -> list[str]:
        made = client.images.generate(prompt="heart, time", n=2, quality="low", extra_body=settings).data
        return [one.b64_json for one in made]

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(pictures, range(6)))
    assert all(one == found[0] for one in found)
    expected = to_uint8(sample(load_model(served_model), [51, 52], steps=20, budget=0.25, guidance=Guidance(1.5), seed=7))
    for text, image in zip(found[0], expected, strict=True):
        pixels = np.array(Image.open(io.BytesIO(base64.b64decode(text))))
        assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())
    events = list(client.images.generate(prompt="heart", stream=True, partial_images=2, extra_body={"steps": 6}))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    lines = cluster.ask(None, "/metrics")[1].decode().splitlines()
    answered = [line for line in lines if line.startswith("elit_requests_total") and 'status="200"' in line]
    assert len(answered) == 2 and len({line.partition("}")[0] for line in answered}) == 2  # of two replicas
    assert cluster.metric('elit_requests_total{status="200"}') == 7 and cluster.metric("elit_workers") == 2
    assert sum(line.startswith("# TYPE elit_requests_total ") for line in lines) == 1


def test_mistakes_are_told_as_on_one_machine(cluster: Running) -> None:
    assert cluster.ask(None, "/healthz", authorization="")[:2] == (200, {"status": "ok"})
    for sent, status, said in (
        ({"authorization": "Bearer wrong"}, 401, "give an API key"),
        ({"host": "evil.example"}, 421, "evil.example"),
        ({"content_type": "text/plain"}, 415, "application/json"),
        ({}, 400, "did you mean heart"),
    ):
        found, answer, headers = cluster.ask({"prompt": "haert"}, **sent)
        assert found == status and said in answer["error"]["message"]
        assert headers["x-content-type-options"] == "nosniff"


def test_what_is_too_much_is_refused_and_who_vanishes_leaves(cluster: Running) -> None:
    asked = [cluster.post({**LONG, "stream": bool(i % 2)}) for i in range(12)]
    until(lambda: cluster.metric('elit_requests_total{status="429"}') >= 4)  # of twelve, four wait and two run
    for connection in asked:
        connection.close()
    until(lambda: cluster.metric("elit_running_requests") + cluster.metric("elit_waiting_requests") == 0)


def test_what_cannot_be_served_on_a_cluster_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    for words, said in [
        (["--replicas", "0"], "0 is no range of replicas"),
        (["--replicas", "3:2"], "3:2 is no range of replicas"),
        (["--devices", "cuda:0,cuda:1"], "each replica has one device"),
        (["--port", "0"], "no --port 0"),
        (["--port", "8765"], "no cluster of Ray answers at 127.0.0.1:1"),
    ]:
        assert main(["serve", "--ray", *words]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "--ray"]) == 2 and "give pip elit[ray]" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
