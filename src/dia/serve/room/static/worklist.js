// The worklist: order, filters, search, and a table of which only the rows in sight exist. Knows cases; knows no
// requests.

const BEYOND = 6; // rows kept above and below those in sight
const VERDICTS = { agree: "✓", disagree: "✗", unsure: "?" };
const WORDS = { agree: "agreed", disagree: "disagreed", unsure: "unsure" };

/** An element with attributes (`text` for its text) and children. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") element.textContent = value;
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

/** A score with three digits that count. */
export const short = (v) => (v === null || v === undefined ? "–" : Number(v) === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(1) : String(Number(v.toPrecision(3))));
export const pShort = (p) => (p === null || p === undefined ? "–" : p < 0.0995 ? p.toFixed(3) : p.toFixed(2));

const FILTERS = {
  all: { words: "All", has: () => true },
  flagged: { words: "Flagged", has: (c, list) => list.flagged(c) },
  unmarked: { words: "Unmarked", has: (c) => !c.mark?.verdict },
  marked: { words: "Marked", has: (c) => Boolean(c.mark?.verdict) },
  unsure: { words: "Unsure", has: (c) => c.mark?.verdict === "unsure" },
  next: { words: "Worth marking next", has: (c) => c.next !== null && c.next !== undefined },
};

const names = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
const RANK = { agree: 1, unsure: 2, disagree: 3 };
const ORDERS = { // each ascending
  name: (a, b) => names.compare(a.name, b.name),
  score: (a, b) => a.score - b.score,
  p_value: (a, b) => (a.p_value ?? 2) - (b.p_value ?? 2) || b.score - a.score,
  verdict: (a, b) => (RANK[a.mark?.verdict] ?? 0) - (RANK[b.mark?.verdict] ?? 0),
  note: (a, b) => Boolean(a.mark?.note) - Boolean(b.mark?.note),
};

export class Worklist {
  /** `parts`: {box, body, none, filter, search, heads}: elements. `open(id)`: opens a case. */
  constructor(parts, open) {
    Object.assign(this, { ...parts, open, cases: [], seen: [], current: null, sort: "score", down: true, show: "all" });
    this.threshold = null;
    this.rate = 0;
    this.scale = [0, 1, 0, 1]; // ends of the bars, and of the normals' scores
    this.rows = new Map();
    this.filter.append(...Object.keys(FILTERS).map((key) => make("option", { value: key })));
    this.filter.addEventListener("change", () => this.setFilter(this.filter.value));
    this.search.addEventListener("input", () => this.arrange());
    for (const head of this.heads) head.addEventListener("click", () => this.sortBy(head.dataset.sort));
    this.box.addEventListener("scroll", () => this._rows(), { passive: true });
    new ResizeObserver(() => this._rows()).observe(this.box);
    this.body.addEventListener("click", (event) => {
      const row = event.target.closest("tr[data-id]");
      if (row) this.open(row.dataset.id, true);
    });
    this.body.addEventListener("keydown", (event) => {
      const row = event.target.closest("tr[data-id]");
      if (row && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); this.open(row.dataset.id, true); }
    });
  }

  /** Whether a case is flagged at the rate in use, a volume by its p-value; of a slice, whether it is above the threshold. */
  flagged(c) {
    if (c.images > 1) return c.p_value <= this.rate + 1e-9;
    return this.threshold !== null && c.score > this.threshold;
  }

  setFilter(show) {
    this.show = show;
    if (show === "next") Object.assign(this, { sort: "next", down: true });
    else if (this.sort === "next") Object.assign(this, { sort: "score", down: true });
    this.arrange();
  }

  sortBy(key) {
    this.down = this.sort === key ? !this.down : key !== "name" && key !== "p_value";
    this.sort = key;
    this.arrange();
  }

  /** Takes the cases of the server, or keeps those it has, and shows them in order. */
  arrange(cases = this.cases) {
    this.cases = cases;
    this.byId = new Map(cases.map((c) => [c.id, c]));
    const sought = this.search.value.trim().toLowerCase();
    const order = this.sort === "flag" ? (a, b) => this.flagged(a) - this.flagged(b) || a.score - b.score
      : this.sort === "next" ? (a, b) => b.next - a.next : ORDERS[this.sort];
    const sign = this.down ? -1 : 1;
    this.seen = cases.filter((c) => FILTERS[this.show].has(c, this) && (!sought || c.name.toLowerCase().includes(sought)));
    this.seen.sort((a, b) => sign * order(a, b) || b.score - a.score || names.compare(a.name, b.name));
    this.place = new Map(this.seen.map((c, i) => [c.id, i]));
    this.was = this.place.get(this.current) ?? this.was;
    this._heads();
    this.filter.value = this.show;
    for (const option of this.filter.options) {
      const filter = FILTERS[option.value];
      option.textContent = `${filter.words} (${cases.filter((c) => filter.has(c, this)).length})`;
    }
    this.none.hidden = this.seen.length > 0;
    this.box.firstElementChild.setAttribute("aria-rowcount", this.seen.length + 1);
    this.rows.forEach((row) => { row.stale = true; });
    this._rows();
  }

  _heads() {
    for (const head of this.heads) {
      const mine = head.dataset.sort === this.sort, cell = head.closest("th");
      if (mine) cell.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
  }

  /** The case `steps` further down the list than the current one; null at an end. */
  beside(steps) {
    const at = this.place?.get(this.current);
    if (at !== undefined) return this.seen[at + steps]?.id ?? null;
    return this.seen[Math.max((this.was ?? 0) + (steps > 0 ? steps - 1 : steps), 0)]?.id ?? null; // it left the filter
  }

  /** Marks a case as the open one, and brings its row into sight. */
  select(id, focus = false) {
    this.current = id;
    const at = this.place?.get(id), high = this._high();
    if (at !== undefined) {
      this.was = at;
      const head = this.box.querySelector("thead").offsetHeight, room = this.box.clientHeight - head;
      this.box.scrollTop = Math.min(Math.max(this.box.scrollTop, (at + 1) * high - room), at * high);
    }
    this._rows();
    if (focus) this.rows.get(id)?.element.focus({ preventScroll: true });
  }

  _high() {
    return parseFloat(getComputedStyle(this.box).getPropertyValue("--row")) || 52;
  }

  /** Draws the rows in sight. */
  _rows() {
    const high = this._high(), first = Math.max(Math.floor(this.box.scrollTop / high) - BEYOND, 0);
    const last = Math.min(Math.ceil((this.box.scrollTop + this.box.clientHeight) / high) + BEYOND, this.seen.length);
    const wanted = new Set(this.seen.slice(first, last).map((c) => c.id));
    const focused = document.activeElement?.closest?.("tr[data-id]");
    for (const [id, row] of this.rows) {
      if (!wanted.has(id)) {
        if (row.element === focused) this.box.focus({ preventScroll: true });
        row.element.remove();
        this.rows.delete(id);
      }
    }
    this.above ??= this._space();
    this.beneath ??= this._space();
    if (!this.above.isConnected) this.body.append(this.above, this.beneath);
    this.above.firstChild.style.height = `${first * high}px`;
    this.beneath.firstChild.style.height = `${Math.max(this.seen.length - last, 0) * high}px`;
    const reachable = this.place?.has(this.current) ? this.current : this.seen[0]?.id;
    let after = this.above;
    for (let i = first; i < last; i++) {
      const c = this.seen[i];
      let row = this.rows.get(c.id);
      if (!row) this.rows.set(c.id, (row = { element: this._row(c), stale: true }));
      if (row.stale) this._fill(row.element, c);
      row.stale = false;
      row.element.setAttribute("aria-rowindex", i + 2);
      row.element.tabIndex = c.id === reachable ? 0 : -1;
      if (c.id === this.current) row.element.setAttribute("aria-current", "true");
      else row.element.removeAttribute("aria-current");
      if (after.nextSibling !== row.element) after.after(row.element);
      after = row.element;
    }
  }

  _space() {
    return make("tr", { "aria-hidden": "true", class: "space" }, make("td"));
  }

  _row(c) {
    const thumb = make("img", { src: `/room/cases/${encodeURIComponent(c.id)}/thumb`, alt: "", loading: "lazy", width: 40, height: 40, decoding: "async" });
    const bar = make("span", { class: "bar", "aria-hidden": "true" }, make("i", { class: "range" }), make("i", { class: "at" }), make("i", { class: "cut" }));
    return make("tr", { "data-id": c.id },
      make("td", { class: "name" }, thumb, make("span", { class: "text" }), bar),
      ...["score", "p", "flag", "verdict", "note"].map((name) => make("td", { class: name })));
  }

  _fill(row, c) {
    const [name, score, p, flag, verdict, note] = row.children, flagged = this.flagged(c);
    const text = name.querySelector(".text");
    const folder = c.name.slice(0, -last(c.name).length - 1).split("/").at(-1);
    text.replaceChildren(make("b", { text: last(c.name), title: c.name }), ...(c.images > 1 ? [make("small", { class: "count", text: `${c.images} slices` })] : []),
      ...(folder ? [make("small", { text: folder })] : []));
    row.classList.toggle("flagged", flagged);
    const [low, high, normalLow, normalHigh] = this.scale, at = (v) => `${100 * Math.min(Math.max((v - low) / Math.max(high - low, 1e-12), 0), 1)}%`;
    const [range, dot, cut] = name.querySelector(".bar").children;
    range.style.left = at(normalLow);
    range.style.width = `calc(${at(normalHigh)} - ${at(normalLow)})`;
    dot.style.left = at(c.score);
    cut.hidden = this.threshold === null;
    cut.style.left = at(this.threshold ?? 0);
    score.replaceChildren(short(c.score), make("small", { "aria-hidden": "true", text: `p ${pShort(c.p_value)}` })); // where there is no room for the column
    p.textContent = pShort(c.p_value);
    flag.replaceChildren(...(flagged ? [sign("⚑", "flagged")] : []));
    const mine = c.mark?.verdict;
    verdict.className = `verdict ${mine ?? ""}`;
    const old = mine && mine !== "unsure" && c.mark.flagged !== flagged;
    verdict.replaceChildren(
      ...(mine ? [sign(VERDICTS[mine] + (old ? "*" : ""), WORDS[mine] + (old ? ", when the flag was another" : ""))] : []),
      ...(c.mark?.boxes?.length ? [sign("▢", `${c.mark.boxes.length} boxes`)] : []),
      ...(c.others ? [sign(`+${c.others}`, `marked by ${c.others} other${c.others > 1 ? "s" : ""}`)] : []));
    note.replaceChildren(...(c.mark?.note ? [sign("✎", `note: ${c.mark.note}`)] : []));
  }
}

/** A line of the server as a sentence. */
export const sentence = (line) => (line ? `${line[0].toUpperCase()}${line.slice(1)}${/[.!?]$/.test(line) ? "" : "."}` : "");

/** The last part of a path. */
export const last = (name) => name.split("/").at(-1) || name;

function sign(shown, said) {
  return make("span", { title: said }, make("span", { "aria-hidden": "true", text: shown }), make("span", { class: "hidden", text: said }));
}
