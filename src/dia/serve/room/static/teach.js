// The panel in which marks teach the model. Knows its part of the page and its requests.

import { get, latest, send } from "./api.js";
import { last, make, sentence, short } from "./worklist.js";

const AGAIN = 1000;
const el = (id) => document.getElementById(id);
const day = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

export class Teach {
  /** `open(id)` opens a case, `changed()` hears that another model is in use, `before()` resolves when marks are
   *  saved, `next()` opens the next image worth marking. */
  constructor({ open, changed, before, next, say }) {
    Object.assign(this, { open, changed, before, say, known: null, timer: null, refresh: latest((counts) => this._refresh(counts)) });
    el("teach-now").addEventListener("click", () => this._do("/room/teach", {}));
    el("teach-undo").addEventListener("click", () => this._do("/room/teach/undo"));
    el("teach-next").addEventListener("click", next);
  }

  /** Asks how things stand, and again while a teaching runs. */
  async _refresh(counts) {
    clearTimeout(this.timer);
    let now;
    try {
      now = await get("/room/teach");
      if (!counts()) return;
    } catch (error) {
      this._state(error.message, true);
      if (this.known?.running) this.timer = setTimeout(() => this.refresh(), 3 * AGAIN);
      return;
    }
    const ended = this.known?.running && !now.running;
    this.known = now;
    this._show(now);
    if (now.running) this.timer = setTimeout(() => this.refresh(), AGAIN);
    else if (ended) {
      this.say(now.last?.words ?? "Done.");
      this.changed();
    }
  }

  async _do(path, body) {
    el("teach-now").disabled = el("teach-undo").disabled = true;
    try {
      await this.before();
      await send("POST", path, body);
      this.known = { ...this.known, running: true };
      this._state("Begun …");
      await this.refresh();
    } catch (error) {
      this._state(error.message, true);
      el("teach-now").disabled = el("teach-undo").disabled = false;
    }
  }

  _state(words, bad = false) {
    el("teach-state").textContent = words;
    el("teach-state").classList.toggle("bad-words", bad);
  }

  _show({ marks, taught, advice, watch, running, last: result }) {
    const count = (words, n) => make("div", {}, make("dt", { text: words }), make("dd", { text: n }));
    el("teach-counts").replaceChildren(count("marks that teach", marks.usable), count("anomalous", marks.anomalous), count("normal", marks.normal), count("unsure", marks.unsure));
    el("advice").hidden = !advice;
    el("advice").textContent = sentence(advice);
    el("teach-now").disabled = running || !marks.usable;
    el("teach-undo").disabled = running;
    this._state(running ? "Teaching: cross-validation on the marks, then all scores anew …" : "");
    el("teach-last").hidden = running || !result;
    el("teach-last").className = `notice ${result?.kept ? "good" : ""}`;
    if (result) {
      const numbers = [["before", result.before], ["after", result.after]].filter(([, v]) => typeof v === "number");
      el("teach-last").replaceChildren(make("p", { text: sentence(result.words) }), ...(numbers.length === 2 ? [this._bars(numbers)] : []));
    }
    el("taught").hidden = !taught;
    if (taught) {
      el("taught-words").textContent = `The model in use was taught with ${taught.marks} marks${taught.readers ? ` of ${taught.readers} reader${taught.readers === 1 ? "" : "s"}` : ""}` + (taught.at ? `, ${day(taught.at)}.` : ".");
    }
    el("watch").hidden = !watch?.length;
    el("watch-list").replaceChildren(...(watch ?? []).map(({ id, name, before, after }) => {
      const button = make("button", { type: "button", class: "quiet", text: last(name ?? ""), title: name });
      button.disabled = !id;
      button.addEventListener("click", () => this.open(id, true));
      return make("li", {}, button, make("span", { text: `${short(before)} → ${short(after)}` }));
    }));
  }

  _bars(numbers) {
    const list = make("dl", { class: "compare" });
    for (const [name, value] of numbers) {
      const fill = make("i");
      fill.style.width = `${100 * Math.min(Math.max(value, 0), 1)}%`;
      list.append(make("dt", { text: name }), make("dd", {}, make("span", { class: "meter", "aria-hidden": "true" }, fill), make("b", { text: value.toFixed(3) })));
    }
    return list;
  }
}
