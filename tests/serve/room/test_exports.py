"""What is exported: the list as it is now, or all marks; nothing that a spreadsheet would run."""

import csv
import io

import numpy as np
from reading_room import drop


def volume(n=6, h=20, w=24):
    buffer = io.BytesIO()
    np.save(buffer, np.random.default_rng(1).integers(0, 4000, (n, h, w)).astype(np.uint16))
    return buffer.getvalue()


def test_the_exported_list_is_as_it_is_now_and_runs_nothing(page, files):
    client = page.client("ann")
    (case,) = drop(client, [("=HYPERLINK(1).png", files[0].read_bytes())])["cases"]

    def rows(what="list"):
        answer = client.get("/room/export.csv", params={"what": what})
        assert answer.headers["content-disposition"] == f'attachment; filename="dia-{what}.csv"'
        return list(csv.DictReader(io.StringIO(answer.text, newline="")))

    (bare,) = rows()
    assert (bare["name"], bare["verdict"], bare["label"], bare["reviewer"]) == (
        "'=HYPERLINK(1).png",
        "",
        "",
        "",
    )
    assert rows("all") == []
    sent = {"verdict": "disagree", "note": "@SUM(1)", "rate": 0.2}
    client.patch(f"/room/cases/{case['id']}/mark", json=sent)
    (now,) = rows()
    assert (now["note"], now["verdict"], now["reviewer"]) == ("'@SUM(1)", "disagree", "ann")
    assert now["label"] == str(1 - (now["flagged"] == "true"))
    assert rows("all") == [now]
    client.delete("/room/cases")
    (kept,) = rows("all")
    assert kept == now | {"name": ""}, "names are the session's alone"
    assert rows() == []


def test_coco_of_the_list_names_slices(page):
    client = page.client("ann")
    (case,) = drop(client, [("v.npy", volume())])["cases"]
    box = {"slice": 2, "x": 1, "y": 2, "w": 3, "h": 4}
    client.patch(f"/room/cases/{case['id']}/mark", json={"boxes": [box], "verdict": "agree", "rate": 0.2})
    found = client.get("/room/export.json").json()
    assert [(i["file_name"], i["height"], i["width"]) for i in found["images"]] == [("v.npy#2", 20, 24)]
    assert found["annotations"][0]["bbox"] == [1, 2, 3, 4]
