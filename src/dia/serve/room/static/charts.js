// Small charts, made of elements: a curve of the loss, and a histogram of scores with a threshold.

const NS = "http://www.w3.org/2000/svg";
const [H, LEFT, BELOW, TOP] = [190, 52, 26, 20];
let W = 560; // as wide as the window lets it be, so that words stay large enough


/** Makes an element of SVG with attributes and text. */
function svg(tag, attributes = {}, text = "") {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

function frame(description, low, high, bottom, top, across) {
  W = Math.max(240, Math.min(560, innerWidth - 96));
  const made = svg("svg", { viewBox: `0 0 ${W} ${H}`, class: "chart", role: "img" });
  made.setAttribute("aria-label", description);
  const x = (v) => LEFT + ((v - low) / (high - low || 1)) * (W - LEFT - 10);
  const y = (v) => H - BELOW - ((v - bottom) / (top - bottom || 1)) * (H - BELOW - TOP);
  made.append(svg("path", { class: "axis", d: `M${LEFT} ${TOP}V${H - BELOW}H${W - 10}` }));
  for (const v of [bottom, top]) made.append(svg("text", { x: LEFT - 6, y: y(v) + 4, "text-anchor": "end" }, short(v)));
  made.append(svg("text", { x: LEFT, y: H - 9 }, short(low)));
  made.append(svg("text", { x: W - 10, y: H - 9, "text-anchor": "end" }, `${short(high)} ${across}`));
  return { made, x, y };
}

/** A number in few characters. */
export function short(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
}

/** The loss by step: points are [step, loss]. */
export function curveOf(points, stage) {
  const losses = points.map((p) => p[1]).filter(Number.isFinite);
  const last = points.at(-1);
  const { made, x, y } = frame(
    `Loss of the ${stage}: ${short(points[0][1])} at step ${points[0][0]}, ${short(last[1])} at step ${last[0]}`,
    points[0][0], last[0], Math.min(...losses), Math.max(...losses), "steps",
  );
  const d = points.filter((p) => Number.isFinite(p[1])).map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`);
  made.append(svg("path", { class: "curve", d: d.join("") }));
  return made;
}

/** The scores of normals: bins are [from, to, count]; a threshold or null. */
export function histogramOf(bins, threshold) {
  const low = bins[0][0];
  const high = Math.max(bins.at(-1)[1], threshold ?? -Infinity);
  const most = Math.max(...bins.map((b) => b[2]));
  const said = threshold === null ? "no threshold" : `threshold at ${short(threshold)}`;
  const { made, x, y } = frame(`Scores of normal images, ${said}`, low, high, 0, most, "score");
  for (const [from, to, count] of bins) {
    const width = Math.max(x(to) - x(from) - 1, 1);
    if (count) made.append(svg("rect", { class: "bar", x: x(from), y: y(count), width, height: y(0) - y(count) }));
  }
  if (threshold !== null) {
    const at = x(threshold);
    made.append(svg("path", { class: "threshold", d: `M${at} ${TOP}V${H - BELOW}` }));
    const end = at > W / 2;
    made.append(svg("text", { class: "threshold-words", x: at + (end ? -5 : 5), y: TOP - 8, "text-anchor": end ? "end" : "start" }, "threshold"));
  }
  return made;
}
