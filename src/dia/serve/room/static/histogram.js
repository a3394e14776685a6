// The histogram of the normals' scores and of the list's, with the threshold and the open image's place. An SVG.

const NS = "http://www.w3.org/2000/svg";
const WIDE = 360, HIGH = 84, BASE = 70, BINS = 45;

function draw(tag, attributes, text) {
  const element = document.createElementNS(NS, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const counted = (values, low, high) => {
  const bins = new Array(BINS).fill(0);
  for (const v of values) bins[Math.min(Math.max(Math.floor(((v - low) / (high - low)) * BINS), 0), BINS - 1)]++;
  return bins;
};

/** The ends of the scale: those of all scores, but no single one so far off that the others lie in one place. */
export function scaleOf(normals, scores) {
  const all = Float64Array.from([...normals, ...scores]).sort();
  if (!all.length) return [0, 1, 0, 1];
  const at = (q) => all[Math.min(Math.floor(q * all.length), all.length - 1)];
  const low = at(0), spread = Math.max(at(0.95) - low, 1e-9), high = Math.max(Math.min(all.at(-1), low + 2.5 * spread), low + 1e-6);
  const own = normals.length ? normals : scores;
  return [low, high, Math.max(own[0] ?? low, low), Math.min(own.at(-1) ?? high, high)];
}

/** Draws it. `open`: the score of the open image, or null. Each group is drawn to its own height. */
export function histogram(svg, { normals, scores, scale: [low, high], threshold, open }) {
  const x = (v) => 4 + ((Math.min(Math.max(v, low), high) - low) / (high - low)) * (WIDE - 8), step = (WIDE - 8) / BINS;
  const parts = [];
  for (const [values, name] of [[normals, "normals"], [scores, "batch"]]) {
    const bins = counted(values, low, high), most = Math.max(...bins, 1);
    const y = (n) => BASE - (n ? Math.max((n / most) * (BASE - 8), 2) : 0);
    let path = `M4 ${BASE}`;
    bins.forEach((n, i) => { path += `V${y(n).toFixed(1)}H${(4 + (i + 1) * step).toFixed(1)}`; });
    parts.push(draw("path", { d: `${path}V${BASE}Z`, class: name }));
  }
  parts.push(draw("line", { x1: 4, x2: WIDE - 4, y1: BASE, y2: BASE, class: "axis" }));
  if (threshold !== null) parts.push(draw("line", { x1: x(threshold), x2: x(threshold), y1: 4, y2: BASE, class: "cut" }));
  if (open !== null) parts.push(draw("path", { d: `M${x(open)} ${BASE - 1}l-5 9h10z`, class: "open" }));
  svg.replaceChildren(...parts);
  const flagged = threshold === null ? 0 : scores.filter((v) => v > threshold).length;
  svg.setAttribute("aria-label", `Scores from ${low.toPrecision(3)} to ${high.toPrecision(3)}: ${normals.length} normals, ${scores.length} of this list` +
    (threshold === null ? "; no threshold." : `; threshold ${threshold.toPrecision(3)}, above it ${flagged} of this list.`) +
    (open === null ? "" : ` The open image has ${open.toPrecision(3)}.`));
}
