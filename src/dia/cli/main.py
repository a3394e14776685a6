"""The command line `dia`: its commands.

Calls the package and prints; what can be asked of it is in `arguments.py`.
Bad usage or data: one line on stderr, exit status 2. Results go to stdout (`--json`: one JSON object),
progress and remarks to stderr.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jsonargparse import Namespace
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..core.errors import DataError, TrainingError, system_error
from ..core.settings import replaced
from ..data.as_fitted import as_fitted
from ..data.imageset import ImageSet
from .arguments import build_parser, underscored, with_plugins, with_signs
from .help import refuse_nulls

if TYPE_CHECKING:
    from ..deploy.scorefile import ScoreFile

err = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 140)


def _read(
    a: Namespace, facts: Mapping[str, Any], *, size: Any = None, max_size: Any = None, channels: Any = None
) -> ImageSet:
    from ..data.datasets import open_data

    images = open_data(
        a.data, a.split, a.data_root, normal=a.normal, size=size, max_size=max_size, channels=channels,
        skip_bad=a.skip_bad, workers=a.workers, progress=sys.stderr.isatty(), **_view(a, facts),
    )  # fmt: skip
    _say_skipped(images.skipped)
    return images


def _view(a: Namespace, facts: Mapping[str, Any]) -> dict[str, str | None]:
    return as_fitted(facts, window=a.window, axis=a.axis, slices=a.slices)


def _say_skipped(lines: Sequence[str]) -> None:
    for line in lines:
        err.print(f"skipped: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def _load(a: Namespace) -> tuple[Any, ImageSet]:
    from ..detectors import Detector

    detector = Detector.load(a.run, device=a.device)
    h, w, c = detector.shape_
    return detector, _read(a, detector.facts_, size=(h, w), channels=c)


def _rate(a: Namespace, detector: Any) -> float:
    rate = detector.false_alarm_rate if a.false_alarm_rate is None else a.false_alarm_rate
    if not 0 < rate < 1:
        raise DataError(f"--false_alarm_rate must lie between 0 and 1, not {rate}")
    return float(rate)


def cmd_fit(a: Namespace) -> None:
    """`dia fit`."""
    from ..benchmark.runs import facts_of
    from ..core.processes import barrier, is_main, join_processes
    from ..core.tracking import check_logger, tracking
    from ..detectors.presets import MAX_SIZE, PRESETS
    from ..detectors.registry import detector_class

    check_logger(a.logger)
    join_processes()
    err.quiet = not is_main()
    cls = detector_class(a.method)
    if a.preset not in PRESETS:
        raise DataError(f"--preset {a.preset} is not known; there are: {', '.join(PRESETS)}")
    if a.weights and not hasattr(a.settings, "weights"):
        raise DataError(f"--weights: {a.method} starts from no other network; leave the flag out")
    given = replaced(a.settings, {"weights": a.weights}) if a.weights else a.settings
    if not 0 < a.holdout < 1:
        raise DataError(f"--holdout must lie between 0 and 1, not {a.holdout}")
    target = Path(a.out)
    if target.exists() and not (target / "config.json").exists():
        raise DataError(f"{target} exists and is not a model; choose another --out")
    if (target / "config.json").exists() and not a.overwrite:
        if a.resume:
            err.print(f"{target} is complete; nothing to resume")
            return
        raise DataError(f"{target} holds a model already; choose another --out, or --overwrite it")
    images = _read(a, {}, size=a.size, max_size=MAX_SIZE[a.preset], channels=a.channels)
    normals = images.normals()
    if a.contamination:
        normals = normals.contaminated(images.anomalies(), a.contamination, a.seed)
    if len(images) and not len(normals):
        raise DataError(f"{a.data}: no image of split {a.split} is normal; see --normal and --split")
    left = len(images) - len(normals)
    left_out = f" ({left} anomalous ones left out)" if left else ""
    if a.contamination:
        left_out += f", of which {a.contamination:.3g} are anomalous and not marked"
    err.print(f"{a.method}: fitting on {len(normals)} normal images{left_out}", highlight=False)
    work = target.with_name(f".{target.name}.work")
    if not a.resume and is_main():
        shutil.rmtree(work, ignore_errors=True)
    barrier()
    detector = cls(
        given, seed=a.seed, device=a.device, holdout=a.holdout, false_alarm_rate=a.false_alarm_rate
    )
    detector.facts_ = facts_of(detector, a.data, a.preset, normals) | {
        "read": {
            "split": a.split,
            "normal": a.normal,
            "data_root": a.data_root,
            "contamination": a.contamination,
            **_view(a, {}),
        }
    }
    about = {"method": a.method, "preset": a.preset, "settings_hash": detector.settings_hash()}
    with tracking(a.logger, a.log_dir or f"{target}.logs", run=target.name, about=about):
        detector.fit(normals, workdir=work, resume=a.resume, progress=sys.stderr.isatty())
    if not is_main():
        return
    detector.save(target)
    shutil.rmtree(work, ignore_errors=True)
    facts = {
        "run": str(target), "method": a.method, "n_train": detector.n_train_,
        "n_calibration": detector.n_calibration_, "fit_seconds": round(detector.fit_seconds_, 1),
        "threshold": _finite(detector.threshold()), "false_alarm_rate": a.false_alarm_rate,
    }  # fmt: skip
    _show(facts, a.json)


def cmd_score(a: Namespace) -> None:
    """`dia score`."""
    from ..data.datasets import open_listing
    from ..deploy.drift_monitor import Watch
    from ..deploy.scorefile import ScoreFile
    from ..deploy.scoring import EXECUTORS, Job, hash_of, load_model

    if not a.out.endswith((".csv", ".jsonl")):
        raise DataError(f"--out {a.out}: the name must end in .csv or .jsonl")
    for flag in ("batch", "top_k"):
        if a[flag] < 1:
            raise DataError(f"--{flag} must be at least 1, not {a[flag]}")
    if not 0 < a.drift_rate < 1:
        raise DataError(f"--drift_rate must lie between 0 and 1, not {a.drift_rate}")
    if not 0 <= a.anomalous_up_to < 1:
        raise DataError(f"--anomalous_up_to must lie in [0, 1), not {a.anomalous_up_to}")
    detector = load_model(a.run, device=a.device if a.executor == "local" else "cpu")
    rate = _rate(a, detector)
    threshold = detector.threshold(rate)
    h, w, c = detector.shape_
    view = _view(a, detector.facts_)
    listing = open_listing(
        a.data, a.split, a.data_root, normal=a.normal, size=(h, w), channels=c, skip_bad=a.skip_bad, **view
    )
    about = {
        "model": hash_of(Path(a.run)), "data": a.data, "split": a.split,
        "list of images": f"{len(listing)}, {hashlib.sha256(repr(listing.names).encode()).hexdigest()[:16]}",
        "false-alarm rate": rate, "threshold": _finite(threshold), "--heatmaps": a.heatmaps,
        "--window": view["window"],
    }  # fmt: skip
    bad: list[str] = []
    rows = ScoreFile(Path(a.out), about, listing.names, a.batch, resume=a.resume, gaps=a.skip_bad)
    bar = Progress(console=err, disable=not sys.stderr.isatty())
    watch = Watch(
        detector, listing.names, listing.volumes, rate=a.drift_rate, share=a.anomalous_up_to,
        before=rows.noted, resumed=rows.start > 0,
    )  # fmt: skip
    done = rows.start
    with rows, bar:
        if a.resume:
            err.print(f"going on after {rows.start} of {len(listing)} images", highlight=False)
        shown = bar.add_task("Scoring", total=len(listing), completed=rows.start)
        job = Job(
            a.run, detector, listing, rows.start, a.batch, a.heatmaps is not None, a.device, a.workers,
            a.ray_address,
        )  # fmt: skip
        with closing(EXECUTORS[a.executor](job)) as batches:
            for names, scores, maps, skipped, whole in batches:
                _say_skipped(skipped)
                bad += skipped[: not bad]  # the first is enough
                if a.heatmaps and len(names):
                    _write_heatmaps(maps, names, Path(a.heatmaps), detector.method, rows)
                p = detector.p_values(scores)
                done += len(names) + len(skipped)
                watch.add(names, scores, whole)
                rows.note(done, watch.state())
                rows.append([
                    (name, float(s), round(float(q), 6), bool(s > threshold))
                    for name, s, q in zip(names, scores, p, strict=True)
                ])  # fmt: skip
                bar.update(shown, advance=len(names) + len(skipped))
        if not rows.rows:
            raise DataError(f"none of {len(listing)} images could be read; the first: {bad[0]}")
        of_volumes = rows.write_volumes(listing.names, listing.volumes, a.top_k, detector.p_values)
        rows.finish()
    facts = {"out": a.out, "images": rows.rows, "flagged": rows.flagged, "skipped": len(listing) - rows.rows,
             "threshold": _finite(threshold), "false_alarm_rate": rate}  # fmt: skip
    if of_volumes:
        facts |= {"volumes": of_volumes, "volumes_out": str(rows.volumes)}
    drift = watch.verdict()
    if drift["alarm"] is not False:
        style = "bold red" if drift["alarm"] else "yellow"
        err.print(drift["words"], style=style, markup=False, highlight=False, soft_wrap=True)
    _show(facts | {"drift": drift if a.json else drift["words"].partition(":")[0]}, a.json)


def _write_heatmaps(
    maps: np.ndarray | None, names: Sequence[str], folder: Path, method: str, rows: ScoreFile
) -> None:
    """One picture each; the first batch's range of values is the scale of the whole run."""
    from PIL import Image

    from ..report.pictures import colour, scale_of

    if maps is None:
        raise DataError(f"{method} has no heatmaps; fit dia+ for them")
    if rows.scale is None:
        rows.keep_scale(scale_of(maps))
    for name, picture in zip(names, colour(maps, rows.scale), strict=True):
        target = _heatmap_file(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)


def _heatmap_file(folder: Path, name: str) -> Path:
    """Where the heatmap of an image goes: below `folder`, whatever the name, in the folders of the images."""
    inside = Path(*(p for p in Path(name).parts if p not in ("..", Path(name).anchor)))
    return folder / inside.with_name(inside.name + ".png" * (inside.suffix.lower() != ".png"))


def cmd_export(a: Namespace) -> None:
    """`dia export`."""
    from ..data.datasets import open_listing
    from ..deploy.export import SUFFIX, export
    from ..detectors import Detector

    detector = Detector.load(a.run, device="cpu")
    target = Path(a.out or f"{Path(a.run).resolve().name}{SUFFIX[a.format]}")
    h, w, c = detector.shape_
    images = a.check and open_listing(
        a.check, a.split, a.data_root, normal=a.normal, size=(h, w), channels=c, **as_fitted(detector.facts_)
    )
    facts = export(detector, target, a.format, opset=a.opset, images=images)
    _show(facts, a.json)


def cmd_evaluate(a: Namespace) -> None:
    """`dia evaluate`."""
    from ..benchmark.ledger import Ledger
    from ..benchmark.runs import record, score_set
    from ..evaluate.volume_scores import volume_metrics

    detector, images = _load(a)
    scored = score_set(detector, images)
    if scored.metrics is None:
        raise DataError(
            f"{a.data}: evaluation needs labels of both classes (normal and anomalous); "
            f"without labels use `dia score`, or name the normal class with --normal"
        )
    if a.ledger:
        Ledger(a.ledger).append(record(detector, scored, images, a.data))
    facts = {"dataset": a.data, "method": detector.method, "images": len(images), **scored.metrics,
             "images_per_second": round(scored.images_per_second, 1)}  # fmt: skip
    if images.volumes and images.labels is not None:
        facts |= volume_metrics(images.labels, scored.scores, images.volumes)
    if a.compare:
        from ..report.context import beside

        found = beside(
            detector, images, scored.metrics, dataset=a.data, normal=a.normal, data_root=a.data_root,
            given=a.normals, ledger=a.ledger,
            say=lambda line: err.print(line, markup=False, highlight=False, soft_wrap=True),
        )  # fmt: skip
        if a.json:
            facts["beside"] = found
        else:
            _show(facts, False)
            for line in found["sentences"]:
                out.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
            return
    _show(facts, a.json)


def cmd_stress(a: Namespace) -> None:
    """`dia stress`."""
    from .lesion_tests import run_stress

    detector, images = _load(a)
    run_stress(a, detector, images, _rate(a, detector), out, err)


def cmd_select(a: Namespace) -> None:
    """`dia select`."""
    from .lesion_tests import run_select

    def read(max_size: int) -> ImageSet:
        return _read(a, {}, size=a.size, max_size=max_size, channels=a.channels)

    run_select(a, read, out, err)


def cmd_push(a: Namespace) -> None:
    """`dia push`."""
    from ..deploy.hub import push_to_hub, save_pretrained
    from ..detectors import Detector

    results = None
    if a.results:
        try:
            results = json.loads(Path(a.results).read_text())
        except ValueError as error:
            raise DataError(f"{a.results}: not JSON ({error}); `dia evaluate --json` prints it") from error
        if not isinstance(results, dict):
            raise DataError(f"{a.results}: not a JSON object; `dia evaluate --json` prints one")
    detector = Detector.load(a.run, device="cpu")
    card: dict[str, Any] = {"license": a.license, "results": results, "data": a.about_data}
    if a.out:
        save_pretrained(detector, a.out, **card)
        out.print(f"{a.out}: what would be pushed to {a.name}", soft_wrap=True, highlight=False)
        return
    try:
        url = push_to_hub(detector, a.name, private=not a.public, **card)
    except (OSError, ValueError) as error:  # huggingface_hub's own are among these
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{a.name}: could not be pushed ({reason}); log in with `hf auth login`") from error
    out.print(str(url), soft_wrap=True, highlight=False)


def cmd_dissolve(a: Namespace) -> None:
    """`dia dissolve`."""
    from ..dissolve import load_dissolver
    from ..report.pictures import sheet

    folder = Path(a.run)
    config = _config_of(folder)
    shape = config.get("shape")
    if shape and not (folder / "dissolver").is_dir():
        raise DataError(f"{folder}: this method has no dissolver; fit dia or dia+")
    dissolver = load_dissolver(folder / "dissolver" if shape else folder, device=a.device)
    size = (
        {"size": (shape[0], shape[1]), "channels": shape[2]}
        if shape
        else {"max_size": dissolver.settings.size}
    )
    images = _read(a, config.get("facts") or {}, **size)
    index = np.unique(np.linspace(0, len(images) - 1, a.count).round().astype(int))
    chosen = images.subset(index)
    dissolved = dissolver.dissolve(chosen.images, a.t)
    columns = [("image", chosen.images), *((f"t = {t}", d) for t, d in zip(a.t, dissolved, strict=True))]
    sheet(Path(a.out), columns, list(chosen.names))
    _show({"out": a.out, "images": len(chosen), "t": a.t}, False)


def _config_of(folder: Path) -> dict[str, Any]:
    """What a model folder says of itself, checked; empty where it is none of ours."""
    from ..core.modelfiles import ModelFiles
    from ..detectors import saving
    from ..detectors.base import FORMAT

    if not (folder / "calibration.json").is_file():
        return {}
    try:
        return saving.read(ModelFiles(folder), FORMAT).config
    except DataError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: not a model folder made by `dia fit` ({reason})") from error


def cmd_illustrate(a: Namespace) -> None:
    """`dia illustrate`."""
    from .illustrate import illustrate

    detector, images = _load(a)
    for path in illustrate(Path(a.out), detector, images, ts=a.t, count=a.count, seed=a.seed, form=a.format):
        out.print(str(path), soft_wrap=True, highlight=False)


def cmd_report(a: Namespace) -> None:
    """`dia report`."""
    if "what" in a:
        from .grids import report

        return report(a, out)
    from ..core.modelfiles import STRESS
    from ..report.gather import compare_trivial, write_run_report

    detector, images = _load(a)
    comparison: list[dict[str, Any]] = []
    normals: ImageSet | None = None
    if a.compare and images.labels is not None:
        read = detector.facts_.get("read")
        if read is None:
            err.print("the trivial rows are left out: this model does not say where its training images are")
        else:
            from ..report.context import training_normals

            normals = training_normals(detector, a.data_root)
            assert normals is not None
            comparison = compare_trivial(normals, images, detector.seed)
    path = write_run_report(
        Path(a.out),
        detector,
        images,
        dataset=a.data,
        false_alarm_rate=_rate(a, detector),
        comparison=comparison,
        stress=Path(a.run) / STRESS,
        normals=normals,
        normal=a.normal,
    )
    _show({"out": str(path)}, False)


def cmd_explore(a: Namespace) -> None:
    """`dia explore`."""
    from .recipes import explore

    explore(a, out)


def cmd_confirm(a: Namespace) -> None:
    """`dia confirm`."""
    from .recipes import confirm

    confirm(a, out)


def cmd_benchmark(a: Namespace) -> None:
    """`dia benchmark`."""
    from .grids import benchmark

    benchmark(a, out, err)


def cmd_ablate(a: Namespace) -> None:
    """`dia ablate`."""
    from .grids import ablate

    ablate(a, out)


def cmd_methods(a: Namespace) -> None:
    """`dia methods`."""
    from ..core.settings import flat, plain
    from ..detectors.presets import PRESETS, settings
    from ..detectors.registry import METHODS

    if a.preset not in PRESETS:
        raise DataError(f"--preset {a.preset} is not known; there are: {', '.join(PRESETS)}")
    if a.json:
        facts = {
            m: {k: getattr(cls, k) for k in ("family", "paper", "pretrained", "smallest", "extra")}
            | {"heatmaps": cls.has_heatmaps(), "settings": plain(settings(cls.Settings, a.preset))}
            for m, cls in METHODS.items()
        }
        print(json.dumps(facts))
        return
    table = Table(
        "method",
        "family",
        "paper",
        "published with weights of",
        "smallest image",
        "seen at",
        "heatmaps",
        "settings",
    )
    for m, c in METHODS.items():
        own = settings(c.Settings, a.preset)
        side, heat = c(own).side(), "yes" if c.has_heatmaps() else "no"
        seen = "–" if side is None else f"{side} px"
        first = c.pretrained or "–"
        table.add_row(m, c.family, c.paper or "–", first, f"{c.smallest} px", seen, heat, str(len(flat(own))))
    out.print(table)
    out.print(
        "anomalib:NAME is any other image model of anomalib; those of the extra `peers` need it installed"
    )
    out.print("Settings with their values: --json, or dia fit --method NAME --print_config")


def cmd_data(a: Namespace) -> None:
    """`dia data list|check`."""
    from dataclasses import asdict

    from ..data import datasets

    if a.action == "list":
        if a.json:
            print(json.dumps({k: asdict(v) for k, v in datasets.CATALOG.items()}))
            return
        table = Table("name", "title", "normal", "split", "licence", "where")
        for name, d in datasets.CATALOG.items():
            normal = ", ".join(d.normal) if isinstance(d.normal, tuple | list) else str(d.normal)
            table.add_row(
                name, d.title + (" (proxy)" if d.proxy else ""), normal, d.split, d.licence, d.obtain
            )
        out.print(table)
        return
    if a.name is None:
        raise DataError("dia data check: name a data set or a path; `dia data list` lists the known ones")
    from ..report.context import check_data

    result = check_data(a, _view(a, {}))
    if a.json:
        print(json.dumps(result))
        return
    out.print_json(json.dumps(result))


def cmd_serve(a: Namespace) -> None:
    """`dia serve`."""
    from dataclasses import fields

    from ..serve.limits import Limits
    from ..serve.server import serve

    serve(
        a.run,
        host=a.host,
        port=a.port,
        device=a.device,
        token=os.environ.get("DIA_TOKEN") if a.token is None else a.token,
        allow_open=a.allow_open,
        hosts=a.allowed_hosts,
        page=a.page,
        store=a.store,
        normals=a.normals,
        data_root=a.data_root,
        limits=Limits(**{f.name: a[f.name] for f in fields(Limits)}),
        say=lambda line: err.print(line, markup=False, highlight=False, soft_wrap=True),
    )


def cmd_demo(a: Namespace) -> None:
    """`dia demo`."""
    from .demo import demo

    demo(Path(a.out), seed=a.seed, device=a.device)


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        if isinstance(value, list | tuple) and value and isinstance(value[0], float):
            text = " – ".join(f"{v:.4g}" for v in value)
        table.add_row(key.replace("_", " "), text)
    out.print(table)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command `dia`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = with_signs([underscored(word) for word in argv])
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.showwarning = lambda message, *_, **__: err.print(
        f"warning: {message}", style="yellow", markup=False, soft_wrap=True
    )
    target = ""
    try:
        argv = with_plugins(argv)
        parser = build_parser(argv)
        given = parser.parse_args(argv)
        if given.command is None:
            parser.print_help()
            sys.exit(2)
        refuse_nulls(parser, given)
        try:
            a = parser.instantiate_classes(given)
        except TypeError as error:  # a part of the settings that is none
            raise DataError(f"settings: a value of another kind than its setting's ({error})") from error
        target = a[a.command].get("out") or a[a.command].get("work") or ""  # where it writes
        globals()[f"cmd_{a.command}"](a[a.command])
    except (DataError, TrainingError) as error:
        err.print(f"dia: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, DataError) else 1)
    except KeyboardInterrupt:
        err.print("dia: stopped; the same command goes on with a grid, and with --resume a fit or a score")
        sys.exit(130)
    except Exception as error:
        if not (words := system_error(error, str(target))):
            raise
        err.print(f"dia: {words}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
