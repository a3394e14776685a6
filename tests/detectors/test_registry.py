"""The registry: what a name may be, where classes come from, and what is imported when."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dia.core.errors import DataError
from dia.detectors import METHODS, PEERS, TRIVIAL, Detector, detector_class, register, registry
from dia.detectors.baselines.images import Std, TrivialSettings

PLUGIN = """
from dia.detectors import register
from dia.detectors.baselines.images import Std

@register("spread")
class Spread(Std):
    pass
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.setenv(registry.PLUGINS, "")
    registry._installed.cache_clear()
    yield
    registry._installed.cache_clear()


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "my_detector.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package on the path whose entry points are those of the lines given."""

    def make(source, *points):
        (tmp_path / "outside_package.py").write_text(source)
        meta = tmp_path / "outside_package-1.0.dist-info"
        meta.mkdir()
        (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-package\nVersion: 1.0\n")
        (meta / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *points]) + "\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "outside_package", raising=False)
        registry._installed.cache_clear()

    return make


def test_the_table_names_every_class_by_its_own_method():
    assert {name: cls.method for name, cls in METHODS.items()} == {name: name for name in METHODS}
    assert set(TRIVIAL) == {name for name in METHODS if name.startswith("trivial:")}
    assert set(PEERS) == {name for name, cls in METHODS.items() if cls.extra == "peers"}
    assert len(METHODS) == len(set(METHODS.values()))


def test_names_are_listed_and_refused_without_torch_or_a_detector():
    script = (
        "import sys; from dia.detectors import registry as r; from dia.core.errors import DataError\n"
        "assert 'dia+' in r.METHODS and r.DEFAULT in list(r.METHODS) and len(r.TRIVIAL) > 1\n"
        "try: r.detector_class('magic')\n"
        "except DataError: pass\n"
        "print(sorted({'torch', 'sklearn', 'dia.detectors.base'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr[-2000:]


def test_an_unknown_name_is_refused_with_near_ones():
    with pytest.raises(DataError, match=r"^method trivial:pixel is not known \(did you mean trivial:pixels "):
        detector_class("trivial:pixel")
    with pytest.raises(DataError, match=r"^method zzzzzz is not known; there are: dia\+, "):
        detector_class("zzzzzz")


def test_a_registered_class_is_found_loaded_and_cloned(tmp_path, make_images):
    @register("outside.spread")
    class Spread(Std):
        pass

    assert METHODS["outside.spread"] is Spread
    assert "outside.spread" in list(METHODS)
    fitted = Spread(TrivialSettings(neighbours=2)).fit(make_images())
    back = Detector.load(fitted.save(tmp_path / "model"))
    assert type(back) is Spread
    np.testing.assert_allclose(back.score(make_images(seed=1)), fitted.score(make_images(seed=1)), rtol=1e-6)


@pytest.mark.parametrize("name", ["", "Spread", "a b", "../x", "a/b", "a:b:c", "x.py:S", "dia", "anomalib:x"])
def test_names_that_cannot_be_are_refused(name):
    with pytest.raises(DataError, match="name"):
        register(name)


def test_a_name_is_taken_by_one_class_but_may_be_defined_anew():
    def define():
        @register("outside")
        class Mine(Std):
            pass

        return Mine

    define()
    again = define()  # as in a notebook's cell that is run twice
    assert METHODS["outside"] is again
    with pytest.raises(DataError, match="outside is registered already"):
        register("outside")(type("Other", (Std,), {}))


def test_settings_must_be_a_frozen_dataclass():
    with pytest.raises(DataError, match="frozen dataclass"):
        register("outside")(type("Mine", (Std,), {"Settings": dict}))


def test_a_file_is_loaded_once_and_known_to_child_processes(plugin):
    registry.load_plugin(plugin)
    cls = METHODS["spread"]
    registry.load_plugin(plugin)
    assert METHODS["spread"] is cls
    assert os.environ[registry.PLUGINS] == str(plugin)
    registry._registered.clear()  # a child begins with nothing but the environment
    del sys.modules[cls.__module__]
    assert METHODS["spread"].__name__ == "Spread"


@pytest.mark.parametrize(
    ("source", "words"), [(None, "no such file"), ("1 / 0", "ZeroDivisionError"), ("x = 1", "registers no")]
)
def test_a_file_that_is_no_plugin_is_refused_by_name(tmp_path, source, words):
    path = tmp_path / "odd.py"
    if source:
        path.write_text(source)
    with pytest.raises(DataError, match=rf"^plugin .*odd\.py: .*{words}"):
        registry.load_plugin(path)
    assert not os.environ[registry.PLUGINS]


def test_an_entry_point_is_listed_before_it_is_imported(installed):
    installed(PLUGIN, "spread = outside_package:Spread")
    assert "spread" in METHODS
    assert "outside_package" not in sys.modules
    assert METHODS["spread"].__module__ == "outside_package"


def test_an_entry_point_cannot_replace_a_method_and_one_that_fails_is_named(installed):
    installed("1 / 0", "dia = outside_package:Spread", "broken = outside_package:Spread")
    assert METHODS["dia"].__module__ == "dia.detectors.dia"
    with pytest.raises(DataError, match=r"^method broken: outside_package:Spread: ZeroDivisionError"):
        detector_class("broken")


@pytest.mark.parametrize("name", ["evil:Evil", "evil.py:Evil", "evil", "./evil.py", "os"])
def test_a_model_folder_imports_no_code(tmp_path, monkeypatch, make_images, name):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    folder = Std().fit(make_images()).save(tmp_path / "model")
    (folder / "evil.py").write_bytes((tmp_path / "evil.py").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"method": name}))
    (folder / "checksums.json").unlink()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="is not known"):
        Detector.load(folder)
    assert not (tmp_path / "ran").exists()
