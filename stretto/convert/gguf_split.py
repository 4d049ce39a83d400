"""Models that were cut into several GGUF files, named NAME-00001-of-00003.gguf and so on.

The first part holds the metadata; every part says by `split.no` and `split.count` which one it is, and
`split.tensors.count` is the number of tensors of all of them together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stretto.convert._shared import absent, damaged, quoted
from stretto.convert.gguf_ import GGUFFile, TensorInfo
from stretto.convert.split_names import parts_of
from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError

MAX_PARTS = 99_999  # five digits


class SplitGGUF:
    """The parts of one model behind the interface of one file. metadata: of the first part, without `split.*`.

    Raises ModelFileError for parts that are missing, damaged or do not belong together.
    """

    def __init__(self, first: GGUFFile, count: int) -> None:
        self.path = first.path
        self.metadata: Mapping[str, Any] = {k: v for k, v in first.metadata.items() if not k.startswith("split.")}
        files = [first, *(self._open(part, count) for part in self._paths(count))]
        self.tensors: dict[str, TensorInfo] = {}
        self._files: dict[str, GGUFFile] = {}
        for file in files:
            for name, info in file.tensors.items():
                if name in self._files:
                    raise damaged(
                        file.path, f"holds the tensor {quoted(name)}, which {self._files[name].path} holds, too"
                    )
                self.tensors[name], self._files[name] = info, file
        expected = first.metadata.get("split.tensors.count", len(self.tensors))
        if expected != len(self.tensors):
            raise damaged(self.path, f"and its other parts hold {len(self.tensors)} tensors, not {expected}")

    def names(self) -> list[str]:
        """The tensors, part by part."""
        return list(self.tensors)

    def stored(self, name: str, check: bool = True) -> Stored:
        """As `GGUFFile.stored`."""
        if name not in self._files:
            raise absent(self.path, name, self._files)
        return self._files[name].stored(name, check)

    def _paths(self, count: int) -> list[Path]:
        """The parts after the first."""
        part = parts_of(self.path)
        if part is None or (part.number, part.count) != (1, count):
            raise ModelFileError(
                f"{self.path} is part 1 of {count} of a split model, under another name",
                why="the other parts are found by the name",
                try_=f"names such as model-00001-of-{count:05d}.gguf for all {count} parts",
            )
        paths = [self.path.with_name(part.name(number)) for number in range(2, count + 1)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ModelFileError(
                f"{self.path} is part 1 of {count} of a split model; {len(missing)} are missing",
                why=f"not there: {shown}",
                try_="all parts in one folder",
            )
        return paths

    def _open(self, path: Path, count: int) -> GGUFFile:
        file = GGUFFile(path)
        number = parts_of(path)
        assert number is not None, "the name was made from a part's name"
        if (file.metadata.get("split.no"), file.metadata.get("split.count")) != (number.number - 1, count):
            raise damaged(path, f"does not say that it is part {number.number} of {count}")
        return file


def open_gguf(path: Path) -> GGUFFile | SplitGGUF:
    """A file, or the parts of a model behind the first of them. Raises ModelFileError for another part."""
    file = GGUFFile(path)
    count, number = file.metadata.get("split.count", 0), file.metadata.get("split.no", 0)
    if not isinstance(count, int) or not isinstance(number, int) or not 0 <= count <= MAX_PARTS:
        raise damaged(path, f"has impossible values of split.no ({number!r}) and split.count ({count!r})")
    if number:
        part = parts_of(path)
        first = f"{path.with_name(part.name(1))}" if part is not None else "the first part"
        raise ModelFileError(
            f"{path} is part {number + 1} of {count} of a split model", why="the first part describes it", try_=first
        )
    return SplitGGUF(file, count) if count > 1 else file
