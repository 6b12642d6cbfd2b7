"""Where models are found, and what goes to the hub: the real client against a server here that plays the hub's part."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session

from elit import DiT, ElitPipeline
from elit.bundled import FOLDER
from elit.card import Card, SamplingDefaults
from elit.cli import main
from elit.hub import find_model, names_model


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


def test_what_is_pushed_is_what_is_saved(
    tiny: DiT, hub: tuple[type[Hub], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A private repository is made, and one commit holds what `save_pretrained` writes, and no other file.

    Its README.md names the repository where that of the folder names the folder.
    """
    played, address = hub
    saved = ElitPipeline(tiny, Card(SamplingDefaults(steps=3))).save_pretrained(tmp_path / "saved")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()  # one that is open has the proxies of before
    pushed = ElitPipeline.from_pretrained(saved).push_to_hub("me/mine", private=True, token="hf_secret")
    close_session()
    assert pushed.startswith(f"{address}/me/mine")
    assert played.made["name"] == "mine" and played.made["organization"] == "me"
    assert played.made.get("private") or played.made.get("visibility") == "private"
    files = {p.name: p.read_bytes() for p in saved.iterdir()}
    files["README.md"] = files["README.md"].replace(repr(str(saved)).encode(), b"'me/mine'")
    assert played.files == files and len(played.files) == 4 and b"from_pretrained('me/mine')" in files["README.md"]
    assert all(entry.endswith("Bearer hf_secret") for entry in played.asked if "/api/models/" in entry)


@pytest.fixture
def run(model_folder: Path, tmp_path: Path) -> Path:
    """A training run's folder with two checkpoints."""
    folder = tmp_path / "run"
    for step in (1, 2):
        shutil.copytree(model_folder, folder / "checkpoints" / f"step_{step:08d}")
    (folder / "config.json").write_text(json.dumps({"steps": 2}))
    return folder


def test_a_model_is_found_by_one_rule(
    run: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bundled, a model folder, a run or its checkpoints; a folder called bundled is ./bundled."""
    assert find_model() == find_model("bundled") == FOLDER
    assert find_model(str(model_folder)) == model_folder
    assert find_model(run) == find_model(run / "checkpoints") == run / "checkpoints" / "step_00000002"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_folder, "bundled")
    assert find_model("bundled") == FOLDER and find_model("./bundled") == Path("bundled")
    assert names_model("bundled") and names_model(str(run)) and names_model("user/name")
    (tmp_path / "pictures" / "checkpoints").mkdir(parents=True)
    assert not names_model(str(tmp_path / "pictures")) and not names_model("pictures.npz")


def test_every_command_takes_a_run_and_the_bundled_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """info, sample and export; the Python face too."""
    assert main(["info", str(run)]) == 0 and "4 budget(s)" in capsys.readouterr().out
    assert main(["info", "bundled"]) == 0 and "16 budget(s)" in capsys.readouterr().out
    assert main(["info", "bundled", "--labels"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.startswith("labels are made of 2 parts with / between them; * leaves one open 1: alphanum, animal-")
    assert "2: noto, noto-v1, twemoji" in told
    assert main(["info", str(run), "--labels"]) == 0 and "0 to " in capsys.readouterr().out
    sample = ["sample", "--steps", "1", "--count", "1", "--labels", "1", "--out", str(tmp_path / "samples")]
    assert main([*sample, "--model", str(run)]) == 0
    assert main(["export", "bundled", "--out", str(tmp_path / "out")]) == 0
    assert ElitPipeline.from_pretrained(run).model.latents == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ELIT-SiT-XL/3"], "did you mean ELIT-SiT-XL/"),
        (["SiT-B"], "did you mean"),
        (
            ["nobody/nothing"],
            "(it was not fetched before, and the hub cannot be reached); there is no folder nobody/nothing",
        ),
        (["bundled", "--input-size", "8"], "leave --input-size"),
        (["config.yaml"], "unknown model 'config.yaml'; elit info lists the presets"),
        (["./nowhere"], "nowhere is not a model folder: there is no such folder"),
        (["ELIT-SiT-S/2", "--labels"], "ELIT-SiT-S/2 is a preset, which has no labels; give a model"),
    ],
)
def test_info_says_what_a_name_might_have_been(arguments: list[str], said: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["info", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
