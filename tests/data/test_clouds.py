import numpy as np
import pytest
import torch

from mm3dad.data.clouds import read_cloud
from mm3dad.errors import DataError

RANDOM = np.random.default_rng(0)
XYZ = RANDOM.normal(size=(6, 3)).astype(np.float32)
COLOUR = RANDOM.integers(0, 256, (6, 3), np.uint8)


def write_ply(path, form, colour=True, extra=""):
    fields = [("x", "f4"), ("y", "f4"), ("z", "f4")] + ([("red", "u1"), ("green", "u1"), ("blue", "u1")] if colour else [])
    names = {"f4": "float", "u1": "uchar"}
    header = f"ply\nformat {form} 1.0\ncomment made by a test\nelement vertex {len(XYZ)}\n"
    header += "".join(f"property {names[kind]} {name}\n" for name, kind in fields) + extra + "end_header\n"
    order = ">" if form == "binary_big_endian" else "<"
    table = np.zeros(len(XYZ), [(name, order + kind) for name, kind in fields])
    for i, (name, _) in enumerate(fields):
        table[name] = XYZ[:, i] if i < 3 else COLOUR[:, i - 3]
    text = "".join(" ".join(map(repr, row.tolist())) + "\n" for row in table)
    path.write_bytes(header.encode() + (text.encode() if form == "ascii" else table.tobytes()))
    return path


def write_pcd(path, form, size=(1, 6), packed=True):
    height, width = size
    fields = "x y z rgb" if packed else "x y z"
    count = len(fields.split())
    header = f"# .PCD v0.7\nVERSION 0.7\nFIELDS {fields}\nSIZE{' 4' * count}\nTYPE{' F' * count}\nCOUNT{' 1' * count}\n"
    header += f"WIDTH {width}\nHEIGHT {height}\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {width * height}\nDATA {form}\n"
    bits = (COLOUR.astype(np.uint32) << np.array([16, 8, 0], np.uint32)).sum(1).astype(np.uint32).view(np.float32)
    table = np.column_stack((XYZ, bits)) if packed else XYZ
    body = (
        "".join(" ".join(f"{value:.9g}" for value in row) + "\n" for row in table).encode()
        if form == "ascii"
        else table.astype("<f4").tobytes()
    )
    path.write_bytes(header.encode() + body)
    return path


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_ply_points_and_colours(tmp_path, form):
    cloud = read_cloud(write_ply(tmp_path / "a.ply", form))
    assert torch.equal(cloud.xyz[:, 0], torch.from_numpy(XYZ.T))
    assert torch.equal(cloud.rgb[:, 0], torch.from_numpy(COLOUR.T) / 255)
    assert not cloud.organised
    assert read_cloud(write_ply(tmp_path / "b.ply", form, colour=False)).rgb is None


@pytest.mark.parametrize("form", ["ascii", "binary"])
def test_pcd_with_grid_and_packed_colour(tmp_path, form):
    cloud = read_cloud(write_pcd(tmp_path / "a.pcd", form, size=(2, 3)))
    assert cloud.organised
    assert cloud.xyz.shape == (3, 2, 3)
    assert torch.equal(cloud.xyz.reshape(3, -1), torch.from_numpy(XYZ.T))
    assert torch.equal(cloud.rgb.reshape(3, -1), torch.from_numpy(COLOUR.T) / 255)
    assert not read_cloud(write_pcd(tmp_path / "b.pcd", form, packed=False)).organised


def test_open3d_reads_and_writes_the_same(tmp_path):
    import open3d

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(XYZ.astype(np.float64)))
    cloud.colors = open3d.utility.Vector3dVector(COLOUR / 255)
    for name, options in (("a.ply", {}), ("b.ply", {"write_ascii": True}), ("c.pcd", {}), ("d.pcd", {"write_ascii": True})):
        assert open3d.io.write_point_cloud(str(tmp_path / name), cloud, **options)
        got = read_cloud(tmp_path / name)
        assert torch.allclose(got.xyz[:, 0], torch.from_numpy(XYZ.T), atol=1e-6), name
        assert torch.allclose(got.rgb[:, 0], torch.from_numpy(COLOUR.T) / 255, atol=2 / 255), name


@pytest.mark.parametrize("name", ["a.ply", "t.ply", "a.pcd", "t.pcd"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.93])
def test_truncated_clouds_name_the_file(tmp_path, name, share):
    ascii_form = name[0] == "t"
    if name.endswith("ply"):
        path = write_ply(tmp_path / name, "ascii" if ascii_form else "binary_little_endian")
    else:
        path = write_pcd(tmp_path / name, "ascii" if ascii_form else "binary")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=name) as caught:
        read_cloud(path)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)


def replaced(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))
    return path


def test_what_is_not_read_says_so(tmp_path):
    cases = {
        "compressed": replaced(write_pcd(tmp_path / "a.pcd", "binary"), b"DATA binary", b"DATA binary_compressed"),
        "other kind": replaced(write_ply(tmp_path / "b.ply", "ascii"), b"ply\n", b"off\n"),
        "has no z": replaced(write_ply(tmp_path / "c.ply", "ascii"), b"float z", b"float w"),
        "list": write_ply(tmp_path / "d.ply", "ascii", extra="property list uchar int around\n"),
        "before its points": replaced(write_ply(tmp_path / "e.ply", "ascii"), b"element vertex", b"element face 0\nelement vertex"),
        "claims": replaced(write_ply(tmp_path / "f.ply", "binary_little_endian"), b"vertex 6", b"vertex 999999999999"),
    }
    for message, path in cases.items():
        with pytest.raises(DataError, match=message):
            read_cloud(path)
    (tmp_path / "g.obj").write_text("v 0 0 0")
    with pytest.raises(DataError, match=r"must be a \.ply or \.pcd"):
        read_cloud(tmp_path / "g.obj")


def test_empty_and_one_point(tmp_path):
    empty = replaced(write_ply(tmp_path / "a.ply", "binary_little_endian"), b"vertex 6", b"vertex 0")
    with pytest.raises(DataError, match="claims 0"):
        read_cloud(empty)
    one = replaced(write_ply(tmp_path / "b.ply", "binary_little_endian"), b"vertex 6", b"vertex 1")
    assert read_cloud(one).xyz.shape == (3, 1, 1)
