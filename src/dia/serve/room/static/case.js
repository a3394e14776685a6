// The panel of the open image: facts, findings, boxes, note, verdict, other readers. Knows its part of the page.

import { last, make, pShort, sentence, short } from "./worklist.js";

const el = (id) => document.getElementById(id);
const SAID = { agree: "agrees", disagree: "disagrees", unsure: "is unsure", "": "gave no verdict" };
export const area = ({ area_mm2, area_px }) => (typeof area_mm2 === "number" ? (area_mm2 >= 100 ? `${short(area_mm2 / 100)} cm²` : `${short(area_mm2)} mm²`) : `${area_px} px`);

/** What a verdict says about the flag. */
export const meaning = (verdict, flagged) => ({ agree: flagged ? "rightly flagged" : "rightly not flagged", disagree: flagged ? "wrongly flagged" : "missed", unsure: "" })[verdict];

export class CasePanel {
  /** `does`: {finding(finding), box(i), removeBox(i)}: what a click asks for. */
  constructor(does) {
    Object.assign(this, { does, lesions: [] });
  }

  /** Shows what the server knows of a case. `normals`: the calibration's scores, ascending. */
  show(detail, { flagged, rate, normals }) {
    el("case-empty").hidden = true;
    el("case-body").hidden = false;
    el("case-name").textContent = last(detail.name);
    el("case-name").title = detail.name;
    const { spacing } = detail, fact = (name, value, kind = "") => make("div", { class: kind }, make("dt", { text: name }), make("dd", { text: value }));
    const size = `${detail.shape[1]} × ${detail.shape[0]}`, mm = spacing && [1, 0, 2].map((i) => spacing[i]).filter((v) => typeof v === "number").map(short);
    el("facts").replaceChildren(
      fact(detail.images > 1 ? "highest score" : "score", short(detail.score), flagged ? "anomalous" : ""), fact("p", pShort(detail.p_value)),
      fact("flag", flagged ? "⚑ yes" : "no", flagged ? "anomalous" : ""), fact("pixels", detail.images > 1 ? `${size} × ${detail.images}` : size),
      ...(mm ? [fact("mm a pixel", mm.join(" × "))] : []));
    const below = normals.filter((v) => v < detail.score).length;
    el("place").textContent = normals.length ? `Higher than ${below === normals.length ? "all" : `${Math.floor((100 * below) / normals.length)} % of the`} normals of the calibration; ${flagged ? "flagged" : "not flagged"} at ${percent(rate)} false alarms.` : "";
    for (const button of el("verdicts").querySelectorAll("[data-verdict]")) button.querySelector("small").textContent = meaning(button.dataset.verdict, flagged);
  }

  clear() {
    el("case-empty").hidden = false;
    el("case-body").hidden = true;
  }

  /** Lists findings, those of one lesion together; returns them numbered. */
  findings(answer, loading = false) {
    const found = answer?.findings ?? [], lesions = new Map();
    for (const finding of found) {
      const key = finding.lesion ?? found.indexOf(finding);
      lesions.set(key, [...(lesions.get(key) ?? []), finding]);
    }
    this.lesions = [...lesions.values()].map((all) => all.reduce((a, b) => (b.peak > a.peak ? b : a), all[0])).sort((a, b) => b.peak - a.peak);
    this.lesions.forEach((peak, i) => lesions.get(peak.lesion ?? found.indexOf(peak)).forEach((f) => { f.number = i + 1; }));
    el("findings-count").textContent = loading ? "" : this.lesions.length;
    el("findings").replaceChildren(...this.lesions.map((peak) => {
      const all = lesions.get(peak.lesion ?? found.indexOf(peak)), on = all.map((f) => f.slice);
      const from = Math.min(...on), to = Math.max(...on);
      const button = make("button", { type: "button", "data-number": peak.number },
        make("b", { text: peak.number }), make("span", { text: area(peak) }), make("span", { text: `peak ${short(peak.peak)}` }), make("span", { text: `p ${pShort(peak.p_value)}` }),
        ...(all.length > 1 || this.many ? [make("small", { text: from === to ? `slice #${from}` : `slices #${from}–#${to}` })] : []));
      button.addEventListener("click", () => this.does.finding(peak));
      return make("li", {}, button);
    }));
    el("findings-words").textContent = loading ? "Looking for findings …" : sentence(answer?.words);
    return found;
  }

  chosen(finding) {
    for (const button of el("findings").querySelectorAll("button")) button.toggleAttribute("aria-current", Boolean(finding) && Number(button.dataset.number) === finding.number);
  }

  /** Lists my boxes. `spacing`: mm, or null. */
  boxes(boxes, selected, spacing, images) {
    el("boxes-count").textContent = boxes.length || "";
    el("boxes-words").hidden = boxes.length > 0;
    el("boxes").replaceChildren(...boxes.map((box, i) => {
      const px = box.w * box.h, size = area({ area_px: Math.round(px), area_mm2: spacing ? px * spacing[0] * spacing[1] : null });
      const show = make("button", { type: "button" }, make("b", { text: "▢", "aria-hidden": "true" }), make("span", { text: `${Math.round(box.w)} × ${Math.round(box.h)}` }), make("span", { text: size }),
        ...(images > 1 ? [make("small", { text: `slice #${box.slice}` })] : []));
      show.toggleAttribute("aria-current", i === selected);
      show.addEventListener("click", () => this.does.box(i));
      const remove = make("button", { type: "button", class: "quiet", "aria-label": `Delete box ${i + 1}`, title: "Delete", text: "✕" });
      remove.addEventListener("click", () => this.does.removeBox(i));
      return make("li", {}, show, remove);
    }));
  }

  /** Shows my mark. `note`: whether the text is to be put in, which a reader who is writing would lose. */
  mark(mark, history, note) {
    for (const button of el("verdicts").querySelectorAll("[data-verdict]")) button.setAttribute("aria-pressed", String(mark.verdict === button.dataset.verdict));
    el("undo").disabled = !history;
    if (note) el("note").value = mark.note;
  }

  saving(words, kind) {
    el("saving").textContent = words;
    el("saving").className = `saving ${kind}`;
  }

  others(marks) {
    el("others").hidden = !marks.length;
    el("others-list").replaceChildren(...marks.map((m) => make("li", {},
      make("p", {}, make("b", { text: m.reader || "someone" }), ` ${SAID[m.verdict ?? ""]}${m.verdict && m.verdict !== "unsure" ? ` (${meaning(m.verdict, m.flagged)})` : ""}`),
      ...(m.note ? [make("p", { class: "quoted", text: m.note })] : []),
      make("p", { class: "soft", text: [new Date(m.time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }), m.boxes?.length ? `${m.boxes.length} box${m.boxes.length > 1 ? "es" : ""}` : ""].filter(Boolean).join(" · ") }))));
  }
}

export const percent = (rate) => `${Number((100 * rate).toPrecision(2))} %`;
