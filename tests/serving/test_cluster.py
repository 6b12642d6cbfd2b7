"""`elit serve --ray`: two replicas on a cluster of this machine alone, and what it says where it cannot serve."""

import base64
import io
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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

KEY = "k" * 16
STARTED_S = 240.0  # a cluster has a dozen processes, which take their time where little else is free
PORTS = ("port", "metrics-export-port", "dashboard-agent-grpc-port", "dashboard-agent-listen-port",
         "runtime-env-agent-port", "ray-client-server-port", "node-manager-port", "object-manager-port")  # fmt: skip
PLAIN = ("--num-cpus=2", "--object-store-memory=100000000", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
         "--include-log-monitor=false", "--disable-usage-stats")  # fmt: skip


def descendants(process: int) -> dict[int, str]:
    """The command lines of all processes below one, by their number (Linux)."""
    parents, told = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat, words = (folder / "stat").read_text(), (folder / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        state, parent = stat.rpartition(") ")[2].split()[:2]
        if state != "Z":
            parents[int(folder.name)], told[int(folder.name)] = int(parent), words.replace(b"\0", b" ").decode()
    below = {process}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return {child: told[child] for child in below - {process}}


def gone(processes: list[int]) -> bool:
    return all(not Path(f"/proc/{one}").exists() for one in processes)


def said_until(process: subprocess.Popen[str], stream: str, text: str) -> str:
    """What a process says, until it has said this."""
    said, lines = "", getattr(process, stream)
    while text not in said:
        line = lines.readline()
        assert line, f"it has ended: {said}"
        said += line
    return said


@contextmanager
def cluster() -> Iterator[tuple[int, dict[str, str]]]:
    """The process of a cluster's head, and the environment of commands that use it: its address, and the token without
    which it answers nobody. Its folder is a short one, for the path of a socket has 107 bytes at most.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True))
        free = [stack.enter_context(bound("127.0.0.1", 0)) for _ in PORTS]
        ports = [str(one.getsockname()[1]) for one in free]
        for one in free:
            one.close()
        given = [f"--{name}={port}" for name, port in zip(PORTS, ports, strict=True)]
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment = os.environ | secret | {"RAY_TMPDIR": folder, "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
        command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", *given, *PLAIN]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        head = stack.enter_context(subprocess.Popen(command, env=environment, **streams))  # type: ignore[call-overload]
        try:
            said_until(head, "stdout", "Ray runtime started")
            yield head.pid, environment | {"RAY_ADDRESS": f"127.0.0.1:{ports[0]}"}
        finally:
            below = list(descendants(head.pid))
            head.terminate()
            try:
                until(lambda: head.poll() is not None and gone(below))
            finally:
                for one in [head.pid, *below]:  # nothing is left, whatever went wrong
                    if not gone([one]):
                        os.kill(one, signal.SIGKILL)


@contextmanager
def served(environment: dict[str, str], model: Path, keys: Path) -> Iterator[Running]:
    """The server; at its end a SIGTERM with a request under way, which is still answered."""
    with bound("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    words = ["--replicas", "2", "--devices", "cpu", "--max-steps", "10000", "--api-key-file", str(keys), "--drain", "20"]
    command = [sys.executable, "-m", "elit", "serve", "--ray", "--model", str(model), "--port", str(port), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        said = said_until(process, "stderr", "serving at")
        assert said == f"starting replicas\nserving at http://127.0.0.1:{port}\n"
        server = Running(port, authorization=f"Bearer {KEY}")
        yield server
        under_way = client_of(server).images.generate(
            prompt="heart", stream=True, partial_images=1000, extra_body={"steps": 1000, "deadline_ms": 1e8}
        )
        assert next(iter(under_way)).type == "image_generation.partial_image"
        process.send_signal(signal.SIGTERM)
        assert [event.type for event in under_way][-1] == "image_generation.completed"
        assert (process.wait(60), process.stderr.read()) == (0, "")  # type: ignore[union-attr]
        with pytest.raises(ConnectionRefusedError):
            server.open()
    finally:
        process.kill()
        process.wait()


def client_of(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY)


def both_answer(server: Running, body: dict[str, object], seconds: float = STARTED_S) -> dict[str, list[str]]:
    """Asks the same again and again, six at once, until two replicas have answered: their pictures, by replica."""
    found: dict[str, list[str]] = {}
    end = time.monotonic() + seconds
    with ThreadPoolExecutor(6) as pool:
        while len(found) < 2:
            assert time.monotonic() < end, f"{list(found)} answered alone"
            found = {}
            for status, answer, headers in pool.map(lambda _: server.ask(body), range(6)):
                if status == 200:  # of a replica that has just died there is none
                    found.setdefault(headers["x-elit-replica"], []).extend(one["b64_json"] for one in answer["data"])
    return found


@pytest.mark.timeout(600)
def test_two_replicas_serve_what_python_draws_and_outlive_the_death_of_one(served_model: Path, tmp_path: Path) -> None:
    """All in one, for one cluster: who answers, with which pictures; mistakes; a replica's death; the end."""
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    settings = {"seed": 7, "steps": 20, "guidance_scale": 1.5, "alone": True, "deadline_ms": 1e8}
    body = {"prompt": "heart, time", "n": 2, "quality": "low", **settings}
    with cluster() as (head, environment), served(environment, served_model, keys) as server:
        drawn = sample(load_model(served_model), [51, 52], steps=20, budget=0.25, guidance=Guidance(1.5), seed=7)
        expected = [image.permute(1, 2, 0).numpy() for image in to_uint8(drawn)]
        found = both_answer(server, body)
        assert len(found) == 2
        for pictures in found.values():
            assert set(pictures) == set(pictures[:2])  # the same two, however often
            for text, image in zip(pictures[:2], expected, strict=True):
                assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(text)))), image)
        events = list(
            client_of(server).images.generate(prompt="heart", stream=True, partial_images=2, extra_body={"steps": 6})
        )
        assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
        lines = server.ask(None, "/metrics")[1].decode().splitlines()
        answered = [line for line in lines if line.startswith("elit_requests_total") and 'status="200"' in line]
        assert len(answered) == 2 and all(any(name in line for line in answered) for name in found)
        assert server.metric("elit_workers") == 2

        for sent, status, said in (
            ({"authorization": "Bearer wrong"}, 401, "give an API key"),
            ({"host": "evil.example"}, 421, "evil.example"),
            ({}, 400, "did you mean heart"),
        ):
            refused, answer, _ = server.ask({"prompt": "haert"}, **sent)
            assert refused == status and said in answer["error"]["message"]

        replicas = [number for number, words in descendants(head).items() if words.startswith("ray::ServeReplica:elit")]
        assert len(replicas) == 2
        os.kill(replicas[0], signal.SIGKILL)
        until(lambda: gone(replicas[:1]))
        until(lambda: server.ask(body)[0] == 200)  # by the one that lives
        again = both_answer(server, body)  # and by another in its place
        assert len(set(again) | set(found)) == 3 and len(set(again) & set(found)) == 1
        assert all(set(pictures) == set(next(iter(found.values()))) for pictures in again.values())


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
    assert signal.getsignal(signal.SIGTERM) is before
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["serve", "--ray"]) == 2 and "pip install 'elit-diffusion[ray]'" in capsys.readouterr().err
