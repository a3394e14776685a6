// The canvas viewer: tiles that show one place of several pictures, with zoom, pan, window and level, heat,
// contours and boxes. Knows pictures and pointers; knows no requests and no marks.

const MOST = 64; // screen pixels for one of the image
const GRIP = 9; // pixels around a corner that take hold of it
const INK = { contour: "#ffd23f", chosen: "#ffffff", box: "#35d0ff", other: "#d59bff", cross: "rgb(255 255 255 / .55)" };
const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

/** A length in mm that a person would choose for a scale bar of at most `most` mm. */
export function niceLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return [5, 2, 1].map((m) => m * power).find((v) => v <= most) ?? power;
}

export class Viewer {
  /** `holder`: where the tiles go. `hear`: functions called with what the reader does: `point({x, y} | null)`,
   *  `window(low, high)`, `boxes(boxes)`, `select(index)`, `finding(finding)`, `step(slices)`, `view()`. */
  constructor(holder, hear) {
    Object.assign(this, { holder, hear, tiles: [], tool: "move", invert: false, low: 0, high: 1 });
    Object.assign(this, { pixels: null, size: null, aspect: 1, spacing: null, stack: false, slice: 0 });
    Object.assign(this, { heat: null, opacity: 0.55, overlay: true, contour: true, findings: [], chosen: null });
    Object.assign(this, { boxes: [], others: [], selected: -1, cross: null, pointers: new Map(), held: null });
    this.view = { scale: 1, cx: 0, cy: 0, fit: true };
    new ResizeObserver(() => { if (this.view.fit) this.fit(); this.redraw(); }).observe(holder);
    this.setTiles([{ name: "image" }]);
  }

  /** Shows tiles: the first is the image, each other has {name, picture: a bitmap or null, words}. */
  setTiles(tiles) {
    while (this.tiles.length > tiles.length) this.tiles.pop().figure.remove();
    while (this.tiles.length < tiles.length) this.tiles.push(this._tile(this.tiles.length === 0));
    tiles.forEach((tile, i) => {
      Object.assign(this.tiles[i], { picture: tile.picture ?? null });
      this.tiles[i].caption.textContent = tile.name;
      this.tiles[i].words.textContent = tile.words ?? "";
      this.tiles[i].canvas.setAttribute("aria-label", tile.label ?? tile.name);
    });
    this.holder.dataset.tiles = tiles.length;
    if (this.view.fit) this.fit();
    this.redraw();
  }

  _tile(main) {
    const figure = document.createElement("figure"), canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption"), words = document.createElement("p");
    canvas.tabIndex = main ? 0 : -1;
    canvas.setAttribute("role", "img");
    figure.append(canvas, caption, words);
    this.holder.append(figure);
    const tile = { figure, canvas, caption, words, main, context: canvas.getContext("2d") };
    canvas.addEventListener("pointerdown", (e) => this._down(e, tile));
    canvas.addEventListener("pointermove", (e) => this._move(e, tile));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => this._up(e, tile));
    canvas.addEventListener("pointerleave", () => { this.cross = null; this.hear.point(null); this.redraw(); });
    canvas.addEventListener("wheel", (e) => this._wheel(e, tile), { passive: false });
    canvas.addEventListener("contextmenu", (e) => e.preventDefault());
    canvas.addEventListener("dblclick", () => this.fit());
    return tile;
  }

  /** Shows another image or slice; the place stays where `keep`. */
  setImage(pixels, { spacing, slice, slices, keep }) {
    Object.assign(this, { pixels, spacing, slice, stack: slices > 1 });
    this.size = [pixels.width, pixels.height];
    this.aspect = spacing ? spacing[1] / spacing[0] : 1;
    if (!keep || this.view.fit) this.fit();
    this.redraw();
  }

  /** Shows nothing. */
  clear() {
    Object.assign(this, { pixels: null, size: null, heat: null, findings: [], boxes: [], others: [], selected: -1, chosen: null });
    this.redraw();
  }

  setWindow(low, high) {
    Object.assign(this, { low, high: Math.max(high, low + 1e-9) });
    this.redraw();
  }

  // --- places -------------------------------------------------------------------------------------------

  _scaleToFit() {
    const [w, h] = this.size, boxes = this.tiles.map((t) => t.canvas.getBoundingClientRect());
    const scale = Math.min(...boxes.map((b) => Math.min((b.width - 8) / (w * this.aspect), (b.height - 8) / h)));
    return scale > 0 ? scale : 1;
  }

  fit() {
    if (!this.size) return;
    this.view = { scale: this._scaleToFit(), cx: this.size[0] / 2, cy: this.size[1] / 2, fit: true };
    this._viewed();
  }

  /** One pixel of the image on one of the screen. */
  full() {
    if (!this.size) return;
    Object.assign(this.view, { scale: 1 / devicePixelRatio, fit: false });
    this._viewed();
  }

  /** Zooms; the place at (x, y) of a tile stays where it is, the middle where none is given. */
  zoom(factor, x, y) {
    if (!this.size) return;
    const { width, height } = this.tiles[0].canvas.getBoundingClientRect(), v = this.view;
    const dx = (x ?? width / 2) - width / 2, dy = (y ?? height / 2) - height / 2;
    const scale = clamp(v.scale * factor, this._scaleToFit() / 4, MOST);
    v.cx += dx / (v.scale * this.aspect) - dx / (scale * this.aspect);
    v.cy += dy / v.scale - dy / scale;
    Object.assign(v, { scale, fit: false });
    this._viewed();
  }

  /** Moves by screen pixels. */
  pan(dx, dy) {
    if (!this.size) return;
    const v = this.view;
    v.cx = clamp(v.cx - dx / (v.scale * this.aspect), 0, this.size[0]);
    v.cy = clamp(v.cy - dy / v.scale, 0, this.size[1]);
    v.fit = false;
    this._viewed();
  }

  /** Brings a box [x, y, w, h] of the image to the middle, at a third of the tile. */
  show([x, y, w, h]) {
    if (!this.size) return;
    const { width, height } = this.tiles[0].canvas.getBoundingClientRect();
    const scale = Math.min(width / (3 * Math.max(w, 4) * this.aspect), height / (3 * Math.max(h, 4)));
    this.view = { scale: clamp(scale, this._scaleToFit(), 16), cx: x + w / 2, cy: y + h / 2, fit: false };
    this._viewed();
  }

  _viewed() { this.hear.view(); this.redraw(); }

  _toImage(tile, event) {
    const b = tile.canvas.getBoundingClientRect(), v = this.view;
    return { x: (event.clientX - b.left - b.width / 2) / (v.scale * this.aspect) + v.cx, y: (event.clientY - b.top - b.height / 2) / v.scale + v.cy };
  }

  // --- pointers -----------------------------------------------------------------------------------------

  _wheel(event, tile) {
    if (!this.size) return;
    event.preventDefault();
    const by = event.deltaY * (event.deltaMode === 1 ? 30 : 1);
    if (this.stack && !event.ctrlKey && !event.metaKey) { // one slice for a notch, several for a flick
      this.rolled = (this.rolled ?? 0) + clamp(by, -300, 300);
      const steps = Math.trunc(this.rolled / 50);
      if (steps) { this.rolled -= steps * 50; this.hear.step(clamp(steps, -3, 3)); }
      return;
    }
    const b = tile.canvas.getBoundingClientRect();
    this.zoom(Math.exp(-clamp(by, -300, 300) / (event.ctrlKey ? 150 : 400)), event.clientX - b.left, event.clientY - b.top);
  }

  _down(event, tile) {
    if (!this.size) return;
    tile.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (this.pointers.size === 2) { this.held = { pinch: true }; return; }
    const at = this._toImage(tile, event), moving = event.button === 1 || event.altKey;
    const does = event.button === 2 ? "window" : moving ? "move" : this.tool;
    this.held = { does: does === "box" && !tile.main ? "move" : does, start: at, x: event.clientX, y: event.clientY, moved: false };
    if (this.held.does === "window") Object.assign(this.held, { low: this.low, high: this.high });
    if (this.held.does === "box") this._hold(at);
  }

  /** Takes hold of the chosen box, its corner, or begins another. */
  _hold(at) {
    const near = GRIP / this.view.scale, box = this.boxes[this.selected];
    if (box && box.slice === this.slice) {
      const corner = [[0, 0], [1, 0], [0, 1], [1, 1]].find(([i, j]) =>
        Math.abs(box.x + i * box.w - at.x) * this.aspect < near && Math.abs(box.y + j * box.h - at.y) < near);
      if (corner) { this.held.fixed = { x: box.x + (1 - corner[0]) * box.w, y: box.y + (1 - corner[1]) * box.h }; return; }
      if (within(box, at)) { this.held.from = { ...box }; return; }
    }
    this.held.fixed = at;
    this.held.fresh = true;
  }

  _move(event, tile) {
    if (!this.size) return;
    const before = this.pointers.get(event.pointerId), at = this._toImage(tile, event);
    this.cross = { ...at, tile };
    this.hear.point(at);
    this.redraw();
    if (!before) return;
    const dx = event.clientX - before.clientX, dy = event.clientY - before.clientY;
    if (this.held?.pinch) { this._pinch(event, tile); return; }
    this.pointers.set(event.pointerId, event);
    const held = this.held;
    if (!held) return;
    if (Math.hypot(event.clientX - held.x, event.clientY - held.y) > 3) held.moved = true;
    if (!held.moved) return;
    if (held.does === "move") this.pan(dx, dy);
    else if (held.does === "window") this._dragWindow(event, held);
    else this._dragBox(at, held);
  }

  _pinch(event, tile) {
    const [a, b] = [...this.pointers.values()].map((p) => ({ x: p.clientX, y: p.clientY }));
    this.pointers.set(event.pointerId, event);
    const [c, d] = [...this.pointers.values()].map((p) => ({ x: p.clientX, y: p.clientY }));
    if (!b || !d) return;
    const corner = tile.canvas.getBoundingClientRect(), mx = (c.x + d.x) / 2, my = (c.y + d.y) / 2;
    this.pan(mx - (a.x + b.x) / 2, my - (a.y + b.y) / 2);
    this.zoom(Math.hypot(c.x - d.x, c.y - d.y) / Math.max(Math.hypot(a.x - b.x, a.y - b.y), 1), mx - corner.left, my - corner.top);
  }

  _dragWindow(event, held) {
    const width = held.high - held.low, middle = (held.low + held.high) / 2;
    const w = width * Math.exp((event.clientX - held.x) / 200), m = middle + ((event.clientY - held.y) / 300) * width;
    this.setWindow(m - w / 2, m + w / 2);
    this.hear.window(this.low, this.high);
  }

  _dragBox(at, held) {
    const [w, h] = this.size, x = clamp(at.x, 0, w), y = clamp(at.y, 0, h);
    if (held.from) { // moved whole
      const box = { ...held.from };
      box.x = clamp(box.x + at.x - held.start.x, 0, w - box.w);
      box.y = clamp(box.y + at.y - held.start.y, 0, h - box.h);
      this.boxes = this.boxes.map((b, i) => (i === this.selected ? box : b));
    } else {
      const f = { x: clamp(held.fixed.x, 0, w), y: clamp(held.fixed.y, 0, h) };
      const box = { slice: this.slice, x: Math.min(f.x, x), y: Math.min(f.y, y), w: Math.abs(x - f.x), h: Math.abs(y - f.y) };
      if (held.fresh) { this.boxes = [...this.boxes, box]; this.selected = this.boxes.length - 1; held.fresh = false; }
      else this.boxes = this.boxes.map((b, i) => (i === this.selected ? box : b));
    }
    held.changed = true;
    this.redraw();
  }

  _up(event, tile) {
    this.pointers.delete(event.pointerId);
    const held = this.held;
    this.held = null;
    if (!held || held.pinch || !this.size) return;
    if (held.changed) {
      const box = this.boxes[this.selected];
      if (box && (box.w < 2 || box.h < 2)) this.boxes = this.boxes.filter((b) => b !== box); // a slip of the hand
      this._changed();
    } else if (!held.moved && event.type === "pointerup" && tile.main) this._click(held.start);
  }

  /** Chooses what was clicked: the smallest box, else the finding. */
  _click(at) {
    const found = this.boxes.map((box, i) => ({ box, i })).filter(({ box }) => box.slice === this.slice && within(box, at));
    this.select(found.sort((a, b) => a.box.w * a.box.h - b.box.w * b.box.h)[0]?.i ?? -1);
    const finding = this.contour && this.findings.find((f) => f.slice === this.slice && within({ x: f.box[0], y: f.box[1], w: f.box[2], h: f.box[3] }, at));
    if (this.selected < 0) this.hear.finding(finding || null);
  }

  select(i) {
    this.selected = i;
    this.hear.select(i);
    this.redraw();
  }

  // --- boxes from the keyboard --------------------------------------------------------------------------

  /** Puts a box in the middle of what is seen, and chooses it. */
  addBox() {
    if (!this.size) return;
    const { width, height } = this.tiles[0].canvas.getBoundingClientRect(), v = this.view, [W, H] = this.size;
    const w = Math.min(width / (4 * v.scale * this.aspect), W / 4), h = Math.min(height / (4 * v.scale), H / 4);
    this.boxes = [...this.boxes, { slice: this.slice, x: clamp(v.cx - w / 2, 0, W - w), y: clamp(v.cy - h / 2, 0, H - h), w, h }];
    this.selected = this.boxes.length - 1;
    this._changed();
  }

  /** Moves the chosen box by screen pixels, or changes its size. Returns whether there is one. */
  nudge(dx, dy, resize) {
    const box = this.boxes[this.selected];
    if (!box || box.slice !== this.slice) return false;
    const [W, H] = this.size, x = dx / (this.view.scale * this.aspect), y = dy / this.view.scale, next = { ...box };
    if (resize) Object.assign(next, { w: clamp(box.w + x, 2, W - box.x), h: clamp(box.h + y, 2, H - box.y) });
    else Object.assign(next, { x: clamp(box.x + x, 0, W - box.w), y: clamp(box.y + y, 0, H - box.h) });
    this.boxes = this.boxes.map((b, i) => (i === this.selected ? next : b));
    this._changed();
    return true;
  }

  removeBox(i = this.selected) {
    if (!this.boxes[i]) return false;
    this.boxes = this.boxes.filter((_, j) => j !== i);
    this.selected = -1;
    this._changed();
    return true;
  }

  _changed() {
    this.selected = Math.min(this.selected, this.boxes.length - 1);
    this.hear.boxes(this.boxes);
    this.hear.select(this.selected);
    this.redraw();
  }

  // --- drawing ------------------------------------------------------------------------------------------

  redraw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.tiles.forEach((tile) => this._draw(tile));
    });
  }

  _draw(tile) {
    const { canvas, context: c } = tile, { width, height } = canvas.getBoundingClientRect(), d = devicePixelRatio;
    const W = Math.round(width * d), H = Math.round(height * d);
    if (canvas.width !== W || canvas.height !== H) Object.assign(canvas, { width: W, height: H });
    c.setTransform(1, 0, 0, 1, 0, 0);
    c.clearRect(0, 0, W, H);
    if (!this.size || !W || !H) return;
    const [w, h] = this.size, v = this.view, sx = v.scale * this.aspect, sy = v.scale;
    const x0 = width / 2 - v.cx * sx, y0 = height / 2 - v.cy * sy;
    c.setTransform(d, 0, 0, d, 0, 0);
    c.imageSmoothingEnabled = v.scale < 12;
    c.imageSmoothingQuality = "high";
    if (tile.main) {
      const seen = [clamp(-x0 / sx, 0, w), clamp(-y0 / sy, 0, h), clamp((width - x0) / sx, 0, w), clamp((height - y0) / sy, 0, h)];
      const { canvas: from, box } = this.pixels.draw(1 / (Math.min(sx, sy) * d), seen, this.low, this.high, this.invert);
      c.drawImage(from, x0 + box[0] * sx, y0 + box[1] * sy, box[2] * sx, box[3] * sy);
      if (this.heat && this.overlay) {
        c.globalAlpha = this.opacity;
        c.imageSmoothingEnabled = true;
        c.drawImage(this.heat.canvas, x0, y0, w * sx, h * sy);
        c.globalAlpha = 1;
      }
    } else if (tile.picture) {
      c.filter = this.invert ? "invert(1)" : "none";
      c.drawImage(tile.picture, x0, y0, w * sx, h * sy);
      c.filter = "none";
    }
    const to = (x, y) => [x0 + x * sx, y0 + y * sy];
    if (tile.main) {
      if (this.contour) this._drawFindings(c, to, width, height);
      this.others.forEach((b) => this._drawBox(c, to, b, INK.other, [5, 4]));
      this.boxes.forEach((b, i) => this._drawBox(c, to, b, INK.box, [], i === this.selected));
      if (this.spacing) this._drawBar(c, width, height, v.scale / this.spacing[0]);
    }
    if (this.cross && this.cross.tile !== tile) {
      const [x, y] = to(this.cross.x, this.cross.y);
      c.strokeStyle = INK.cross;
      c.lineWidth = 1;
      c.beginPath();
      for (const [ax, ay] of [[1, 0], [0, 1]]) for (const s of [-1, 1]) { c.moveTo(x + s * ax * 5, y + s * ay * 5); c.lineTo(x + s * ax * 14, y + s * ay * 14); }
      c.stroke();
    }
  }

  _drawFindings(c, to, wide, high) {
    for (const finding of this.findings) {
      if (finding.slice !== this.slice) continue;
      c.beginPath();
      for (const ring of finding.contour) {
        ring.forEach(([x, y], i) => (i ? c.lineTo(...to(x, y)) : c.moveTo(...to(x, y))));
        c.closePath();
      }
      stroke(c, finding === this.chosen ? INK.chosen : INK.contour, finding === this.chosen ? 2.5 : 1.5);
      const at = to(finding.box[0] + finding.box[2], finding.box[1]), x = clamp(at[0], 0, wide - 16), y = clamp(at[1], 12, high - 4);
      c.font = "600 12px system-ui, sans-serif";
      c.lineWidth = 3;
      c.strokeStyle = "rgb(0 0 0 / .8)";
      c.strokeText(finding.number, x + 3, y + 2);
      c.fillStyle = INK.contour;
      c.fillText(finding.number, x + 3, y + 2);
    }
  }

  _drawBox(c, to, box, ink, dash, chosen = false) {
    if (box.slice !== this.slice) return;
    const [x, y] = to(box.x, box.y), [r, b] = to(box.x + box.w, box.y + box.h);
    c.beginPath();
    c.rect(x, y, r - x, b - y);
    c.setLineDash(dash);
    stroke(c, ink, chosen ? 2.5 : 1.5);
    c.setLineDash([]);
    c.fillStyle = ink;
    if (chosen) for (const [i, j] of [[x, y], [r, y], [x, b], [r, b]]) c.fillRect(i - 3.5, j - 3.5, 7, 7);
  }

  _drawBar(c, width, height, perMm) {
    const mm = niceLength(Math.min(width / 4, 160) / perMm), length = mm * perMm, x = width - 14 - length, y = height - 14;
    c.beginPath();
    c.moveTo(x, y - 5); c.lineTo(x, y); c.lineTo(x + length, y); c.lineTo(x + length, y - 5);
    stroke(c, "#e8eaed", 1.5);
    c.font = "12px system-ui, sans-serif";
    c.textAlign = "center";
    c.fillStyle = "#e8eaed";
    c.fillText(mm >= 10 ? `${mm / 10} cm` : `${mm} mm`, x + length / 2, y - 8);
    c.textAlign = "start";
  }
}

const within = (b, at) => at.x >= b.x && at.x <= b.x + b.w && at.y >= b.y && at.y <= b.y + b.h;

function stroke(c, ink, width) { // on a dark edge, so that it is seen on any ground
  c.lineWidth = width + 2;
  c.strokeStyle = "rgb(0 0 0 / .55)";
  c.stroke();
  c.lineWidth = width;
  c.strokeStyle = ink;
  c.stroke();
}
