"""Prepared pictures as others expect a data set: Parquet files and a card."""

import json
from pathlib import Path

import yaml

from elit.data.dataset import DataInfo, open_table, read_info
from elit.errors import UserError
from elit.files import whole_folder

GROUP_ROWS = 100  # of a Parquet file, so that viewers show rows without reading all


def publish(folder: Path, out: Path) -> None:
    """Writes OUT/data/train-00000-of-00004.parquet, one per shard, and OUT/README.md; `datasets.load_dataset(OUT)` opens it.

    Raises UserError where `out` exists, or `folder` is not prepared.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_existing(out)
    info = read_info(folder)
    open_table(folder, info)  # whole, and as its description says
    shards = [entry["filename"] for entry in json.loads((folder / "state.json").read_text(encoding="utf8"))["_data_files"]]
    schema = info.schema
    with whole_folder(out) as part:
        (part / "data").mkdir()
        for i, shard in enumerate(shards):
            file = part / "data" / f"train-{i:05d}-of-{len(shards):05d}.parquet"
            with pa.OSFile(str(folder / shard)) as source, pq.ParquetWriter(str(file), schema, compression="none") as writer:
                for batch in pa.ipc.open_stream(source):
                    writer.write_batch(batch, row_group_size=GROUP_ROWS)
        (part / "README.md").write_text(card(info, out.name), encoding="utf8")
        refuse_existing(out)


def refuse_existing(out: Path) -> None:
    """Raises UserError where there is something already, at the start and, as another may have been quicker, at the end."""
    if out.exists():
        raise UserError(f"{out} exists; give another folder with --publish")


def card(info: DataInfo, name: str) -> str:
    """A dataset card: a YAML header as the hub reads it, and what was done to the pictures."""
    powers = [(1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**7, "1M<n<10M")]
    header: dict[str, object] = {
        "pretty_name": name,
        "task_categories": ["unconditional-image-generation"],
        "size_categories": [next((text for limit, text in powers if info.count < limit), "10M<n<100M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    size = " x ".join(map(str, info.size)) if info.size else "one of " + ", ".join(f"{h} x {w}" for h, w in info.buckets)
    counts = info.label_counts or (0,) * len(info.label_names)
    rows = "".join(f"| {i} | {name} | {n} |\n" for i, (name, n) in enumerate(zip(info.label_names, counts, strict=True)))
    classes = f"\n## Classes\n\n| label | name | pictures |\n|---|---|---|\n{rows}" if rows else ""
    return (
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n\n# {name}\n\n"
        f"{info.count} {info.kind} of {size}, prepared with `elit prepare`: crop {info.crop}, from {Path(info.source).name}."
        " Please state the pictures' origin and licence here before you publish them.\n\n"
        "Columns: `image` (a lossless PNG), `label`, and `key`, the picture's place in its source.\n" + classes
    )
