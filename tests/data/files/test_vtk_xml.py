"""VTK's XML files in every encoding, as VTK writes them."""

import base64
import itertools
import lzma
import zlib

import meshio
import numpy as np
import pytest

from jaxop.data.files._vtk_xml import read_vtk_xml

POINTS = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [2, 0.5, 1]], np.float32)
VALUES = np.arange(10.0).reshape(5, 2)
CORNERS, ENDS = np.array([0, 1, 2, 3, 1, 4, 2]), np.array([4, 7])  # a quadrilateral and a triangle
LINE, LINE_ENDS = np.array([0, 1, 2]), np.array([3])
CELLS = np.array([10.0, 20.0, 30.0])  # the line, then the polygons

TYPES = {"f4": "Float32", "f8": "Float64", "i8": "Int64", "u1": "UInt8"}
COMPRESSORS = {"vtkZLibDataCompressor": zlib.compress, "vtkLZMADataCompressor": lzma.compress, None: None}


def payload(array, *, head, compressor, is_raw):
    """The bytes of an array behind their header, in blocks of 16 bytes if they are compressed."""
    data, encode = array.tobytes(), (lambda part: part) if is_raw else base64.b64encode
    if compressor is None:
        return encode(np.array([len(data)], head).tobytes() + data)
    blocks = [data[i : i + 16] for i in range(0, len(data), 16)]
    packed = [COMPRESSORS[compressor](block) for block in blocks]
    sizes = [len(blocks), 16, len(data) % 16, *map(len, packed)]
    return encode(np.array(sizes, head).tobytes()) + encode(b"".join(packed))


def surface(path, form, *, head="<u4", compressor=None, order="<", version="1.0"):
    """Writes a .vtp file with a line and two polygons."""
    appended = b""

    def array(name, values):
        nonlocal appended
        values = np.asarray(values)
        attributes = f'type="{TYPES[values.dtype.str[1:]]}" Name="{name}"'
        attributes += f' NumberOfComponents="{values.shape[1]}"' if values.ndim == 2 else ""
        values = values.astype(values.dtype.newbyteorder(order))
        if form == "ascii":
            return f'<DataArray {attributes} format="ascii">{" ".join(map(str, values.ravel().tolist()))}</DataArray>'
        data = payload(values, head=order + head[1:], compressor=compressor, is_raw=form == "raw")
        if form == "binary":
            return f'<DataArray {attributes} format="binary">\n  {data.decode()}\n</DataArray>'
        appended += data
        return f'<DataArray {attributes} format="appended" offset="{len(appended) - len(data)}"/>'

    empty = np.zeros(0, np.int64)
    body = f"""<PolyData><Piece NumberOfPoints="5" NumberOfVerts="0" NumberOfLines="1" NumberOfPolys="2">
<PointData>{array("p", VALUES)}<Array type="String" Name="names"/></PointData><CellData>{array("c", CELLS)}</CellData>
<Points>{array("Points", POINTS)}</Points>
<Verts>{array("connectivity", empty)}{array("offsets", empty)}</Verts>
<Lines>{array("connectivity", LINE)}{array("offsets", LINE_ENDS)}</Lines>
<Polys>{array("connectivity", CORNERS)}{array("offsets", ENDS)}</Polys></Piece></PolyData>"""
    packed = f' compressor="{compressor}"' if compressor else ""
    kind = {"<": "LittleEndian", ">": "BigEndian"}[order]
    top = f'<VTKFile type="PolyData" version="{version}" byte_order="{kind}" '
    top += f'header_type="UInt{8 * int(head[-1])}"{packed}>'
    tail = b""
    if appended:
        encoding = "raw" if form == "raw" else "base64"
        tail = f'<AppendedData encoding="{encoding}">\n_'.encode() + appended + b"\n</AppendedData>"
    path.write_bytes(f'<?xml version="1.0"?>\n{top}{body}'.encode() + tail + b"</VTKFile>")
    return path


FORMS = [*itertools.product(("binary", "base64", "raw"), ("<u4", "<u8"), COMPRESSORS), ("ascii", "<u4", None)]


@pytest.mark.parametrize(("form", "head", "compressor"), FORMS)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_encoding_gives_the_same_surface(tmp_path, form, head, compressor, order):
    mesh = read_vtk_xml(surface(tmp_path / "a.vtp", form, head=head, compressor=compressor, order=order, version="2.2"))
    np.testing.assert_array_equal(mesh.points, POINTS)
    np.testing.assert_array_equal(mesh.point_data["p"], VALUES)
    assert list(mesh.point_data) == ["p"]
    both = mesh.cells, mesh.cell_data["c"]
    cells = {name: (block.tolist(), rows.tolist()) for (name, block), rows in zip(*both, strict=True)}
    assert cells == {
        "line": ([[0, 1], [1, 2]], [10, 10]),
        "triangle": ([[1, 4, 2]], [30]),
        "quad": ([[0, 1, 2, 3]], [20]),
    }


@pytest.mark.parametrize("options", [{"binary": False}, {"compression": None}, {"compression": "lzma"}, {}])
def test_what_meshio_writes(tmp_path, options, capsys):
    cells = [("triangle", np.array([[1, 4, 2]])), ("quad", np.array([[0, 1, 2, 3]]))]
    mesh = meshio.Mesh(POINTS.astype(float), cells, point_data={"p": VALUES}, cell_data={"c": [CELLS[:1], CELLS[1:2]]})
    meshio.vtu.write(str(tmp_path / "a.vtu"), mesh, **options)
    capsys.readouterr()
    again = read_vtk_xml(tmp_path / "a.vtu")
    np.testing.assert_allclose(again.points, POINTS, rtol=1e-10)
    np.testing.assert_allclose(again.point_data["p"], VALUES, rtol=1e-10)
    found = {name: block.tolist() for name, block in again.cells}
    assert found == {name: block.tolist() for name, block in cells}
    assert [part.tolist() for part in again.cell_data["c"]] == [[10], [20]]


def test_pixels_and_chains_of_lines_of_a_vtu_file(tmp_path):
    path = tmp_path / "a.vtu"
    points = " ".join(f"{x} {y} 0" for y in (0, 1) for x in (0, 1))
    path.write_text(
        '<VTKFile type="UnstructuredGrid"><UnstructuredGrid><Piece NumberOfPoints="4" NumberOfCells="3"><Points>'
        f'<DataArray type="Float32" NumberOfComponents="3">{points}</DataArray></Points><Cells>'
        '<DataArray type="Int32" Name="connectivity">0 1 2 3 0 1 3 2 1</DataArray>'
        '<DataArray type="Int32" Name="offsets">4 8 9</DataArray>'
        '<DataArray type="UInt8" Name="types">8 4 1</DataArray></Cells></Piece></UnstructuredGrid></VTKFile>'
    )
    found = {name: block.tolist() for name, block in read_vtk_xml(path).cells}
    assert found == {"vertex": [[1]], "line": [[0, 1], [1, 3], [3, 2]], "quad": [[0, 1, 3, 2]]}


@pytest.mark.parametrize("kind", ["Int64", "UInt64"])
def test_pieces_are_joined(tmp_path, kind):
    path = surface(tmp_path / "a.vtp", "ascii")
    text = path.read_text()
    piece = text[text.index("<Piece") : text.index("</PolyData>")]
    path.write_text(text.replace(piece, 2 * piece).replace("Int64", kind))
    mesh = read_vtk_xml(path)
    assert {block.dtype.kind for _, block in mesh.cells} == {"i"}
    assert len(mesh.points) == 10
    assert len(mesh.point_data["p"]) == 10
    assert [block.tolist() for name, block in mesh.cells if name == "triangle"] == [[[1, 4, 2]], [[6, 9, 7]]]
    assert len(mesh.cell_data["c"]) == len(mesh.cells) == 6


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", ["binary", "raw"])
def test_a_truncated_file_is_an_error(tmp_path, share, form):
    path = surface(tmp_path / "a.vtp", form)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises((ValueError, SyntaxError)):
        read_vtk_xml(path)


def test_an_array_that_is_too_short_is_an_error(tmp_path):
    path = surface(tmp_path / "a.vtp", "ascii")
    path.write_text(path.read_text().replace("0 1 2 3 1 4 2", "0 1 2 3"))
    with pytest.raises(ValueError, match="its cells need 7 node numbers, and there are 4"):
        read_vtk_xml(path)


def test_other_data_sets_and_compressions_are_refused(tmp_path):
    path = surface(tmp_path / "a.vtp", "ascii")
    text = path.read_text()
    path.write_text(text.replace('"PolyData"', '"ImageData"'))
    with pytest.raises(ValueError, match="it holds ImageData, and only UnstructuredGrid and PolyData are read"):
        read_vtk_xml(path)
    path.write_text(text.replace("header_type", 'compressor="vtkLZ4DataCompressor" header_type'))
    with pytest.raises(ValueError, match="compressed by vtkLZ4DataCompressor; write it with one of vtkZLib"):
        read_vtk_xml(path)
