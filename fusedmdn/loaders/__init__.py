"""Strokes in the formats that they come in: `load` reads each, and says which file is bad and what was expected."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

from .. import dataset
from ..dataset import StrokeFileError, StrokeSet
from ..quoting import told
from . import arrays, iam, inkml, kanji, markup, svg
from .markup import Document

ENDINGS = {".svg": (svg.ROOT,), ".inkml": (inkml.ROOT,), ".xml": (iam.ROOT, kanji.ROOT, inkml.ROOT, svg.ROOT)}
KNOWN = (*ENDINGS, ".svgz", ".npy", ".npz")  # of strokes, which no directory has beside others
READERS: dict[str, Callable[..., StrokeSet]] = {
    svg.ROOT: svg.from_documents,
    inkml.ROOT: inkml.from_documents,
    iam.ROOT: iam.from_documents,
    kanji.ROOT: kanji.from_documents,
}

__all__ = ["ENDINGS", "StrokeFileError", "arrays", "iam", "inkml", "kanji", "load", "read_documents", "svg"]


def load(source: str | Path, **measures: float) -> StrokeSet:
    """Strokes from "kanjivg" (embedded), a file or a directory; its ending and what it holds tell the format.

    .npz (this package's, or sketch-rnn's with its own division into parts), .npy, .svg, .inkml, .xml (IAM-OnDB,
    KanjiVG) and .xml.gz; a directory of .svg, .inkml or .xml files, a sequence each, in the order of their paths.

    Args:
        source: the name, or a path.
        measures: as `from_documents` of the format's module: `svg` and `kanji` have step, `iam` those of its repairs.

    Raises:
        StrokeFileError: a file is missing, damaged, or not of a format that is known; it is named.
        ModuleNotFoundError: SVG and KanjiVG files need the extra [strokes].
        ValueError: a measure that the format has not, or that cannot be.
    """
    path = Path(source)
    if str(source) != "kanjivg" and path.is_dir():
        return _directory(path, measures)
    ending = _ending(path)
    if (document := ending.removesuffix(".gz")) in ENDINGS:
        return read_documents([path], ENDINGS[document], **measures)
    if measures:
        raise ValueError(f"{source}: its format has no measures; got {', '.join(measures)}")
    if str(source) == "kanjivg":
        return dataset.kanjivg()
    if ending == ".npz":
        return arrays.read_sketch_rnn(path) if "train" in dataset.array_names(path) else _npz(path)
    if ending == ".npy":
        return arrays.read_npy(path)
    known = ", ".join([".npz", ".npy", *ENDINGS])
    raise StrokeFileError(f"{path}: expected {known} or .xml.gz, a directory of such, or the name kanjivg")


def read_documents(paths: list[Path], roots: tuple[str, ...], **measures: float) -> StrokeSet:
    """Documents, all of the first one's format, which is one of those of these root elements; the rest as `load`."""
    first = markup.read(paths[0], roots)
    root = markup.local(first.root.tag)

    def documents() -> Iterator[Document]:
        yield first
        for path in paths[1:]:
            document = markup.read(path, (root,))
            if root == svg.ROOT and kanji.is_kanjivg(document) != of_kanjivg:
                kinds = ("KanjiVG's", "no drawing of KanjiVG's")
                one, other = kinds if of_kanjivg else kinds[::-1]
                raise StrokeFileError(f"{path}: is {other}, and {paths[0]} is {one}; expected all of one kind")
            yield document

    of_kanjivg = root == svg.ROOT and kanji.is_kanjivg(first)
    reader = kanji.from_documents if of_kanjivg else READERS[root]
    known = list(inspect.signature(reader).parameters)[1:]
    for name in measures:
        if name not in known:
            raise ValueError(f"{paths[0]}: {name} is no measure of its format; expected {', '.join(known) or 'none'}")
    return reader(documents(), **measures)


def _npz(path: Path) -> StrokeSet:
    try:
        with open(path, "rb") as file:
            return dataset.read(file, path)
    except OSError as error:
        raise StrokeFileError(f"{path}: cannot be read: {told(error)}") from error


def _directory(path: Path, measures: dict[str, float]) -> StrokeSet:
    """All files of the only ending there is of ENDINGS; of IAM-OnDB those of lineStrokes, of KanjiVG no variants."""
    folder = path / "lineStrokes" if (path / "lineStrokes").is_dir() else path
    found = {file: _ending(file) for file in sorted(folder.rglob("*"))}
    files = [file for file, ending in found.items() if ending.removesuffix(".gz") in KNOWN and file.is_file()]
    endings = sorted({found[file] for file in files})
    if len(endings) != 1 or endings[0] not in ENDINGS:
        held = f"files ending in {' and '.join(endings)}" if endings else "none"
        raise StrokeFileError(f"{path}: expected {', '.join(ENDINGS)} files in it, all of one kind; found {held}")
    (ending,) = endings
    if ending == ".svg" and kanji.is_kanjivg(markup.read(files[0], ENDINGS[ending])):
        files = [file for file in files if not kanji.is_variant(file)] or files
    return read_documents(files, ENDINGS[ending], **measures)


def _ending(path: Path) -> str:
    """With what is packed: .xml.gz."""
    endings = [ending.lower() for ending in path.suffixes[-2:]]
    return "".join(endings) if endings[-1:] == [".gz"] else "".join(endings[-1:])
