"""Rows of a data set: from the Hugging Face hub, or from a copy on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_inf.evaluation.tasks.task import TaskError

Row = dict[str, Any]
_SUFFIXES = (".jsonl", ".json", ".parquet")
_INSTALL = "install em-inf[eval] (deploy/install cpu eval)"


@dataclass(frozen=True)
class Dataset:
    """A data set of the hub.

    Attributes:
        id: "openai/gsm8k".
        config: its subset, or None for the only one.
        splits: that are read, one after another, in this order.
        size: rows in all.
        revision: a commit of the data set, or None: then the one that the hub has, which
            is recorded.
    """

    id: str
    config: str | None
    splits: tuple[str, ...]
    size: int
    revision: str | None = None


def rows(
    task: str, dataset: Dataset | None, path: Path | None, size: int
) -> tuple[list[Row], str]:
    """Every row, and where they came from.

    Args:
        task: its name, for the sentences of errors.
        dataset: to load where no path is given; None where the hub has none.
        path: a file (JSONL, JSON or parquet), or a folder of such in the hub's layout.
        size: so many rows there must be.

    Raises:
        TaskError: no network, no such path, a file that cannot be read, or another
            number of rows.
    """
    if path is not None:
        found, source = _local(path, dataset), f"local: {path}"
    elif dataset is None:
        raise TaskError(f"{task} is not on the hub; give a local copy with --path")
    else:
        found, source = _remote(task, dataset)
    if len(found) != size:
        raise TaskError(
            f"{task}: {source} has {len(found)} problems, and {size} are expected; "
            "another version of the data, or another split"
        )
    return found, source


def _remote(task: str, dataset: Dataset) -> tuple[list[Row], str]:
    try:
        import datasets
        import huggingface_hub
    except ImportError as error:
        raise TaskError(f"{task} needs {error.name}: {_INSTALL}") from error
    try:
        revision = dataset.revision or huggingface_hub.dataset_info(dataset.id).sha
        found = [
            dict(row)
            for split in dataset.splits
            for row in datasets.load_dataset(
                dataset.id, dataset.config, split=split, revision=revision
            )
        ]
    except Exception as error:
        # The hub's client raises its own errors, httpx's, and plain OSError.
        subset = f", subset {dataset.config}" if dataset.config else ""
        said = next(iter(str(error).splitlines()), "")[:200]
        raise TaskError(
            f"{task}: {dataset.id} cannot be loaded from the Hugging Face hub "
            f"({type(error).__name__}: {said}). Without the network, give a local copy: "
            f"--path FILE_OR_FOLDER, JSONL, JSON or parquet of {dataset.id}{subset}, "
            f"split {' and '.join(dataset.splits)}"
        ) from error
    config = f" {dataset.config}" if dataset.config else ""
    splits = "+".join(dataset.splits)
    return found, f"{dataset.id}{config} {splits} at revision {revision}"


def _local(path: Path, dataset: Dataset | None) -> list[Row]:
    if not path.exists():
        raise TaskError(f"path: {path} does not exist")
    files = [path] if path.is_file() else list(_files(path, dataset))
    if not files:
        raise TaskError(f"path: {path} holds no file that ends in {', '.join(_SUFFIXES)}")
    return [row for file in files for row in _read(file)]


def _files(folder: Path, dataset: Dataset | None) -> Iterator[Path]:
    """The files of a folder in the hub's layout that hold the splits, in their order.

    A split's files bear its name at their beginning ("test-00000-of-00001.parquet",
    "en.jsonl"); where the subset has a folder of its own, only that is searched.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix in _SUFFIXES)
    if dataset is not None and dataset.config is not None:
        own = [file for file in files if dataset.config in file.relative_to(folder).parts]
        files = own or files
    if dataset is None or len(files) == 1:
        yield from files
        return
    for split in dataset.splits:
        yield from (file for file in files if file.stem.split("-")[0] == split)


def _read(file: Path) -> Sequence[Row]:
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet

            table: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
            return table
        if file.suffix == ".jsonl":
            return list(_lines(file))
        try:
            content = json.loads(file.read_text("utf-8"))
        except json.JSONDecodeError:
            return list(_lines(file))  # JSON lines under the name .json.
    except ImportError as error:
        raise TaskError(f"{file} needs {error.name}: {_INSTALL}") from error
    except (OSError, ValueError) as error:
        raise TaskError(f"{file} cannot be read: {error}") from error
    if isinstance(content, list):
        return content
    if isinstance(content, dict) and all(isinstance(v, dict) for v in content.values()):
        # pandas' to_json: {"column": {"0": value, ...}, ...}
        keys = list(next(iter(content.values()), {}))
        return [{name: values[key] for name, values in content.items()} for key in keys]
    raise TaskError(f"{file} holds neither a list of rows nor columns of values")


def _lines(file: Path) -> Iterator[Row]:
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise TaskError(f"{file} cannot be read: line {number} is no object")
        yield row


def column(row: Row, where: str, *names: str) -> Any:
    """The first of these columns that a row has.

    Raises:
        TaskError: it has none of them.
    """
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise TaskError(
        f"{where} has no column {' or '.join(names)}; it has {', '.join(row) or 'none'}"
    )
