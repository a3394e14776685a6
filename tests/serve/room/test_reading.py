"""The routes of the reading page."""

import numpy as np
from reading_room import drop, listed, png  # noqa


def test_smoke(page, files):
    c = page.client("ann")
    found = drop(c, [(f.name, f.read_bytes()) for f in files])
    print(found["progress"], len(found["cases"]), found["drift"], found["cases"][0])
    id = found["cases"][0]["id"]
    for path in ("", "/thumb", "/slices/0/pixels", "/slices/0/heat", "/findings?rate=0.2", "/slices/0/nearest",
                 "/slices/0/nearest/1", "/slices/0/dissolved?t=50", "/slices/0/dissolved?t=50&what=difference"):
        r = c.get(f"/room/cases/{id}{path}")
        print(path, r.status_code, r.headers.get("content-type"), len(r.content), r.text[:200] if "json" in r.headers.get("content-type","") else "")
    print(c.get("/room/state").text[:600])
    print(c.get("/room/threshold?rate=0.05").text)
    print(c.patch(f"/room/cases/{id}/mark", json={"verdict": "agree", "rate": .2}).text)
    print(c.patch(f"/room/cases/{id}/mark", json={"note": "=1+1", "rate": .2, "boxes":[{"slice":0,"x":1,"y":2,"w":3,"h":4}]}).text)
    print(c.get("/room/export.csv").text[:800])
    print(c.get("/room/export.json?what=all").text[:800])
    print(c.post(f"/room/cases/{id}/undo").text)
    assert 0
