"""VTK's XML files of cells (.vtu) and of surfaces (.vtp), in every encoding that VTK writes."""

import base64
import dataclasses
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

_TYPES = {f"{kind}{bits}": f"{kind[0].lower()}{bits // 8}" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)}
_TYPES |= {"Float32": "f4", "Float64": "f8"}
_DECOMPRESSORS = {"vtkZLibDataCompressor": zlib.decompress, "vtkLZMADataCompressor": lzma.decompress}
_KINDS = {"UnstructuredGrid": "cells", "PolyData": "surfaces"}

# numbers of VTK's cell types
_VERTEX, _POLY_VERTEX, _LINE, _POLY_LINE, _TRIANGLE, _POLYGON, _PIXEL, _QUAD = 1, 2, 3, 4, 5, 7, 8, 9
_VOXEL = 11
_NAMES = {
    _VERTEX: "vertex",
    _LINE: "line",
    _TRIANGLE: "triangle",
    6: "triangle_strip",
    _POLYGON: "polygon",
    _QUAD: "quad",
    10: "tetra",
    12: "hexahedron",
    13: "wedge",
    14: "pyramid",
    21: "line3",
    22: "triangle6",
    23: "quad8",
    24: "tetra10",
    25: "hexahedron20",
    26: "wedge15",
    27: "pyramid13",
    42: "polyhedron",
}
_SECTIONS = {"Verts": _POLY_VERTEX, "Lines": _POLY_LINE, "Strips": 6, "Polys": _POLYGON}


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Points, blocks of cells of one type each, and arrays on both, as meshio returns them.

    Attributes:
        points: shape (n, 3).
        cells: name of the type and node numbers, shape (k, nodes of a cell), of each block.
        point_data: arrays of n rows by name.
        cell_data: by name one array of k rows for each block.
    """

    points: np.ndarray
    cells: list[tuple[str, np.ndarray]]
    point_data: dict[str, np.ndarray]
    cell_data: dict[str, list[np.ndarray]]


def read_vtk_xml(path: Path) -> Blocks:
    """Returns the mesh of a .vtu or .vtp file. Its pieces are joined.

    Raises:
        ValueError: if the file is not well formed, holds another kind of data set, or is compressed in another way
            than by zlib or LZMA. `jaxop.data.files._reading.reading` names the file.
    """
    root, appended = _parsed(path.read_bytes())
    kind = root.get("type")
    if root.tag != "VTKFile" or kind not in _KINDS:
        raise ValueError(f"it holds {kind or root.tag}, and only {' and '.join(_KINDS)} are read")
    arrays = _Arrays(root, appended)
    pieces = [_piece(piece, arrays, is_surface=kind == "PolyData") for piece in root.findall(f"./{kind}/Piece")]
    pieces = [piece for piece in pieces if len(piece.points)] or pieces[:1]
    if not pieces:
        raise ValueError("it has no piece")
    return pieces[0] if len(pieces) == 1 else _joined(pieces)


def _parsed(content: bytes) -> tuple[ElementTree.Element, bytes]:
    """Returns the XML without its appended data, which may be raw bytes, and these."""
    start = content.find(b"<AppendedData")
    if start < 0:
        return ElementTree.fromstring(content), b""
    begin, end = content.find(b"_", content.index(b">", start)) + 1, content.rfind(b"</AppendedData>")
    header = content[: content.index(b">", start) + 1]
    if end < 0:
        raise ValueError("its appended data do not end")
    return ElementTree.fromstring(header + content[end:]), content[begin:end]


class _Arrays:
    """The arrays of a file, in text, in base64 or in the appended section."""

    def __init__(self, root: ElementTree.Element, appended: bytes):
        order = ">" if root.get("byte_order") == "BigEndian" else "<"
        section = root.find("AppendedData")
        self._order, self._appended = order, appended
        self._is_raw = section is not None and section.get("encoding") == "raw"
        self._head = np.dtype(order + _TYPES[root.get("header_type", "UInt32")])
        self._decompress = None
        if compressor := root.get("compressor"):
            if compressor not in _DECOMPRESSORS:
                raise ValueError(f"it is compressed by {compressor}; write it with one of {', '.join(_DECOMPRESSORS)}")
            self._decompress = _DECOMPRESSORS[compressor]

    def read(self, element: ElementTree.Element) -> np.ndarray:
        """Returns the array of an element: (k,), or (k, components)."""
        kind, form = element.get("type", ""), element.get("format", "ascii")
        if kind not in _TYPES:
            raise ValueError(f"its array {element.get('Name')!r} holds {kind}, which is not a number")
        dtype = np.dtype(self._order + _TYPES[kind])
        if form == "ascii":
            values = np.array((element.text or "").split(), dtype)
        elif form == "binary":
            letters = "".join((element.text or "").split()).encode()
            values = np.frombuffer(self._bytes(letters, 0, is_raw=False) if letters else b"", dtype)
        else:
            values = np.frombuffer(
                self._bytes(self._appended, int(element.get("offset", "")), is_raw=self._is_raw), dtype
            )
        values = values.astype(dtype.newbyteorder("="))
        components = int(element.get("NumberOfComponents") or 1)
        return values if components == 1 else values.reshape(-1, components)

    def _bytes(self, source: bytes, start: int, *, is_raw: bool) -> bytes:
        take, size = (_raw if is_raw else _base64), self._head.itemsize
        head = int(np.frombuffer(take(source, start, size), self._head)[0])
        if self._decompress is None:
            if is_raw:
                return take(source, start + size, head)
            letters = _letters(size)
            if source[start : start + letters].endswith(b"="):  # the length was encoded by itself
                return take(source, start + letters, head)
            return take(source, start, size + head)[size:]
        if head == 0:
            return b""
        length = size * (3 + head)
        lengths = np.frombuffer(take(source, start, length), self._head)[3:].astype(int)
        packed = take(source, start + (length if is_raw else _letters(length)), int(lengths.sum()))
        ends = np.cumsum(lengths)
        return b"".join(self._decompress(packed[end - n : end]) for n, end in zip(lengths, ends, strict=True))


def _letters(size: int) -> int:
    """Returns the letters that encode a number of bytes in base64."""
    return -(-size // 3) * 4


def _raw(source: bytes, start: int, size: int) -> bytes:
    part = source[start : start + size]
    if len(part) < size:
        raise ValueError(f"an array needs {size} bytes, and {len(part)} are left")
    return part


def _base64(source: bytes, start: int, size: int) -> bytes:
    return _raw(base64.b64decode(_raw(source, start, _letters(size))), 0, size)


def _piece(piece: ElementTree.Element, arrays: _Arrays, *, is_surface: bool) -> Blocks:
    points = arrays.read(_only(piece, "./Points/DataArray")).reshape(-1, 3)
    sections = []
    for name, kind in _SECTIONS.items() if is_surface else [("Cells", None)]:
        if (section := piece.find(name)) is not None and len(section):
            parts = {part.get("Name"): arrays.read(part) for part in section.findall("DataArray")}
            # NumPy makes floats of sums of unsigned and signed integers
            connectivity, offsets = (parts[key].ravel().astype(np.int64) for key in ("connectivity", "offsets"))
            sections.append((connectivity, offsets, parts.get("types", kind)))
    point_data, cell_data = (
        {part.get("Name", ""): arrays.read(part) for part in piece.findall(f"./{where}/DataArray") if _is_number(part)}
        for where in ("PointData", "CellData")
    )
    cells, rows = [], []
    first = 0
    for connectivity, offsets, types in sections:
        if len(offsets) and (offsets[-1] > len(connectivity) or (np.diff(offsets, prepend=0) < 0).any()):
            raise ValueError(f"its cells need {offsets[-1]} node numbers, and there are {len(connectivity)}")
        for name, block, row in _blocks(connectivity, offsets, np.broadcast_to(types, offsets.shape).ravel()):
            cells.append((name, block))
            rows.append(first + row)
        first += len(offsets)
    for name, values in cell_data.items():
        if len(values) != first:
            raise ValueError(f"its cell data {name!r} have {len(values)} entries for {first} cells")
    return Blocks(points, cells, point_data, {name: [a[row] for row in rows] for name, a in cell_data.items()})


def _blocks(
    connectivity: np.ndarray, offsets: np.ndarray, types: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields the cells of each type and size: name of the type, node numbers, and numbers of the cells."""
    sizes = np.diff(offsets, prepend=0)
    starts = offsets - sizes
    for kind, size in sorted({*zip(types.tolist(), sizes.tolist(), strict=True)}):
        rows = np.flatnonzero((types == kind) & (sizes == size))
        block = connectivity[starts[rows, None] + np.arange(size)]
        name = _NAMES.get(kind, f"type {kind} of VTK")
        if kind == _POLY_VERTEX:
            name, block, rows = "vertex", block.reshape(-1, 1), np.repeat(rows, size)
        elif kind == _POLY_LINE:
            name, block = "line", np.stack([block[:, :-1], block[:, 1:]], axis=-1).reshape(-1, 2)
            rows = np.repeat(rows, size - 1)
        elif kind == _POLYGON and size in (3, 4):
            name = "triangle" if size == 3 else "quad"
        elif kind == _PIXEL:
            name, block = "quad", block[:, [0, 1, 3, 2]]
        elif kind == _VOXEL:
            name, block = "hexahedron", block[:, [0, 1, 3, 2, 4, 5, 7, 6]]
        yield name, block, rows


def _is_number(element: ElementTree.Element) -> bool:
    return element.get("type") in _TYPES


def _only(piece: ElementTree.Element, where: str) -> ElementTree.Element:
    found = piece.findall(where)
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} of {where} in a piece instead of 1")
    return found[0]


def _joined(pieces: list[Blocks]) -> Blocks:
    offsets = np.cumsum([0, *(len(piece.points) for piece in pieces)])
    names = set.intersection(*(set(piece.point_data) for piece in pieces))
    cell_names = set.intersection(*(set(piece.cell_data) for piece in pieces))
    return Blocks(
        np.concatenate([piece.points for piece in pieces]),
        [(kind, block + offset) for piece, offset in zip(pieces, offsets, strict=False) for kind, block in piece.cells],
        {name: np.concatenate([piece.point_data[name] for piece in pieces]) for name in sorted(names)},
        {name: [part for piece in pieces for part in piece.cell_data[name]] for name in sorted(cell_names)},
    )
