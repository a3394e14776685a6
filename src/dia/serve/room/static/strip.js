// The strip of scores along a volume: a slider over its slices, on which those flagged stand out. A canvas.

const HIGH = 44;

export class Strip {
  /** `canvas`: with the role of a slider. `go(slice)` is called with the slice that was chosen. */
  constructor(canvas, go) {
    Object.assign(this, { canvas, go, slices: [], slice: 0, flagged: () => false, threshold: null });
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    const at = (event) => {
      const box = canvas.getBoundingClientRect(), n = this.slices.length;
      this.go(Math.min(Math.max(Math.floor(((event.clientX - box.left) / box.width) * n), 0), n - 1));
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); this.held = true; at(event); });
    canvas.addEventListener("pointermove", (event) => { if (this.held) at(event); });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { this.held = false; });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
      if (!step) return; // pages and ends are keys of the page
      event.preventDefault();
      this.go(this.slice + step);
    });
  }

  /** Shows a volume: its slices' {number, score, p_value}, and which are flagged. */
  show(slices, flagged, threshold) {
    Object.assign(this, { slices, flagged, threshold });
    this.canvas.setAttribute("aria-valuemax", slices.length);
    this.at(this.slice);
  }

  /** Marks the slice in view. */
  at(slice) {
    this.slice = slice;
    const now = this.slices[slice];
    if (!now) return;
    this.canvas.setAttribute("aria-valuenow", slice + 1);
    this.canvas.setAttribute("aria-valuetext", `slice #${now.number} (${slice + 1} of ${this.slices.length}), score ${now.score.toPrecision(3)}${this.flagged(now) ? ", flagged" : ""}`);
    this.draw();
  }

  draw() {
    const { canvas } = this, wide = canvas.clientWidth, d = devicePixelRatio, n = this.slices.length;
    if (!wide || !n) return;
    const W = Math.round(wide * d), H = Math.round(HIGH * d);
    if (canvas.width !== W || canvas.height !== H) Object.assign(canvas, { width: W, height: H });
    const c = canvas.getContext("2d"), style = getComputedStyle(canvas), colour = (name) => style.getPropertyValue(name).trim();
    c.setTransform(d, 0, 0, d, 0, 0);
    c.clearRect(0, 0, wide, HIGH);
    const scores = this.slices.map((s) => s.score), cut = this.threshold;
    const low = Math.min(...scores, cut ?? Infinity), high = Math.max(...scores, cut ?? -Infinity), spread = Math.max(high - low, 1e-9);
    const y = (v) => HIGH - 3 - (0.12 + 0.84 * ((v - low) / spread)) * (HIGH - 8), step = wide / n;
    scores.forEach((v, i) => {
      c.fillStyle = colour(this.flagged(this.slices[i]) ? "--flagged" : "--plain");
      c.fillRect(i * step, y(v), Math.max(step - (step > 4 ? 1 : 0), 1), HIGH - 3 - y(v));
    });
    if (cut !== null) {
      c.strokeStyle = colour("--cut");
      c.setLineDash([4, 3]);
      c.beginPath();
      c.moveTo(0, y(cut));
      c.lineTo(wide, y(cut));
      c.stroke();
      c.setLineDash([]);
    }
    c.strokeStyle = colour("--here");
    c.lineWidth = 2;
    c.strokeRect(Math.min(this.slice * step, wide - 3), 1, Math.max(step, 3), HIGH - 2);
  }
}
