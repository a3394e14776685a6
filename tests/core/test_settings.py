"""Settings: what is refused and why, what differs between two, and changes by dotted name."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dia.amplify.augment import AugmentSettings
from dia.amplify.contrast import AmplifySettings
from dia.core.errors import DataError
from dia.core.settings import SettingsError, changes_from, differences, flat, from_dict, plain, replaced
from dia.detectors.dia import CSISettings, DIASettings
from dia.detectors.diaplus import DIAPlusSettings
from dia.detectors.presets import PRESETS, settings
from dia.detectors.registry import METHODS
from dia.dissolve import DissolverSettings


@dataclass(frozen=True)
class Old:
    a: int = 1
    inner: AugmentSettings = field(default_factory=AugmentSettings)


@dataclass(frozen=True)
class New(Old):
    later: tuple[str, ...] = ("as", "before")


def test_a_setting_added_later_changes_what_a_line_says_only_where_it_is_used():
    old = {"a": 2, "inner.crop": [0.5, 1.0]}
    inner = AugmentSettings(crop=(0.5, 1.0))
    assert changes_from(Old(2, inner), Old()) == changes_from(New(2, inner), New()) == old
    assert changes_from(New(later=("other",)), New()) == {"later": ["other"]}
    assert replaced(New(), old) == New(2, inner)


def test_the_cpu_presets_are_those_of_the_committed_ledger():
    # Lines say what differs from their preset, so a preset that changes would take old lines along with it.
    # Whoever changes a value here raises the methods' `revision` too; a new setting must do by default what
    # was done before.
    kept = json.loads((Path(__file__).parent / "cpu_presets.json").read_text())
    for method, values in kept.items():
        now = json.loads(json.dumps(flat(settings(METHODS[method].Settings, "cpu"))))
        assert {k: now[k] for k in values} == values


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", ["dia", "dia+", "csi"])
def test_settings_come_back_from_their_plain_form(method, preset):
    cls = METHODS[method].Settings
    s = settings(cls, preset)
    assert from_dict(cls, plain(s)) == s
    assert not differences(s, s)


def test_differences_and_replaced_undo_each_other():
    cpu, paper = (settings(DIASettings, p) for p in ("cpu", "paper"))
    differ = differences(cpu, paper)
    assert differ["dissolver.size"] == (64, 32)
    assert differ["amplify.augment.crop"] == ((0.3, 1.0), (0.08, 1.0))
    assert "amplify.temperature" not in differ
    assert replaced(cpu, {name: there for name, (_, there) in differ.items()}) == paper


@given(st.sampled_from(sorted(flat(DIASettings()))))
def test_replacing_by_its_own_value_changes_nothing(name):
    s = DIASettings()
    assert replaced(s, {name: flat(s)[name]}) == s


def test_replaced_takes_what_yaml_gives():
    s = replaced(DIASettings(), {"ts": [10, 20], "amplify.lr": 1, "amplify.t_beta": [2.0, 1.0]})
    assert s.ts == (10, 20)
    assert s.amplify.t_beta == (2.0, 1.0)
    assert type(s.amplify.lr) is float
    # two settings that only fit together
    both = {"amplify.shift": "none", "score_parts": ["cosine"]}
    assert replaced(replace(DIASettings(), score_parts=("shift",)), both).amplify.shift == "none"


@pytest.mark.parametrize("name", ["no", "dissolver", "dissolver.no", "ts.x", ""])
def test_replaced_refuses_what_is_no_setting(name):
    with pytest.raises(SettingsError, match=r"no setting .*amplify\.augment\.crop"):
        replaced(DIASettings(), {name: 1})


@pytest.mark.parametrize("method", METHODS)
def test_a_value_of_another_type_is_refused_by_every_setting_of_every_method(method):
    own = METHODS[method].Settings()
    for name in flat(own):
        with pytest.raises(SettingsError, match=name.rpartition(".")[2]):
            replaced(own, {name: {"no": ["such"]}})


REFUSED = [
    (DissolverSettings, {"kind": "blur"}, "kind must be one of diffusion, gaussian"),
    (DissolverSettings, {"kernel": 4}, "kernel must be odd"),
    (DissolverSettings, {"kernel": 1}, "kernel must be odd, from 3"),
    (DissolverSettings, {"sigma": 0.0}, r"dissolver\.sigma must be above 0"),
    (DissolverSettings, {"sigma": float("nan")}, r"dissolver\.sigma must be above 0"),
    (DissolverSettings, {"noise": -1.0}, r"dissolver\.noise must be above 0"),
    (DissolverSettings, {"threshold": -1.0}, r"dissolver\.threshold must be at least 0"),
    (DissolverSettings, {"threshold": float("inf")}, r"dissolver\.threshold must be at least 0"),
    (DissolverSettings, {"bottleneck": 0}, r"dissolver\.bottleneck must be at least 1"),
    (DissolverSettings, {"matched": True}, "matched is for kinds gaussian, .* kind diffusion"),
    (DissolverSettings, {"matched": True, "kind": "identity"}, "matched is for kinds gaussian, median"),
    (DissolverSettings, {"widths": (12, 24)}, "multiples of 8"),
    (DissolverSettings, {"widths": ()}, "multiples of 8"),
    (DissolverSettings, {"steps": 0}, r"dissolver\.steps must be at least 1"),
    (DissolverSettings, {"size": 4}, "at least 8"),
    (DissolverSettings, {"ema": 1.0}, r"\[0, 1\)"),
    (DissolverSettings, {"lr": 0.0}, "above 0"),
    (DissolverSettings, {"loss": "huber"}, "loss must be one of l1, l2"),
    (DissolverSettings, {"input_range": "wrong"}, "right, released"),
    (DissolverSettings, {"kind": "median", "input_range": "released"}, "input_range is for kind diffusion"),
    (DissolverSettings, {"kind": "noise", "pretrained": "x"}, "pretrained is for kind diffusion"),
    (AmplifySettings, {"shift": "flip"}, "rotation, cutperm, none"),
    (AmplifySettings, {"batch": 1}, "at least 2"),
    (AmplifySettings, {"temperature": 0}, "above 0"),
    (AmplifySettings, {"simsiam_weight": -1}, "must be at least 0"),
    (AmplifySettings, {"warmup": 1.5}, r"\[0, 1\]"),
    (AmplifySettings, {"t_per": "pixel"}, "batch, shift, image"),
    (AmplifySettings, {"t_sampler": "normal"}, "uniform, beta, cycled"),
    (AmplifySettings, {"t_beta": (0, 1)}, "above 0"),
    (AmplifySettings, {"t_beta": (1,)}, "two numbers"),
    (AmplifySettings, {"steps": None, "epochs": 0}, "epochs must be at least 1"),
    (AmplifySettings, {"epoch_batches": 0}, "epoch_batches must be at least 1"),
    (AugmentSettings, {"crop": (0.5, 0.3)}, "low, high"),
    (AugmentSettings, {"crop": (0.0, 1.0)}, r"\(0, 1\]"),
    (AugmentSettings, {"ratio": (2, 1)}, "low, high"),
    (AugmentSettings, {"jitter_p": 1.2}, r"\[0, 1\]"),
    (AugmentSettings, {"jitter": (0.4, 0.4, 0.4)}, "four numbers"),
    (AugmentSettings, {"jitter": (0.4, 0.4, 0.4, 1.1)}, r"jitter must lie in \[0, 1\]"),
    (AugmentSettings, {"score_crop": 0}, r"\(0, 1\]"),
    (CSISettings, {"score_draws": "each"}, "shared, own"),
    (CSISettings, {"samples": 0}, "samples must be at least 1"),
    (CSISettings, {"bank_size": 0}, "bank_size must be at least 1"),
    (CSISettings, {"score_parts": ()}, "some of cosine, norm, shift"),
    (DIASettings, {"score_parts": ("cosine", "cosine")}, "once each"),
    (DIASettings, {"score_parts": ("angle",)}, "some of cosine"),
    (
        DIASettings,
        {"score_parts": ("shift",), "amplify": AmplifySettings(shift="none")},
        "alone needs shifts",
    ),
    (DIASettings, {"ts": ()}, "ascending diffusion steps"),
    (DIASettings, {"ts": (50, 30)}, "ascending diffusion steps"),
    (DIASettings, {"ts": (30, 1000)}, "0–999"),
    (DIASettings, {"bank_gb": 0}, "above 0"),
    (DIAPlusSettings, {"views": ("shape", "gain")}, "gain needs a dissolver"),
    (DIAPlusSettings, {"views": ("detail",)}, "views must hold others than detail, gain"),
    (DIAPlusSettings, {"views": ("shape", "angle")}, "views must be some of"),
    (DIAPlusSettings, {"views": ()}, "views must be some of"),
    (DIAPlusSettings, {"symmetries": "some"}, "symmetries must be one of"),
    (DIAPlusSettings, {"whole": False, "places": False}, "nothing is left to score by"),
    (DIAPlusSettings, {"margin": -1.0}, "margin must be at least 0"),
    (DIAPlusSettings, {"neighbours": 0}, "neighbours must be at least 1"),
    (DIAPlusSettings, {"ts": (1000,)}, "ts"),
    (DIAPlusSettings, {"place_size": 100}, "place_size must be a multiple of 32"),
    (DIAPlusSettings, {"weights": ""}, "weights must be"),
    (DIAPlusSettings, {"backbone": "resnet18"}, "lite0 are not those of resnet18"),
]


@pytest.mark.parametrize(("cls", "values", "match"), REFUSED)
def test_what_cannot_be_is_refused_by_name(cls, values, match):
    with pytest.raises(SettingsError, match=match) as caught:
        cls(**values)
    assert isinstance(caught.value, DataError)  # so that the command line says it in one line
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_named_before_anything_trains(monkeypatch, make_images, tmp_path):
    from dia.amplify import settings as amplify_settings
    from dia.detectors.dia import DIA

    monkeypatch.setattr(amplify_settings, "find_spec", lambda name: None)
    s = settings(DIASettings, "paper")
    with pytest.raises(DataError, match=r"lars needs timm: pip install 'dia-anomaly\[paper\]'"):
        DIA(s, device="cpu").fit(make_images(24), workdir=tmp_path)
    assert not list(tmp_path.glob("dissolver-*"))
