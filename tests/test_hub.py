"""What goes to the hub: the real client against a server on this machine that plays the hub's part."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from elit import DiT, ElitPipeline
from elit.card import Card, SamplingDefaults

PUSH = """
import sys
from elit import ElitPipeline
print(ElitPipeline.from_pretrained(sys.argv[1]).push_to_hub("me/mine", private=True, token="hf_secret"))
"""


class Hub(BaseHTTPRequestHandler):
    """Makes repositories, asks for plain uploads, takes commits, and notes what was asked, committed and by whom."""

    asked: list[str]
    made: dict[str, object]
    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        self.asked.append(f"{self.path} {self.headers['Authorization']}")
        address, answer = f"http://{self.headers['Host']}/me/mine", {}
        if self.path == "/api/repos/create":
            self.made.update(json.loads(body))
            answer = {"url": address}
        elif self.path == "/api/models/me/mine/preupload/main":
            named = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in named]}
        elif self.path == "/api/models/me/mine/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    assert line["value"]["encoding"] == "base64"
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{address}/commit/{'0' * 40}", "commitOid": "0" * 40}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    """A hub of its own, and its address."""
    handler = type("Hub", (Hub,), {"asked": [], "made": {}, "files": {}})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_what_is_pushed_is_what_is_saved(tiny: DiT, hub: tuple[type[Hub], str], tmp_path: Path) -> None:
    """A private repository is made, and one commit holds the bytes of `save_pretrained`'s folder, and no other file."""
    played, address = hub
    saved = ElitPipeline(tiny, Card(SamplingDefaults(steps=3))).save_pretrained(tmp_path / "saved")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run([sys.executable, "-c", PUSH, saved], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(f"{address}/me/mine")
    assert played.made["name"] == "mine" and played.made["organization"] == "me"
    assert played.made.get("private") or played.made.get("visibility") == "private"
    assert played.files == {p.name: p.read_bytes() for p in saved.iterdir()} and len(played.files) == 4
    assert all(entry.endswith("Bearer hf_secret") for entry in played.asked if "/api/models/" in entry)
