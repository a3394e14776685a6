"""Speaks as `dia.serve.room.train.work` does, without torch: a training is a number that counts up while its
gate is open. What a test needs to see of processes, files and states, in milliseconds."""

import json
import os
import select
import signal
import sys
from pathlib import Path

from dia.core.errors import DataError
from dia.core.storage import Owner

STEPS = 20
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))


def say(**said):
    print(json.dumps(said), flush=True)


def moves(gate):
    """Whether to take a step: the server lives, nobody asked to stop, and the gate is open."""
    while not asked:
        ready, _, _ = select.select([0], [], [], 0.005)
        if ready and not os.read(0, 100):
            return False
        if gate is None or not Path(gate).exists():  # the file shuts it
            return True
    return False


def check(job):
    names = sorted(str(p.relative_to(job["folder"])) for p in Path(job["folder"]).rglob("*.png"))
    out = set(job["source"]["leave_out"])
    names = [n for n in names if n not in out and n.partition("/")[0] not in out]
    if not names:
        raise DataError(f"{job['folder']}: no images")
    copies = {"kind": "warn", "words": "1 image has a copy.", "examples": [names[:2]]}
    return {
        "kinds": {"png": len(names)}, "sizes": [[8, 8, len(names)]], "size": None, "folders": [],
        "problems": [], "thumbs": ["/9j/"], "images": len(names), "findings": [copies],
        "usable": len(names) > 1, "headline": f"{len(names)} normal images can be trained on",
    }  # fmt: skip


def fit(job):
    target, gate = Path(job["target"]), os.environ.get("QUICK_GATE")
    work = target.with_name(f".{target.name}.work")
    assert "DIA_TOKEN" not in os.environ
    with Owner(target):
        if os.environ.get("QUICK_FAILS"):
            raise DataError("the loss became NaN at step 3; lower the learning rate")
        work.mkdir(exist_ok=True)
        counted = work / "step"
        step = int(counted.read_text()) if counted.exists() else 0
        logs = target.with_name(f"{target.name}.logs") / "encoder" / f"version_{step}"
        logs.mkdir(parents=True, exist_ok=True)
        with (logs / "metrics.csv").open("w") as curve:
            curve.write("step,loss\n")
            while step < STEPS:
                if not moves(gate):
                    return None
                step += 1
                counted.with_suffix(".new").write_text(str(step))
                counted.with_suffix(".new").replace(counted)
                curve.write(f"{step},{1 / step}\n")
                curve.flush()
                say(stage="Training the encoder", done=step, total=STEPS, unit="step")
        new = target.with_name(f".{target.name}-new")
        new.mkdir(exist_ok=True)
        facts = {"method": job["method"], "n_train": job["source"]["images"], "false_alarm_rate": job["rate"],
                 "shape": [8, 8, 1], "fit_seconds": 1.0, "facts": {}}  # fmt: skip
        (new / "calibration.json").write_text(
            json.dumps({"held_out_normal_scores": [i / 99 for i in range(99)]})
        )
        (new / "config.json").write_text(json.dumps(facts))
        new.rename(target)
    return {"images": job["source"]["images"]}


def main():
    job = json.loads(sys.stdin.buffer.raw.readline())
    try:
        made = {"check": check, "fit": fit}[job["task"]](job)
        say(**({"stopped": True} if made is None else {"result": made}))
    except DataError as error:
        say(problem=str(error))


main()
