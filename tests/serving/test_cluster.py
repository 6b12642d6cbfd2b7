"""What `elit serve --ray` says where it cannot serve."""

import signal
import sys

import pytest

from elit.cli import main


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
    assert main(["serve", "--ray"]) == 2 and "give pip elit[ray]" in capsys.readouterr().err
