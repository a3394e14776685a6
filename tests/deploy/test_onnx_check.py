"""ONNX files from strangers: refused before onnxruntime has them, or tried within limits."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as run_settings
from hypothesis import strategies as st

from benchmarks.robustness.fuzz_cases import small_onnx
from dia.core.errors import DataError
from dia.data.imageset import ImageSet
from dia.deploy import onnx_check, onnx_model
from dia.deploy.onnx_model import OnnxModel

onnx = pytest.importorskip("onnx")
T, make = onnx.TensorProto, onnx.helper
node = make.make_node
ADD = node("Add", ["m", "z"], ["score"])


def whole(name, *values, shape=None):
    return make.make_tensor(name, T.INT64, [len(values)] if shape is None else shape, values)


def real(name, *values):
    return make.make_tensor(name, T.FLOAT, [len(values)], values)


def changed(nodes=(), weights=(), drop=1, **more):
    """The sound file of one operator less (`score` = `m` + `w`), with others in its place."""
    model = onnx.load_from_string(small_onnx())
    del model.graph.node[len(model.graph.node) - drop :]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(weights)
    for name, value in more.items():
        getattr(model, name).extend(value)
    return model


@pytest.fixture
def opened(tmp_path):
    def opened(model):
        (tmp_path / "m.onnx").write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return OnnxModel(tmp_path / "m.onnx", device="cpu")

    return opened


def body():
    value = make.make_tensor_value_info
    ends = [value("i", T.INT64, []), value("c", T.BOOL, [])]
    return make.make_graph([node("Not", ["c"], ["d"])], "b", ends, [value("d", T.BOOL, [])])


def function():
    inner = [node("Relu", ["a"], ["b"])]
    return make.make_function("my", "F", ["a"], ["b"], inner, [make.make_opsetid("", 18)])


HOSTILE = {
    "a loop": (lambda: changed([node("Loop", ["", "y"], [], body=body())]), "a graph within an operator"),
    "functions": (lambda: changed(functions=[function()]), "functions of its own"),
    "another's operator": (lambda: changed([node("Gelu", ["m"], ["score"], domain="com.microsoft")]),
                           "the operator com.microsoft Gelu"),
    "an operator that no export has": (lambda: changed([node("NonZero", ["m"], ["score"])]), "NonZero"),
    "old operators": (lambda: changed(drop=0, opset_import=[make.make_opsetid("", 11)]), "version 11"),
    "operators of others": (lambda: changed(drop=0, opset_import=[make.make_opsetid("ai.onnx.ml", 3)]),
                            "ai.onnx.ml version 3"),
    "pixels decide a size": (
        lambda: changed([node("Cast", ["m"], ["i"], to=T.INT64), node("ReduceMax", ["i"], ["r"], keepdims=0),
                         node("Range", ["a", "r", "b"], ["q"]), node("Cast", ["q"], ["f"], to=T.FLOAT),
                         node("ReduceSum", ["f"], ["z"], keepdims=0), ADD],
                        [whole("a", 0, shape=[]), whole("b", 1, shape=[])]),
        "pixels decide the size of what its Range makes"),
    "pixels decide a shape": (lambda: changed([node("Cast", ["m"], ["i"], to=T.INT64),
                                               node("Expand", ["w", "i"], ["score"])]), "its Expand makes"),
    "NaN": (lambda: changed([ADD], [real("z", 1, np.nan)]), "hold NaN or infinity"),
    "infinity": (lambda: changed([ADD], [real("z", 1, np.inf)]), "hold NaN or infinity"),
    "a number of an operator": (lambda: changed([node("Gemm", ["m", "w"], ["score"], alpha=np.inf)]),
                                "a number of its Gemm is not finite"),
    "text": (lambda: changed([ADD], [make.make_tensor("z", T.STRING, [1], [b"x"])]),
             "fields that are not known"),
    "short numbers": (lambda: changed([ADD], [make.make_tensor("z", T.FLOAT16, [1], [1])]), "of a type"),
    "no order": (lambda: changed([ADD]), "no order in which they could run"),
    "a name twice": (lambda: changed([node("Relu", ["m"], ["m"]), ADD]), "no order in which they could run"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_no_export_does_is_refused_without_running_it(opened, monkeypatch, case):
    build, words = HOSTILE[case]
    monkeypatch.setattr(onnx_check, "probe", lambda *_: pytest.fail("it ran"))
    with pytest.raises(DataError) as error:
        opened(build())
    line = str(error.value)
    assert words in line
    assert "m.onnx: " in line
    assert "dia export" in line
    assert line.isprintable()


BOMBS = {  # a few bytes, and operators of our exports alone
    "a constant of 4 GB": ([node("ConstantOfShape", ["s"], ["b"]),
                            node("ReduceSum", ["b"], ["z"], keepdims=0), ADD], [whole("s", 2**30)]),
    "a product of 16 GB": ([node("ConstantOfShape", ["s"], ["u"]), node("ConstantOfShape", ["t"], ["v"]),
                            node("MatMul", ["u", "v"], ["b"]), node("ReduceMax", ["b"], ["z"], keepdims=0),
                            ADD], [whole("s", 2**16, 1), whole("t", 1, 2**16)]),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_a_graph_that_takes_much_memory_is_stopped_in_its_own_process(opened, case):
    pytest.importorskip("resource")
    with pytest.raises(DataError, match="32 images of 8×8 takes more than 1026 MiB or 20 s") as error:
        opened(changed(*BOMBS[case]))
    assert str(error.value).isprintable()


@pytest.mark.slow
def test_a_graph_that_takes_long_is_stopped_in_its_own_process(opened):
    pytest.importorskip("resource")
    squares = [node("MatMul", [f"b{i}" if i else "b", "b"], [f"b{i + 1}"]) for i in range(400)]
    ends = [node("ReduceMax", ["b400"], ["z"], keepdims=0), ADD]
    with pytest.raises(DataError, match="or 20 s, or fails"):
        opened(changed([node("ConstantOfShape", ["s"], ["b"]), *squares, *ends], [whole("s", 4000, 4000)]))


def test_a_graph_without_a_finite_score_is_refused(opened):
    with pytest.raises(DataError, match="no finite score"):
        opened(changed([ADD], [real("z", np.inf)]))  # a number alone may be anything
    with pytest.raises(DataError, match="or fails"):
        opened(changed([node("ReduceMax", ["m"], ["score"], keepdims=0)]))  # one for all images


def test_a_score_that_is_no_number_for_some_image_gets_no_p_value(opened):
    model = opened(changed([node("Log", ["m"], ["score"])]))  # of the mean, which is 0 of a black image
    images = np.stack([np.full((8, 8, 1), 1, np.uint8), np.zeros((8, 8, 1), np.uint8)])
    with pytest.raises(DataError, match=r"the score of b\.png is -inf"):
        model.score(ImageSet(images, names=("a.png", "b.png")))
    assert model.score(images[:1]) == [0]


def test_only_batches_that_were_tried_are_run(opened, monkeypatch):
    model, seen = opened(small_onnx()), []
    real_run = model.session.run

    class Session:
        @staticmethod
        def run(names, given):
            seen.append(given["images"].shape)
            return real_run(names, given)

    monkeypatch.setattr(model, "session", Session)
    x = np.arange(70 * 64, dtype=np.uint8).reshape(70, 8, 8, 1)
    np.testing.assert_allclose(model.score(x), x.mean((1, 2, 3)) + 0.5, rtol=1e-6)
    assert seen == [(32, 8, 8, 1)] * 2 + [(1, 8, 8, 1)] * 6
    seen.clear()
    assert model.score(np.full((2, 9, 30, 3), 7, np.uint8)).tolist() == [7.5, 7.5]
    assert set(seen) == {(1, 8, 8, 1)}  # resized as `dia score` does before


def test_a_file_is_tried_once_in_a_process(opened, monkeypatch):
    opened(small_onnx())
    monkeypatch.setattr(onnx_check, "probe", lambda *_: pytest.fail("again"))
    opened(small_onnx())
    monkeypatch.setattr(onnx_model, "_TRIED", set())
    with pytest.raises(pytest.fail.Exception, match="again"):
        opened(small_onnx())


def test_the_reader_reads_what_onnx_reads():
    data = small_onnx()
    graph, known = onnx_check.read(data), onnx.load_from_string(data)
    assert graph.metadata == {p.key: p.value for p in known.metadata_props}
    assert graph.outputs == ("score",)
    assert json.loads(graph.metadata["dia.shape"]) == [8, 8, 1]
    onnx_check.check(graph)


def test_fields_that_readers_may_merge_or_pass_over_are_refused():
    data = small_onnx()
    with pytest.raises(DataError, match="damaged"):
        onnx_check.read(data + data)  # protobuf merges both graphs
    with pytest.raises(DataError, match="not known"):
        onnx_check.read(data + b"\xfa\x3f\x01x")  # a field that no version of ONNX has
    with pytest.raises(DataError, match="no ONNX file"):
        onnx_check.read(b"\x08\x09")


@given(st.data())
@run_settings(max_examples=300)
def test_whatever_the_bytes_are_there_is_a_graph_or_one_line(data):
    sound = bytearray(small_onnx())
    for place in data.draw(st.lists(st.integers(0, len(sound) - 1), max_size=4)):
        sound[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(sound)) | st.just(len(sound)))
    with suppress(DataError):  # whose message is one printable line
        onnx_check.check(onnx_check.read(bytes(sound[:cut])))
