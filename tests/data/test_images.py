import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from mm3dad.data import images
from mm3dad.errors import DataError


def save(path, array, **options):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix in images.TIFFS:
        tifffile.imwrite(path, array, **options)
    else:
        Image.fromarray(array).save(path, **options)
    return path


def test_rgb_of_every_mode(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    grey = colour[..., 0]
    expected = torch.from_numpy(colour).permute(2, 0, 1) / 255
    assert torch.equal(images.read_rgb(save(tmp_path / "a.png", colour)), expected)
    alpha = np.dstack((colour, np.full((5, 7), 9, np.uint8)))
    assert torch.equal(images.read_rgb(save(tmp_path / "b.png", alpha)), expected)
    assert torch.equal(images.read_rgb(save(tmp_path / "c.png", grey)), expected[:1].expand(3, -1, -1))
    deep = images.read_rgb(save(tmp_path / "d.png", grey.astype(np.uint16) * 257))
    assert torch.allclose(deep, expected[:1].expand(3, -1, -1))
    assert torch.equal(images.read_rgb(save(tmp_path / "e.tiff", colour, photometric="rgb")), expected)
    Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "f.png")
    assert images.read_rgb(tmp_path / "f.png").shape == (3, 5, 7)


def test_mask_is_above_half(tmp_path):
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    expected = torch.tensor([[False, False, True, True]])
    assert torch.equal(images.read_mask(save(tmp_path / "a.png", grey)), expected)
    assert torch.equal(images.read_mask(save(tmp_path / "b.png", np.dstack((grey, grey, grey)))), expected)
    assert torch.equal(images.read_mask(save(tmp_path / "c.tiff", np.array([[0, 0.5, 0.51, 1]], np.float32))), expected)
    assert torch.equal(images.read_mask(save(tmp_path / "d.npy", expected.numpy())), expected)


def test_mask_of_zeros_and_ones_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"a\.png has no value above 1.*multiply the mask by 255"):
        images.read_mask(save(tmp_path / "a.png", np.eye(4, dtype=np.uint8)))


def test_xyz_in_both_orders_and_files(tmp_path):
    xyz = np.random.default_rng(0).normal(size=(6, 5, 3)).astype(np.float32)
    expected = torch.from_numpy(xyz).permute(2, 0, 1)
    assert torch.equal(images.read_xyz(save(tmp_path / "a.tiff", xyz, photometric="rgb")), expected)
    assert torch.equal(images.read_xyz(save(tmp_path / "b.tiff", xyz, compression="zlib", photometric="minisblack")), expected)
    assert torch.equal(images.read_xyz(save(tmp_path / "c.npy", xyz.transpose(2, 0, 1).astype(np.float64))), expected)
    assert torch.allclose(images.read_xyz(tmp_path / "a.tiff", unit=0.001), expected / 1000)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((4, 4, 3), np.uint16), "holds uint16, expected float32 metres"),
        (np.ones((4, 4), np.float32), r"shape \(4, 4\), expected xyz"),
        (np.ones((4, 4, 2), np.float32), "expected xyz"),
    ],
)
def test_xyz_refuses_other_arrays(tmp_path, array, message):
    with pytest.raises(DataError, match=message):
        images.read_xyz(save(tmp_path / "a.npy", array))


def test_depth_keeps_its_numbers(tmp_path):
    depth = np.array([[0, 1, 65535]], np.uint16)
    for name in ("a.png", "b.tiff", "c.npy"):
        assert images.read_depth(save(tmp_path / name, depth)).tolist() == [[0, 1, 65535]]
    with pytest.raises(DataError, match="has 8 bits"):
        images.read_depth(save(tmp_path / "d.png", np.ones((2, 2), np.uint8)))
    with pytest.raises(DataError, match="one channel"):
        images.read_depth(save(tmp_path / "e.png", np.ones((2, 2, 3), np.uint8)))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "z.tiff", "a.npy"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 0.98])
def test_every_truncated_file_gives_one_line_that_names_it(tmp_path, name, share):
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / name
    if name.endswith("tiff"):
        tifffile.imwrite(path, array.astype(np.float32), photometric="rgb", compression="zlib" if name[0] == "z" else None)
    else:
        save(path, array)
    read = images.read_xyz if name.endswith(("tiff", "npy")) else images.read_rgb
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError) as caught:
        read(path)
    assert path.name in str(caught.value)
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_foreign_content_missing_files_and_folders(tmp_path):
    (tmp_path / "a.png").write_bytes(b"not an image at all")
    (tmp_path / "b.npy").write_bytes(b"\x93NUMPY garbage")
    (tmp_path / "c.png").mkdir()
    for name in ("a.png", "b.npy", "c.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            images.read_header(tmp_path / name)


def test_pickled_npy_is_never_executed(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy"):
        images.read_array(tmp_path / "a.npy")


def test_bombs_are_refused_before_memory_is_taken(tmp_path):
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "PNG")
    bomb = bytearray(buffer.getvalue())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(bytes(bomb))
    with pytest.raises(DataError, match=r"a\.png"):
        images.read_rgb(tmp_path / "a.png")
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, 3), np.float32)) | {"shape": (200000, 200000, 3)}
    with (tmp_path / "b.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(DataError, match=r"b\.npy"):
        images.read_xyz(tmp_path / "b.npy")


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.npy"])
def test_header_tells_shape_and_type_without_pixels(tmp_path, name):
    header = images.read_header(save(tmp_path / name, np.ones((5, 7, 3), np.uint8)))
    assert header.size == (5, 7)
    assert header.shape == (5, 7, 3)
    assert header.dtype == "uint8"
    assert images.Header((3, 5, 7), "float32").size == (5, 7)


def test_a_damaged_tiff_gives_one_error_and_no_line_of_the_library(tmp_path, capfd):
    (tmp_path / "a.tiff").write_bytes(b"II*\0junk")
    with pytest.raises(DataError, match=r"a\.tiff is not a readable"):
        images.read_header(tmp_path / "a.tiff")
    assert capfd.readouterr().err == ""


def test_a_tiff_of_endless_pages_is_refused(tmp_path):
    """A chain of pages that a damaged file makes of its own bytes was followed for minutes."""
    for number, pages in (("few", 3), ("many", images.MAX_PAGES + 1)):
        with tifffile.TiffWriter(tmp_path / f"{number}.tiff") as writer:
            for _ in range(pages):
                writer.write(np.ones((4, 5), np.float32), contiguous=False)
    assert images.read_header(tmp_path / "few.tiff").size == (4, 5)
    with pytest.raises(DataError, match=r"many\.tiff has more than 64 pages, expected one image"):
        images.read_header(tmp_path / "many.tiff")
