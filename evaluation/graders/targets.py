"""SciCode's numeric targets, out of their HDF5 file and into test code.

The file (`test_data.h5`, about 1 GB) is not on the hub. A step's targets become Python
source, so that the sandbox needs neither the file nor HDF5.

Source: what each group means follows `process_hdf5_to_tuple` of `scicode-bench/SciCode`.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from em_inf.evaluation.graders.errors import GraderError

PRELUDE = """\
import base64
import numpy as np
import scipy.sparse
def _array(kind, shape, data):
    raw = np.frombuffer(base64.b64decode(data), dtype=np.dtype(kind))
    return raw.reshape(shape).copy() if shape else raw[0]
"""


def source(file: Path, step: str, count: int) -> str:
    """Code that sets `targets`, the list of a step's targets.

    Args:
        file: the HDF5 file.
        step: "77.1".
        count: tests of the step.

    Raises:
        GraderError: h5py is not installed, or the file lacks the step.
    """
    try:
        import h5py
    except ImportError as error:
        raise GraderError(
            "scicode needs h5py; install em-inf[eval] (deploy/install cpu eval)"
        ) from error
    written = []
    try:
        with h5py.File(file, "r") as data:
            for test in range(count):
                group = data[f"{step}/test{test + 1}"]
                values = [_value(group[name]) for name in group]
                written.append(values[0] if len(values) == 1 else _tuple(values))
    except (OSError, KeyError) as error:
        raise GraderError(f"{file} has no targets of step {step}: {error}") from error
    return f"{PRELUDE}targets = [{', '.join(written)}]\n"


def _tuple(values: list[str]) -> str:
    return f"({', '.join(values)},)"


def _value(item: Any) -> str:
    if hasattr(item, "shape"):
        return _leaf(item[()])
    names = list(item)
    if names[:1] == ["list"]:
        return f"[{', '.join(_leaf(item['list'][name][()]) for name in item['list'])}]"
    if names[:1] == ["sparse_matrix"]:
        return _sparse(item["sparse_matrix"])
    return f"{{{', '.join(_entry(name, item[name]) for name in names)}}}"


def _entry(name: str, item: Any) -> str:
    if not hasattr(item, "shape"):
        return f"{name!r}: {_sparse(item['sparse_matrix'])}"
    value = item[()]
    if not isinstance(value, bytes):
        try:
            return f"{float(name)!r}: {_leaf(value)}"
        except ValueError:
            pass  # A name that is no number stays a text.
    return f"{name!r}: {_leaf(value)}"


def _leaf(value: Any) -> str:
    """An array, a number or a text."""
    if isinstance(value, bytes):
        return repr(value.decode())
    import numpy

    array = numpy.asarray(value)
    if array.dtype.hasobject:
        if array.shape:
            return f"np.array({[_text(one) for one in array.ravel()]!r}, dtype=object)"
        return repr(_text(array.item()))
    data = base64.b64encode(numpy.ascontiguousarray(array).tobytes()).decode()
    return f"_array({array.dtype.str!r}, {array.shape!r}, {data!r})"


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _sparse(group: Any) -> str:
    def part(name: str) -> str:
        return _leaf(group[name][()])

    shape = f"tuple({part('shape')})"
    if "row" in group and "col" in group:
        place = f"({part('row')}, {part('col')})"
        return f"scipy.sparse.coo_matrix(({part('data')}, {place}), shape={shape})"
    place = f"({part('data')}, {part('indices')}, {part('indptr')})"
    if "blocksize" in group:
        blocks = f"tuple({part('blocksize')})"
        return f"scipy.sparse.bsr_matrix({place}, shape={shape}, blocksize={blocks})"
    return f"scipy.sparse.csr_matrix({place}, shape={shape})"
