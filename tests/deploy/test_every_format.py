"""One image has one score: in every format, alone, in a zip, through the service and through ONNX."""

import gzip
import json
import warnings

import numpy as np
import pytest
import tifffile
from live_service import live, post, zipped
from medical_files import dicom_file, meta_file, nifti_file, nrrd_file
from PIL import Image

import dia
from dia.data.phantoms import phantom
from dia.deploy.export import export
from dia.deploy.predictor import Inferencer
from dia.serve.limits import Limits

pytest.importorskip("nibabel")

SIDE = 40
LPS = np.diag([-1.0, -1, 1, 1])
READ_AS = {8: lambda x: x, 12: lambda x: np.rint(x / 255 * 3800 + 100).astype(np.uint16)}


def drawn(n: int, seed: int) -> np.ndarray:
    """`(n, 40, 40)` uint8 phantoms."""
    rng = np.random.default_rng(seed)
    return np.rint(np.stack([phantom(rng, SIDE, None)[0] for _ in range(n)])).astype(np.uint8)


def every_format(folder, x: np.ndarray, bits: int) -> list:
    """Writes one image `(H, W)` in every format; of 8 bits also as its shades times 257, in 16."""
    deep = x.astype(np.uint16) * 257 if bits == 8 else x
    voxels = x.T[..., None]  # axes x, y, z
    np.save(folder / "a.npy", x)
    np.savez(folder / "a.npz", test_images=x[None])
    Image.fromarray(deep).save(folder / "deep.png")
    tifffile.imwrite(folder / "deep.tif", deep)
    if bits == 8:
        Image.fromarray(x).save(folder / "a.png")
        Image.fromarray(x).convert("RGB").save(folder / "rgb.png")
        Image.fromarray(x).convert("RGBA").save(folder / "rgba.png")
        tifffile.imwrite(folder / "a.tif", x)
    dicom_file(folder / "a.dcm", x, bits=bits if bits == 8 else 12)
    (folder / "b.dcm.gz").write_bytes(gzip.compress((folder / "a.dcm").read_bytes()))
    nifti_file(folder / "a.nii.gz", voxels, LPS)
    meta_file(folder / "a.mha", voxels)
    meta_file(folder / "b.mha", voxels, packed=True)
    nrrd_file(folder / "a.nrrd", voxels)
    nrrd_file(folder / "b.nrrd", voxels, encoding="gzip")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module", params=[8, 12])
def fitted(request, tmp_path_factory):
    """Bits, a model's folder and its exported file."""
    bits, home = request.param, tmp_path_factory.mktemp(f"of {request.param} bits")
    for i, x in enumerate(drawn(30, seed=0)):
        (home / "normal").mkdir(exist_ok=True)
        Image.fromarray(READ_AS[bits](x)).save(home / "normal" / f"{i:02d}.png")
    model = dia.fit(home / "normal", progress=False)
    model.save(home / "run")
    export(model.detector, home / "a.onnx")
    return bits, home / "run", home / "a.onnx"


def scores(model, files) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.concatenate([model.predict(file, progress=False).score for file in files])


def test_one_image_has_one_score_in_every_format(fitted, tmp_path):
    bits, run, onnx = fitted
    x = READ_AS[bits](drawn(1, seed=7)[0])
    files = every_format(tmp_path, x, bits)
    model = dia.load(run)
    found = scores(model, files)
    assert len(found) == len(files) >= 9
    np.testing.assert_allclose(found, found[0], rtol=0, atol=1e-6)
    other = scores(model, every_format(tmp_path, READ_AS[bits](drawn(1, seed=8)[0]), bits)[:1])
    assert abs(other[0] - found[0]) > 1e-3  # the score is not the same for whatever is read
    every_format(tmp_path, x, bits)
    exported = scores(dia.load(onnx), files)
    np.testing.assert_allclose(exported, exported[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(exported, found, rtol=0, atol=1e-4)  # as `dia export` promises


def test_the_service_gives_the_scores_of_the_command(fitted, tmp_path):
    bits, run, _ = fitted
    files = every_format(tmp_path, READ_AS[bits](drawn(1, seed=7)[0]), bits)
    wanted = scores(dia.load(run), files[:1])[0]
    sent = [f for f in files if f.suffix != ".npz"]  # which the service refuses, as it may hold many things
    parts = [(b"files", f.name.encode(), f.read_bytes()) for f in sent]
    packed = (b"files", b"all.zip", zipped(*((f.name, f.read_bytes()) for f in sent)))
    with live(Inferencer(run, device="cpu"), Limits(), alone=False) as service:
        for form in (parts, [packed]):
            status, body = service.ask(post(*form))
            assert status == 200, body
            answer = json.loads(body)
            assert not answer["errors"]
            found = [image["score"] for image in answer["images"]]
            assert len(found) == len(sent)
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_grey_in_three_channels_is_scored_as_grey(tmp_path):
    """A model fitted on grey saved as RGB or RGBA scores grey files as their copies in colour."""
    shades = drawn(30, seed=1)
    new = drawn(2, seed=2)
    for mode in ("RGB", "RGBA"):
        for folder, images in (("normal", shades), ("new", new)):
            (tmp_path / mode / folder).mkdir(parents=True)
            for i, x in enumerate(images):
                Image.fromarray(x).convert(mode).save(tmp_path / mode / folder / f"{i:02d}.png")
        (tmp_path / mode / "grey").mkdir()
        for i, x in enumerate(new):
            Image.fromarray(x).save(tmp_path / mode / "grey" / f"{i:02d}.png")
        model = dia.fit(tmp_path / mode / "normal", progress=False)
        found = [scores(model, [tmp_path / mode / name]) for name in ("new", "grey")]
        np.testing.assert_array_equal(*found)
