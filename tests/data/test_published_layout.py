"""The layout of the authors' tools: means and standard deviations as .npy files."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from elit.codec import Latents
from elit.data.opening import check_fit, decoder_of, open_data
from elit.data.published_layout import PublishedLatents
from elit.seeding import generator_for


def write_latents(folder: Path, count: int = 4, shape: tuple[int, ...] = (8, 2, 3)) -> list[np.ndarray]:
    """Files in two folders, as the authors' tool names them."""
    arrays = []
    for i in range(count):
        sub = folder / "vae-sd" / f"{i // 2:05d}"
        sub.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(i)
        mean, std = rng.normal(size=(4, *shape[1:])), rng.uniform(0.1, 2, size=(4, *shape[1:]))
        arrays.append(np.concatenate([mean, std]).astype(np.float32))
        np.save(sub / f"img-mean-std-{i:08d}.npy", arrays[-1])
    return arrays


def labels_of(folder: Path, entries: object) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": entries}))


def test_a_latent_is_mean_plus_standard_deviation_times_noise(tmp_path: Path) -> None:
    """The second four channels are standard deviations, not log-variances; each row draws from its own generator."""
    arrays = write_latents(tmp_path)
    data = open_data(str(tmp_path), 256)
    assert (len(data), data.shape) == (4, (4, 2, 3))
    x, _ = data.read(torch.tensor([3, 0]), [generator_for("a"), generator_for("b")])
    for image, array, key in zip(x, (arrays[3], arrays[0]), ("a", "b"), strict=True):
        noise = torch.randn(4, 2, 3, generator=generator_for(key)).double().numpy()
        wanted = 0.18215 * (array[:4].astype(float) + array[4:].astype(float) * noise)
        np.testing.assert_allclose(image.double().numpy(), wanted, rtol=1e-5, atol=1e-7)


def test_labels_of_its_own_dataset_json(tmp_path: Path) -> None:
    write_latents(tmp_path)
    entries = [[f"{i // 2:05d}/img-mean-std-{i:08d}.npy", label] for i, label in enumerate([5, 0, 2, 5])]
    labels_of(tmp_path / "vae-sd", entries[::-1])
    labels_of(tmp_path / "images", [["00000/img00000000.png", 1]])
    data = PublishedLatents(tmp_path)
    assert data.labels.tolist() == [5, 0, 2, 5] and data.label_names == tuple("012345")
    labels_of(tmp_path / "vae-sd", None)
    assert PublishedLatents(tmp_path).labels.tolist() == [-1] * 4


def test_labels_of_the_pictures_pair_by_folder_and_digits(tmp_path: Path) -> None:
    write_latents(tmp_path)
    entries = [[f"{i // 2:05d}/img{i:08d}.png", label] for i, label in enumerate([5, 0, 2, 4])]
    labels_of(tmp_path / "images", entries[::-1])
    assert PublishedLatents(tmp_path).labels.tolist() == [5, 0, 2, 4]
    labels_of(tmp_path / "images", entries[:3])
    with pytest.raises(ValueError, match=r"no label for the picture of 00001/img-mean-std-00000003\.npy"):
        PublishedLatents(tmp_path)


def test_labels_of_folders(tmp_path: Path) -> None:
    write_latents(tmp_path)
    data = PublishedLatents(tmp_path)
    assert data.labels.tolist() == [0, 0, 1, 1] and data.label_names == ("00000", "00001")


def test_wrong_files(tmp_path: Path) -> None:
    """Files of another shape, cut short, or pickled are named; nothing is unpickled."""
    write_latents(tmp_path)
    data = PublishedLatents(tmp_path)
    file = tmp_path / "vae-sd" / "00001" / "img-mean-std-00000003.npy"
    whole = file.read_bytes()
    row, generators = torch.tensor([3]), [torch.Generator()]
    np.save(file, np.zeros((8, 3, 3), np.float32))
    with pytest.raises(ValueError, match=re.escape(f"{file} is float32 (8, 3, 3) and not float32 (8, h, w) as the first")):
        data.read(row, generators)
    for content in (whole[:-1], whole[:40], b""):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{file} is not a whole .npy file")):
            data.read(row, generators)
    np.save(file, np.array({"a": 1}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"is not a whole \.npy file"):
        data.read(row, generators)
    np.save(tmp_path / "vae-sd" / "00000" / "img-mean-std-00000000.npy", np.zeros(8, np.float32))
    with pytest.raises(ValueError, match=r"is float32 \(8,\) and not"):
        PublishedLatents(tmp_path)


def test_no_latents(tmp_path: Path) -> None:
    (tmp_path / "vae-sd").mkdir()
    with pytest.raises(ValueError, match="holds no"):
        PublishedLatents(tmp_path)


def test_data_that_fit_no_model(tmp_path: Path) -> None:
    write_latents(tmp_path)
    data = open_data(str(tmp_path), 32)
    check_fit(data, (4, 2, 3), 2)
    with pytest.raises(
        ValueError, match=re.escape("the data are 4 x 2 x 3 and the model takes 3 x 32 x 32; set model.in_channels 4")
    ):
        check_fit(data, (3, 32, 32), 2)
    with pytest.raises(ValueError, match=r"labels go up to 1; set model\.num_classes 2"):
        check_fit(data, (4, 2, 3), 1)


def test_data_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder"):
        open_data(str(tmp_path / "nowhere"), 32)


def test_latents_of_three_channels_are_no_pictures(tmp_path: Path) -> None:
    """They are not decoded, measured or aligned as pictures: who asks gets no decoder, and is told what is missing."""
    (tmp_path / "vae-sd" / "a").mkdir(parents=True)
    np.save(tmp_path / "vae-sd" / "a" / "img-mean-std-00000000.npy", np.ones((6, 2, 2), np.float32))
    data = PublishedLatents(tmp_path)
    assert data.shape == (3, 2, 2) and data.encoding == Latents(0.18215) and data.label_counts == (1,)
    assert decoder_of(data, None, torch.device("cpu")) is None
    with pytest.raises(ValueError, match="is not a folder"):  # there are no pictures to align with
        data.stored_features("dino")


def test_an_array_that_never_ends_or_lies(tmp_path: Path) -> None:
    """A pipe, a device, and a header of more than the file holds are refused at once."""
    write_latents(tmp_path)
    file = tmp_path / "vae-sd" / "00000" / "img-mean-std-00000000.npy"
    whole = file.read_bytes()
    for shape in (b"(8, 2000000000, 3), }", b"(8, -2, 3), }", b"(" * 3000):
        file.write_bytes(whole.replace(b"(8, 2, 3), }", shape))
        with pytest.raises(ValueError, match=r"is not a whole \.npy file"):
            PublishedLatents(tmp_path)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(ValueError, match="is not a plain file"):
        PublishedLatents(tmp_path)
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is not a plain file"):
        PublishedLatents(tmp_path)
