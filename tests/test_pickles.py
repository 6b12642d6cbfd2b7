"""Pickled files are read for what weights need; whatever else they ask for is named, and never run."""

import os
import pickle
from argparse import Namespace
from collections import OrderedDict, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import torch

from elit.pickles import read_pickle


class Intruder:
    """Would make a folder if anything unpickled it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def refusal(file: Path) -> str:
    with pytest.raises(ValueError) as error:
        read_pickle(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("new_format", [True, False])
def test_tensors_plain_values_and_a_namespace_are_read(tmp_path, new_format):
    contents = {
        "ema": OrderedDict(a=torch.arange(3.0)),
        "args": Namespace(model="SiT-S/2", n=None),
        "steps": 3,
        "x": (1, [2]),
    }
    torch.save(contents, tmp_path / "file.pt", _use_new_zipfile_serialization=new_format)
    read = read_pickle(tmp_path / "file.pt")
    assert torch.equal(read["ema"]["a"], torch.arange(3.0))
    assert read["args"] == contents["args"] and read["steps"] == 3 and read["x"] == (1, [2])


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_an_intruder_in_a_torch_file_is_named_and_not_run(tmp_path, protocol):
    contents = {"ema": {"a": torch.ones(2)}, "args": Namespace(deep=[Intruder(tmp_path / "mark")])}
    torch.save(contents, tmp_path / "file.pt", pickle_protocol=protocol)
    assert "posix.mkdir" in refusal(tmp_path / "file.pt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_an_intruder_in_a_plain_pickle_is_named_and_not_run(tmp_path, protocol):
    (tmp_path / "file.pt").write_bytes(pickle.dumps(["text", {"a": Intruder(tmp_path / "mark")}], protocol))
    assert "posix.mkdir" in refusal(tmp_path / "file.pt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("thing", "name"),
    [(PurePosixPath("a"), "pathlib.PurePosixPath"), (defaultdict(list), "collections.defaultdict"), (eval, "eval")],
)
def test_anything_else_is_named(tmp_path, thing: Any, name: str):
    torch.save({"ema": {}, "args": Namespace(thing=thing)}, tmp_path / "file.pt")
    assert name in refusal(tmp_path / "file.pt")


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_cut_files_are_damaged(tmp_path, new_format, share):
    file = tmp_path / "file.pt"
    torch.save({"ema": {"a": torch.ones(5000)}}, file, _use_new_zipfile_serialization=new_format)
    os.truncate(file, int(share * file.stat().st_size))
    assert "damaged, cut short" in refusal(file)


@pytest.mark.parametrize("contents", [b"weights", bytes(range(256)), b"PK\x03\x04 and no more", b"\x80\x02}q\x00"])
def test_other_files_are_damaged(tmp_path, contents):
    (tmp_path / "file.pt").write_bytes(contents)
    assert "damaged, cut short" in refusal(tmp_path / "file.pt")


def test_only_the_tensors_that_are_used_take_memory(tmp_path):
    """The file is mapped: a change of it on the disk is seen in tensors that were read before."""
    torch.save({"ema": {"a": torch.full((4096,), 3.0)}}, tmp_path / "file.pt")
    tensor = read_pickle(tmp_path / "file.pt")["ema"]["a"]
    where = (tmp_path / "file.pt").read_bytes().index(torch.full((4096,), 3.0).numpy().tobytes())
    with (tmp_path / "file.pt").open("r+b") as file:
        file.seek(where)
        file.write(torch.full((4096,), 4.0).numpy().tobytes())
    assert torch.equal(tensor, torch.full((4096,), 4.0))
