// The reading page: what the server knows, the list, the open case, and the keys. The parts are modules of their own.

import { Adding } from "./adding.js";
import { Failed, get, latest, onTrouble, send } from "./api.js";
import { CasePanel, meaning, percent } from "./case.js";
import { histogram, scaleOf } from "./histogram.js";
import { choose, keys, roving } from "./keys.js";
import { Marks } from "./marks.js";
import { Reader } from "./reader.js";
import { Teach } from "./teach.js";
import { last, make, sentence, Worklist } from "./worklist.js";

const SOON = 1000, SELDOM = 20_000, SETTLED = 120, SLOW = 200; // ms
const MOST_RATE = 0.5;
const el = (id) => document.getElementById(id);
const room = { state: null, rate: 0.05, threshold: null, version: null, progress: null, detail: null, mark: null, findings: null };

const say = (words) => { el("said").textContent = words; };
const list = new Worklist({ box: el("rows"), body: el("body"), none: el("none"), filter: el("filter"), search: el("search"), heads: el("rows").querySelectorAll("[data-sort]") }, (id, byHand) => open(id, byHand));
const flagged = (one) => list.flagged(one);
const panel = new CasePanel({ finding: showFinding, box: showBox, removeBox: (i) => reader.viewer.removeBox(i) });
const marks = new Marks({ rate: () => room.rate, state: saving, saved });
const reader = new Reader({
  boxes: (boxes) => change({ boxes: boxes.map(({ slice, x, y, w, h }) => ({ slice, x: round(x), y: round(y), w: round(w), h: round(h) })) }, true),
  select: () => showBoxes(), finding: (finding) => choosing(finding), slice: () => {}, failed: (error) => trouble(`This image cannot be shown: ${error.message}`),
}, () => ({ state: room.state, threshold: room.threshold, flagged }));
const teach = new Teach({ open: (id) => open(id, true), changed: () => { refreshState(); poll(); reopen(); }, before: () => marks.flush(), next: worth, say });
const adding = new Adding({ known: () => room.progress, trouble, say, lead: () => lead("list"), sent: () => {
  room.progress = { files: 0, read: 0, images: 0, scored: 0, problems: [], ...room.progress, done: false };
  room.version = null;
  poll();
} });
const round = (v) => Math.round(v * 100) / 100;

// --- trouble ------------------------------------------------------------------------------------------------

let away = null;
function trouble(words, { login = false, retry = true } = {}) {
  el("trouble").hidden = !words;
  el("trouble-words").textContent = words ?? "";
  el("trouble-login").hidden = !login;
  el("trouble-retry").hidden = !retry;
}
onTrouble((failed) => {
  if (failed) {
    if (failed.status === 401) trouble("Your session has ended. Marks that are not saved yet are kept in this window: log in again in another, then try again here.", { login: true });
    else trouble("Connection lost. Your marks are kept, and are saved as soon as the server answers.");
    away ??= setInterval(poll.due, 3 * SOON);
  } else if (away) {
    clearInterval(away);
    away = null;
    trouble(null);
    marks.flush();
  }
});
el("trouble-retry").addEventListener("click", () => { trouble(null); if (room.state) { poll(); marks.flush(); if (!room.detail && location.hash) reopen(); } else start(); });

// --- what the server knows ----------------------------------------------------------------------------------

async function refreshState() {
  room.state = await get("/room/state");
  const { model } = room.state;
  if (model) el("model").textContent = [`${model.method}, fitted on ${model.n_train} normals`, model.taught && `taught with ${model.taught.marks} marks`].filter(Boolean).join(", ");
  reader.offers(room.state);
  judge();
}

async function start() {
  try {
    await refreshState();
  } catch (error) {
    if (error.status === 503) { // the model is being loaded
      el("list-loading").textContent = error.message;
      setTimeout(start, SOON);
      return;
    }
    el("list-loading").textContent = error.status === 409 ? "No model is served yet. Train one first." : "The list could not be loaded.";
    if (error.status === 409) el("list-loading").append(" ", make("a", { href: "/train", text: "To the training page" }));
    else if (error.status) trouble(error.message);
    return;
  }
  room.rate = Number(sessionStorage.getItem("rate")) || room.state.rate;
  await setRate(room.rate);
  await poll();
  teach.refresh();
}

let timer = null;
const poll = latest(async (counts) => {
  clearTimeout(timer);
  let wait = SELDOM;
  try {
    const now = await get(`/room/list${room.version === null ? "" : `?since=${encodeURIComponent(room.version)}`}`);
    if (now && counts()) showList(now);
    if (!room.progress?.done) wait = SOON;
  } catch (error) {
    if (error.status > 401) trouble(error.message);
  }
  timer = setTimeout(poll.due, wait);
});

function showList({ version, progress, drift, cases }) {
  const was = room.progress;
  Object.assign(room, { version, progress });
  for (const c of cases) { // what is on its way counts
    const own = marks.pending(c.id);
    if (Object.keys(own).length) c.mark = { boxes: [], note: "", verdict: "", ...c.mark, ...own };
  }
  adding.show(progress);
  list.cases = cases;
  judge();
  const any = cases.length > 0, busy = !progress.done || adding.busy;
  el("list-loading").hidden = true;
  for (const id of ["rate-box", "find", "rows"]) el(id).hidden = !any;
  el("welcome").hidden = any || busy;
  el("room").classList.toggle("empty-list", !any);
  el("drift").hidden = !drift?.words;
  el("drift").textContent = sentence(drift?.words);
  el("drift").className = `notice ${drift?.alarm ? "bad" : "calm"}`;
  if (room.detail && !list.byId.has(room.detail.id)) close();
  else if (room.detail && list.byId.get(room.detail.id).score !== room.detail.score) reopen(); // another model scored it
  if (was && !was.done && progress.done) {
    say(`${progress.scored} images scored, ${cases.filter(flagged).length} flagged.`);
    teach.refresh();
  }
  if (any && !room.detail && !opening && progress.done) {
    const before = decodeURIComponent(location.hash.slice(3)); // as the page was left
    if (list.byId.has(before)) open(before);
    else if (innerWidth >= 700) open(list.seen[0]?.id);
  }
}

// --- the false-alarm rate -----------------------------------------------------------------------------------

const normals = () => room.state.calibration ?? [];
const smallest = () => Math.min(room.smallest ?? 1 / (normals().length + 1), MOST_RATE / 2);
const rateAt = (v) => Number((smallest() * (MOST_RATE / smallest()) ** (v / 100)).toPrecision(2));
const placeOf = (rate) => (100 * Math.log(Math.max(rate, smallest()) / smallest())) / Math.log(MOST_RATE / smallest());

let rating = 0;
async function setRate(rate) {
  const mine = ++rating;
  room.rate = rate;
  sessionStorage.setItem("rate", rate);
  el("rate-value").textContent = percent(rate);
  el("rate").setAttribute("aria-valuetext", percent(rate));
  const n = normals().length, k = Math.ceil((n + 1) * (1 - rate) - 1e-9); // as the server will say, while it is asked
  room.threshold = n && k <= n ? normals()[Math.max(k, 1) - 1] : null;
  judge();
  try {
    const said = await get(`/room/threshold?rate=${rate}`);
    if (mine !== rating) return;
    Object.assign(room, { threshold: said.threshold, smallest: said.smallest });
    el("rate-words").textContent = sentence(said.words);
    el("rate").value = placeOf(rate);
    judge();
    if (room.detail) loadFindings();
  } catch (error) {
    if (mine === rating && error.status > 401) el("rate-words").textContent = error.message;
  }
}
let settling = null;
el("rate").addEventListener("input", () => {
  const rate = rateAt(Number(el("rate").value));
  el("rate-value").textContent = percent(rate);
  clearTimeout(settling);
  settling = setTimeout(() => setRate(rate), SETTLED);
});

/** Flags all anew, and draws what hangs on it. */
function judge() {
  const scores = list.cases.map((c) => c.score);
  Object.assign(list, { threshold: room.threshold, rate: room.rate, scale: scaleOf(normals(), scores) });
  list.arrange();
  histogram(el("histogram"), { normals: normals(), scores, scale: list.scale, threshold: room.threshold, open: room.detail?.score ?? null });
  reader.judge();
  if (room.detail) panel.show(room.detail, { flagged: flagged(room.detail), rate: room.rate, normals: normals() });
}

// --- the open case ------------------------------------------------------------------------------------------

let opening = null;
async function open(id, byHand = false) {
  if (!id) return;
  if (byHand) lead("view");
  list.select(id, byHand && document.activeElement?.closest?.("#rows") !== null);
  if (room.detail?.id === id && !opening) return;
  marks.flush();
  const hurried = opening !== null; // a key held down passes images by
  opening?.abort();
  const mine = (opening = new AbortController());
  delete el("stage").dataset.shown;
  room.detail = null; // no mark goes to an image that is left, nor to one that is not seen yet
  const slow = setTimeout(() => reader.wait(), SLOW);
  try {
    if (hurried) await new Promise((yes) => setTimeout(yes, SETTLED));
    if (mine !== opening) return;
    const detail = await get(`/room/cases/${encodeURIComponent(id)}`, mine.signal);
    if (mine !== opening) return;
    opening = null;
    show(detail);
  } catch (error) {
    if (mine !== opening) return;
    opening = null;
    close();
    list.select(id);
    if (!(error instanceof Failed)) throw error;
    if (error.status > 401) trouble(`This image cannot be opened: ${error.message}`);
  } finally {
    clearTimeout(slow);
  }
}

function reopen() {
  const id = room.detail?.id ?? decodeURIComponent(location.hash.slice(3));
  room.detail = null;
  if (id) open(id);
}

function show(detail) {
  room.detail = detail;
  history.replaceState(null, "", `#c=${encodeURIComponent(detail.id)}`);
  const { heat_scale: scale, colours } = room.state;
  panel.many = detail.images > 1;
  panel.findings(null, true);
  reader.show(detail, detail.worst ?? 0, detail.heat !== false && scale ? { scale, colours } : null);
  takeMark(detail.marks.find((m) => m.mine) ?? null, detail.history, true);
  const others = detail.marks.filter((m) => !m.mine);
  panel.others(others);
  reader.viewer.others = others.flatMap((m) => m.boxes ?? []);
  panel.saving("", "");
  judge();
  loadFindings();
  say(`${last(detail.name)}, score ${detail.score.toPrecision(3)}, ${flagged(detail) ? "flagged" : "not flagged"}`);
}

function close() {
  Object.assign(room, { detail: null, mark: null });
  history.replaceState(null, "", location.pathname);
  reader.close();
  panel.clear();
  list.select(null);
}

let looking = null;
async function loadFindings() {
  looking?.abort();
  const mine = (looking = new AbortController()), { id } = room.detail;
  try {
    const answer = await get(`/room/cases/${encodeURIComponent(id)}/findings?rate=${room.rate}`, mine.signal);
    if (room.detail?.id === id && mine === looking) reader.viewer.findings = panel.findings(answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Failed)) throw error;
    reader.viewer.findings = panel.findings({ findings: [], words: error.message });
  }
  choosing(null);
}

function choosing(finding) {
  reader.viewer.chosen = finding;
  panel.chosen(finding);
  reader.viewer.redraw();
}

function showFinding(finding) {
  lead("view");
  reader.to(finding.slice);
  reader.viewer.show(finding.box);
  choosing(finding);
}

function showBox(i) {
  const box = room.mark.boxes[i];
  lead("view");
  reader.to(box.slice);
  reader.viewer.show([box.x, box.y, box.w, box.h]);
  reader.viewer.select(i);
}

function showBoxes() {
  if (room.detail) panel.boxes(reader.viewer.boxes, reader.viewer.selected, room.detail.spacing, room.detail.images);
}

// --- marks --------------------------------------------------------------------------------------------------

const NONE = { verdict: "", note: "", boxes: [] };

/** Shows a mark of the server, with what is on its way to it. */
function takeMark(mark, history, whole = false) {
  const own = marks.pending(room.detail.id), before = room.mark;
  room.mark = { ...NONE, ...mark, ...own };
  room.detail.history = history;
  panel.mark(room.mark, history || Object.keys(own).length, whole || (!("note" in own) && before?.note !== room.mark.note));
  if (!("boxes" in own)) reader.viewer.boxes = room.mark.boxes ?? [];
  if (whole) reader.viewer.selected = -1;
  showBoxes();
  reader.viewer.redraw();
}

function change(fields, soon = false) {
  if (!room.detail) return;
  room.mark = { ...room.mark, ...fields };
  panel.mark(room.mark, true, false);
  marks.change(room.detail.id, fields, soon);
  listed(room.detail.id, { ...NONE, ...list.byId.get(room.detail.id)?.mark, ...fields, ...("verdict" in fields ? { flagged: flagged(room.detail) } : {}) });
}

function listed(id, mark) {
  const c = list.byId?.get(id);
  if (!c) return;
  c.mark = mark;
  list.arrange();
}

function verdict(which) {
  if (!room.detail) { say("No image is open yet."); return; }
  change({ verdict: which });
  const words = meaning(which, flagged(room.detail));
  say(`${which}${words ? `: ${words}` : ""}`);
}

function saving(id, words, kind) {
  if (room.detail?.id === id) panel.saving(words, kind);
  else if (kind === "bad") trouble(`${last(list.byId?.get(id)?.name ?? "A mark")}: ${words}`);
}

function saved(id, { mark, history }) {
  poll.outdate(); // a list on its way may not have this mark
  listed(id, mark && { ...mark, ...marks.pending(id) });
  if (room.detail?.id === id) {
    takeMark(mark, history);
    panel.saving(`Saved ${new Date(mark?.time ?? Date.now()).toLocaleTimeString(undefined, { timeStyle: "short" })}${mark?.reader ? `, by ${mark.reader}` : ""}`, "saved");
  }
  clearTimeout(teaching);
  teaching = setTimeout(() => teach.refresh(), 500);
}
let teaching = null;

async function undo() {
  const { detail } = room;
  if (!detail) return;
  if (!detail.history && !marks.unsaved) { say("Nothing to undo."); return; }
  try {
    const answer = await marks.undo(detail.id);
    if (!answer) return;
    listed(detail.id, answer.mark);
    if (room.detail?.id === detail.id) {
      takeMark(answer.mark, answer.history, true);
      panel.saving("Undone", "saved");
    }
    say("Undone");
    teach.refresh();
  } catch (error) {
    if (error.status > 401) panel.saving(error.message, "bad");
  }
}

el("note").addEventListener("input", () => change({ note: el("note").value }, true));
el("note").addEventListener("blur", () => marks.flush());
for (const button of el("verdicts").querySelectorAll("[data-verdict]")) button.addEventListener("click", () => verdict(button.dataset.verdict));
el("undo").addEventListener("click", undo);
el("next").addEventListener("click", () => open(list.beside(1)));
el("previous").addEventListener("click", () => open(list.beside(-1)));
document.addEventListener("reader", () => { room.version = null; poll(); reopen(); teach.refresh(); });

function worth() {
  const next = list.cases.filter((c) => c.next !== null && c.next !== undefined && c.id !== room.detail?.id).sort((a, b) => a.next - b.next)[0];
  if (next) open(next.id, true);
  else say("No image is marked as worth marking next.");
}

// --- forgetting ----------------------------------------------------------------------------------------------

el("forget").addEventListener("click", () => { el("more").open = false; el("sure").returnValue = ""; el("sure").showModal(); });
el("sure").addEventListener("close", async () => {
  if (el("sure").returnValue !== "yes") return;
  try {
    await marks.flush();
    await send("DELETE", "/room/cases");
    adding.refused = [];
    room.version = null;
    await poll();
    say("All images are forgotten.");
  } catch (error) {
    if (error.status > 401) trouble(error.message);
  }
});
document.addEventListener("click", (event) => { if (!event.target.closest("#more") || event.target.matches("#more a")) el("more").open = false; });

// --- tabs and keys ------------------------------------------------------------------------------------------

function tab(name, focus = true) {
  el("room").dataset.tab = name;
  choose(el("tabs"), el(`tab-${name}`), "aria-selected", "tab");
  if (focus) el(`tab-${name}`).focus();
}
/** Shows a part where it is not in sight: with three panes only the third has tabs, with two the image is always there. */
function lead(name) {
  if (innerWidth < 700 || (name !== "view" && (innerWidth < 1200 || name !== "list"))) tab(name, false);
}
for (const button of el("tabs").children) button.addEventListener("click", () => tab(button.dataset.tab));
roving(el("tabs"), "tab");
tab("list", false);

const v = reader.viewer, STEP = 4;
const ARROWS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
el("help").addEventListener("click", () => el("keys").showModal());
keys(el("keys-list"), {
  next: () => open(list.beside(1)), previous: () => open(list.beside(-1)),
  flagged: () => list.setFilter(list.show === "flagged" ? "all" : "flagged"), worth, search: () => { lead("list"); el("search").focus(); },
  agree: () => verdict("agree"), disagree: () => verdict("disagree"), unsure: () => verdict("unsure"), undo,
  note: () => { lead("case"); el("note").focus(); }, box: () => { reader.use("box"); v.tiles[0].canvas.focus({ preventScroll: true }); }, remove: () => v.removeBox(),
  nextBox: () => { if (v.boxes.length) { const i = (v.selected + 1) % v.boxes.length; reader.to(v.boxes[i].slice); v.select(i); } },
  move: () => reader.use("move"), window: () => reader.use("window"), preset: () => reader.nextPreset(), invert: () => reader.invert(),
  larger: () => v.zoom(1.25), smaller: () => v.zoom(0.8), fit: () => v.fit(), full: () => v.full(),
  overlay: () => reader.toggle("overlay"), contour: () => reader.toggle("contour"), opacity: (e) => reader.fade(e.key === "," ? -10 : 10),
  finding: () => { const all = panel.lesions; if (all.length) showFinding(all[(all.indexOf(v.chosen) + 1) % all.length]); },
  arrow: (event) => {
    const [x, y] = ARROWS[event.key];
    if (event.target.closest?.("tr[data-id]")) { if (y) open(list.beside(y)).then(() => list.select(list.current, true)); }
    else if (v.nudge(STEP * x, STEP * y, event.shiftKey)) return;
    else if (y && v.stack && !event.shiftKey) reader.go(reader.slice + y);
    else v.pan(-40 * x, -40 * y);
  },
  page: (e) => reader.go(reader.slice + (e.key === "PageUp" ? -10 : 10)), ends: (e) => reader.go(e.key === "Home" ? 0 : Infinity),
  worst: () => { if (room.detail) reader.to(room.detail.worst); },
  normals: () => reader.besides(reader.mode === "normals" ? "" : "normals"), dissolved: () => reader.besides(reader.mode === "dissolved" ? "" : "dissolved"),
  dissolve: (e) => reader.dissolve(e.key === "[" ? -25 : 25), help: () => el("keys").showModal(),
  enter: () => { if (reader.tool !== "box") return false; v.addBox(); return true; },
  escape: () => { if (el("more").open) { el("more").open = false; el("more").firstElementChild.focus(); } else if (v.selected >= 0) v.select(-1); else if (reader.tool !== "move") reader.use("move"); else choosing(null); },
});

start();
