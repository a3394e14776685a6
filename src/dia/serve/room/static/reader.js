// The open image: its slices in the viewer, what stands beside it, windows and tools. Knows the viewer's part of the
// page and its requests; knows no marks.

import { get, picture } from "./api.js";
import { choose, roving } from "./keys.js";
import { colourOf } from "./pixels.js";
import { Slices } from "./slices.js";
import { Strip } from "./strip.js";
import { Viewer } from "./viewer.js";
import { last, make, pShort, short } from "./worklist.js";

const THUMB = 88; // pixels
const SETTLED = 160; // ms without another slice or t until what stands beside is asked for
const el = (id) => document.getElementById(id);

export class Reader {
  /** `hear`: {boxes(boxes), select(i), finding(finding), slice(k), failed(error)}; `known()`: the state of the server. */
  constructor(hear, known) {
    Object.assign(this, { hear, known, detail: null, slice: 0, slices: null, t: 200, near: 0, normals: null, mode: null, tool: "move" });
    this.viewer = new Viewer(el("tiles"), {
      point: (at) => this._point(at),
      window: (low, high) => this._window(low, high, "own"),
      boxes: hear.boxes, select: hear.select, finding: hear.finding,
      step: (n) => this.go(this.slice + n),
      view: () => this._corners(),
    });
    this.strip = new Strip(el("strip"), (k) => this.go(k));
    this._frame();
    this._tools();
  }

  /** Lays words over the first tile: name, score, window, value, the scale of heat. */
  _frame() {
    const figure = this.viewer.tiles[0].figure;
    this.corner = Object.fromEntries(["name", "score", "window", "value"].map((at) => [at, make("p", { class: `corner ${at}` })]));
    this.ramp = make("div", { class: "ramp", title: "Colours of the heatmap", hidden: true }, make("span"), make("canvas", { width: 96, height: 8, "aria-hidden": "true" }), make("span"));
    figure.append(...Object.values(this.corner), this.ramp);
  }

  _tools() {
    const v = this.viewer, click = (id, act) => el(id).addEventListener("click", act);
    const tools = el("tools").querySelector("[role=radiogroup]");
    roving(tools);
    roving(el("beside"));
    for (const button of tools.querySelectorAll("[data-tool]")) button.addEventListener("click", () => this.use(button.dataset.tool));
    for (const button of el("beside").querySelectorAll("[data-beside]")) button.addEventListener("click", () => this.besides(button.dataset.beside));
    this.use("move");
    click("zoom-in", () => v.zoom(1.25));
    click("zoom-out", () => v.zoom(0.8));
    click("fit", () => v.fit());
    click("full", () => v.full());
    click("invert", () => this.invert());
    click("overlay", () => this.toggle("overlay"));
    click("contour", () => this.toggle("contour"));
    el("opacity").addEventListener("input", () => { v.opacity = el("opacity").value / 100; v.redraw(); });
    el("preset").addEventListener("change", () => this.preset(el("preset").value));
    for (const id of ["level", "width"]) {
      el(id).addEventListener("change", () => {
        const middle = Number(el("level").value), width = Math.abs(Number(el("width").value));
        if (Number.isFinite(middle) && width > 0) this._window(middle - width / 2, middle + width / 2, "own");
      });
    }
    el("t").addEventListener("input", () => { this.t = Number(el("t").value); this._tiles(); this._later(); });
  }

  use(tool) {
    this.viewer.tool = this.tool = tool;
    el("tiles").dataset.tool = tool;
    const group = el("tools").querySelector("[role=radiogroup]");
    choose(group, group.querySelector(`[data-tool=${tool}]`));
  }

  toggle(what) {
    this.viewer[what] = !this.viewer[what];
    el(what).setAttribute("aria-pressed", String(this.viewer[what]));
    this._corners();
    this.viewer.redraw();
  }

  invert() {
    this.viewer.invert = !this.viewer.invert;
    el("invert").setAttribute("aria-pressed", String(this.viewer.invert));
    this.viewer.redraw();
  }

  fade(by) {
    el("opacity").value = Number(el("opacity").value) + by;
    el("opacity").dispatchEvent(new Event("input"));
  }

  // --- opening ------------------------------------------------------------------------------------------

  /** Which slice has a number in the file; numbers are those of the server and of `dia score`, and some may be left out. */
  at(number) { return Math.max(this.detail.slices.findIndex((slice) => slice.number === number), 0); }

  /** The number of the slice in view. */
  get number() { return this.detail.slices[this.slice].number; }

  /** Shows a case at the slice of a number; `heats` as for `Slices`. */
  show(detail, number, heats) {
    this.slices?.close();
    Object.assign(this, { detail, normals: null, near: 0 });
    this.slice = this.at(number);
    this.viewer.clear();
    this.slices = new Slices(detail, heats, (k, got) => this._ready(k, got), (error) => this._failed(error));
    this.fresh = true;
    delete el("stage").dataset.shown;
    el("blank").hidden = el("wait").hidden = true;
    el("heat-tools").hidden = !heats;
    this._presets(detail);
    const many = detail.images > 1;
    el("slices").hidden = !many;
    this._ramp(heats);
    this.strip.slice = this.slice;
    this._tiles();
    this.judge();
    this.go(this.slice, true);
  }

  /** Shows that an image is on its way. */
  wait() {
    this.close();
    el("blank").hidden = true;
    el("wait").hidden = false;
  }

  /** Shows nothing. */
  close() {
    delete el("stage").dataset.shown;
    this.slices?.close();
    Object.assign(this, { detail: null, slices: null });
    this.viewer.clear();
    for (const id of ["slices", "neighbours", "dissolving", "wait"]) el(id).hidden = true;
    el("blank").hidden = false;
    Object.values(this.corner).forEach((p) => p.replaceChildren());
    this.ramp.hidden = true;
    this._tiles();
  }

  /** Takes another threshold or rate. */
  judge() {
    if (!this.detail) return;
    const { flagged, threshold } = this.known();
    this.strip.show(this.detail.images > 1 ? this.detail.slices : [], flagged, threshold);
    this._corners();
  }

  /** Goes to the slice of a number. */
  to(number) { if (this.detail) this.go(this.at(number)); }

  go(slice, first = false) {
    if (!this.detail) return;
    const k = Math.min(Math.max(slice, 0), this.detail.images - 1);
    if (k === this.slice && !first) return;
    this.slice = k;
    this.strip.at(k);
    el("slice-value").textContent = `#${this.number} · ${k + 1} / ${this.detail.images}`;
    this.waiting ??= setTimeout(() => { el("wait").hidden = false; }, 250);
    this.slices.want(k);
    this.hear.slice(k);
    this._corners();
    this._later();
  }

  _ready(k, { pixels, heat }) {
    clearTimeout(this.waiting);
    this.waiting = null;
    el("wait").hidden = true;
    this.viewer.heat = heat;
    const { spacing, images } = this.detail, { number } = this.detail.slices[k];
    this.viewer.setImage(pixels, { spacing, slice: number, slices: images, keep: !this.fresh });
    this.viewer.tiles[0].canvas.setAttribute("aria-label", this._label());
    el("stage").dataset.shown = `${this.detail.id}/${number}`;
    if (this.fresh) this.preset("default");
    this.fresh = false;
  }

  _failed(error) {
    clearTimeout(this.waiting);
    this.waiting = null;
    el("wait").hidden = true;
    this.hear.failed(error);
  }

  // --- windows ------------------------------------------------------------------------------------------

  _presets(detail) {
    const real = detail.units ? detail.units === "HU" : detail.dtype !== "uint8" && detail.range[0] < -100; // Hounsfield units begin far below 0
    const usable = real ? this.known().state.presets : [];
    this.windows = [["default", "Default", detail.levels], ["full", "Full range", detail.range], ["auto", "Auto", null],
      ...usable.map(({ name, low, high }) => [name, name[0].toUpperCase() + name.slice(1), [low, high]])];
    el("preset").replaceChildren(...this.windows.map(([key, words]) => make("option", { value: key, text: words })), make("option", { value: "own", text: "Own", hidden: true }));
  }

  preset(key) {
    const found = this.windows?.find(([name]) => name === key), pixels = this.viewer.pixels;
    if (!found || !pixels) return;
    let [low, high] = found[2] ?? [0, 1];
    if (key === "auto") { // the middle 98 % of the slice
      const data = pixels.levels[0].data, every = Math.max(Math.floor(data.length / 2e5), 1);
      const sample = data.filter((v, i) => i % every === 0 && !Number.isNaN(v)).sort();
      [low, high] = [sample[Math.floor(0.01 * sample.length)], sample[Math.ceil(0.99 * sample.length) - 1]];
    }
    this._window(low, high, key);
  }

  nextPreset() {
    const at = this.windows?.findIndex(([name]) => name === el("preset").value) ?? 0;
    if (this.windows) this.preset(this.windows[(at + 1) % this.windows.length][0]);
  }

  _window(low, high, key) {
    this.viewer.setWindow(low, high);
    const fine = this.viewer.high - this.viewer.low < 10 ? 3 : 0;
    el("level").value = ((this.viewer.low + this.viewer.high) / 2).toFixed(fine);
    el("width").value = (this.viewer.high - this.viewer.low).toFixed(fine);
    el("preset").value = key;
    this._corners();
  }

  // --- beside -------------------------------------------------------------------------------------------

  /** Shows nothing, "normals" or "dissolved" beside the image. */
  besides(mode) {
    const { state } = this.known();
    if (mode === "dissolved" && !state.dissolve) mode = "";
    this.mode = mode;
    choose(el("beside"), el("beside").querySelector(`[data-beside="${mode}"]`));
    this._tiles();
    this._later(0);
  }

  /** Learns what the model has. */
  offers(state) {
    el("beside").querySelector("[data-beside=dissolved]").disabled = !state.dissolve;
    el("beside").querySelector("[data-beside=dissolved]").title = state.dissolve ? "What dissolving removes (x)" : "This model has no dissolver.";
    if (state.dissolve) {
      el("t").max = state.dissolve.t_max;
      this.t = Math.min(this.t, state.dissolve.t_max);
      el("t").value = this.t;
    }
    if (this.mode === null) this.besides(state.neighbours === true && innerWidth >= 1200 ? "normals" : "");
    else this.besides(this.mode);
  }

  _label() {
    const { name, images } = this.detail;
    return `${last(name)}${images > 1 ? `, ${this._slice()}` : ""}`;
  }

  _slice() { return `slice #${this.number} (${this.slice + 1} of ${this.detail.images})`; }

  _tiles() {
    const open = Boolean(this.detail), mode = open ? this.mode : "", known = this.normals, tiles = [{ name: "", label: open ? this._label() : "No image is open" }];
    el("neighbours").hidden = mode !== "normals";
    el("dissolving").hidden = mode !== "dissolved";
    el("t-value").textContent = `t = ${this.t}`;
    if (mode === "normals") {
      const chosen = known?.list[this.near];
      tiles.push({ name: chosen ? `Normal ${this.near + 1}, distance ${short(chosen.distance)}` : "Nearest normal", picture: chosen?.picture, words: known ? known.why : "Loading …" });
      if (known?.why && !known.list.length) tiles.pop();
    }
    if (mode === "dissolved") {
      const now = this.dissolved?.key === this._dissolvedKey() ? this.dissolved : null, words = now ? "" : "Dissolving …";
      const pictures = now ?? (this.dissolved?.slice === `${this.detail.id}/${this.slice}` ? this.dissolved : null);
      tiles.push({ name: `Dissolved, t = ${this.t}`, picture: pictures?.copy, words }, { name: "Difference", label: "Image minus dissolved, about mid-grey", picture: pictures?.difference, words });
    }
    this.viewer.setTiles(tiles);
  }

  _dissolvedKey() { return `${this.detail?.id}/${this.slice}/${this.t}`; }

  _later(wait = SETTLED) {
    clearTimeout(this.timer);
    this.besideStop?.abort();
    if (this.detail) this.timer = setTimeout(() => this._beside(), wait);
  }

  async _beside() {
    const stop = (this.besideStop = new AbortController()), path = `${this.slices.path}/${this.number}`;
    try {
      if (this.mode === "normals") await this._normals(path, stop.signal);
      if (this.mode === "dissolved") await this._dissolve(path, stop.signal);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (this.mode === "normals") { this.normals = { path, list: [], why: error.message }; this._thumbs(); }
      else el("dissolve-words").textContent = error.message;
      this._tiles();
    }
  }

  async _normals(path, signal) {
    if (this.normals?.path !== path) {
      const { normals, why } = await get(`${path}/nearest`, signal);
      const list = await Promise.all(normals.map(async (n) => ({ ...n, picture: await picture(n.url, signal) })));
      this.normals = { path, list, why: why ?? "" };
      this.near = Math.min(this.near, Math.max(list.length - 1, 0));
      this._thumbs();
    }
    this._tiles();
  }

  _thumbs() {
    const { list, why } = this.normals;
    el("why-none").textContent = why;
    el("thumbs").replaceChildren(...list.map(({ picture: small, distance }, i) => {
      const button = make("button", { type: "button", role: "radio", "aria-label": `Normal ${i + 1}, distance ${short(distance)}`, title: `distance ${short(distance)}` },
        make("canvas", { width: THUMB, height: THUMB, "aria-hidden": "true" }));
      const fit = THUMB / Math.max(small.width, small.height);
      button.firstChild.getContext("2d").drawImage(small, 0, 0, small.width * fit, small.height * fit);
      button.addEventListener("click", () => this.nearest(i));
      return button;
    }));
    choose(el("thumbs"), el("thumbs").children[this.near]);
    if (!this.rovingThumbs) roving(el("thumbs"));
    this.rovingThumbs = true;
  }

  nearest(i) {
    this.near = i;
    choose(el("thumbs"), el("thumbs").children[i]);
    this._tiles();
  }

  async _dissolve(path, signal) {
    const key = this._dissolvedKey();
    if (this.dissolved?.key === key) return;
    el("dissolve-words").textContent = "Dissolving …";
    const of = `${path}/dissolved?t=${this.t}`;
    const [copy, difference] = await Promise.all([picture(of, signal), picture(`${of}&what=difference`, signal)]);
    this.dissolved = { key, slice: `${this.detail.id}/${this.slice}`, copy, difference };
    el("dissolve-words").textContent = "";
    this._tiles();
  }

  dissolve(by) {
    if (!this.known().state.dissolve) return;
    if (this.mode !== "dissolved") this.besides("dissolved");
    el("t").value = Number(el("t").value) + by;
    el("t").dispatchEvent(new Event("input"));
  }

  // --- words over the image -----------------------------------------------------------------------------

  _point(at) {
    const { pixels, heat, size } = this.viewer;
    const x = at && Math.floor(at.x), y = at && Math.floor(at.y);
    let words = "";
    if (pixels && at && x >= 0 && y >= 0 && x < size[0] && y < size[1]) {
      words = `x ${x}  y ${y}  ${[...pixels.at(x, y)].map((v) => (Number.isInteger(v) ? v : v.toFixed(2))).join(" ")}`;
      if (heat) words += `  heat ${short(heat.heat[Math.floor((y / size[1]) * heat.h) * heat.w + Math.floor((x / size[0]) * heat.w)])}`;
    }
    this.corner.value.textContent = words;
  }

  _corners() {
    const d = this.detail, v = this.viewer;
    if (!d) return;
    const { flagged } = this.known(), slice = d.slices[this.slice], lines = (...all) => all.filter(Boolean).flatMap((line, i) => (i ? [make("br"), line] : [line]));
    this.corner.name.replaceChildren(...lines(make("b", { text: last(d.name) }), `${d.shape[1]} × ${d.shape[0]}`, d.images > 1 && this._slice()));
    this.corner.score.replaceChildren(...lines(make("b", { text: short(slice.score) }), `p ${pShort(slice.p_value)}`, flagged(slice) && make("span", { class: "flag", text: d.images > 1 ? "⚑ slice" : "⚑ flagged" })));
    this.corner.window.textContent = `L ${el("level").value}  W ${el("width").value}  ·  ${Math.round(100 * v.view.scale * devicePixelRatio)} %`;
    this.ramp.hidden = !v.overlay || el("heat-tools").hidden;
  }

  _ramp(heats) {
    if (!heats) return;
    const [low, bar, high] = this.ramp.children, c = bar.getContext("2d");
    low.textContent = short(heats.scale[0]);
    high.textContent = short(heats.scale[1]);
    for (let x = 0; x < bar.width; x++) {
      const [r, g, b, a] = colourOf(x / (bar.width - 1), heats.colours);
      c.fillStyle = `rgb(${r} ${g} ${b} / ${a / 255})`;
      c.fillRect(x, 0, 1, bar.height);
    }
  }
}
