// Pixels and heat of slices: fetched one after the other, the one wanted last first, and kept while there is room.

import { bytes, Failed } from "./api.js";
import { heatCanvas, Pixels } from "./pixels.js";

const KEPT = 400e6; // bytes
const AHEAD = 4; // slices fetched on each side of the one in view

export class Slices {
  /** `detail`: a case of the server. `heats`: {scale, colours}, or null without heatmaps. `ready(k, slice)` and
   *  `failed(error)` are called as slices come. */
  constructor(detail, heats, ready, failed) {
    Object.assign(this, { detail, heats, ready, failed, kept: new Map(), wanted: 0, stop: new AbortController() });
    this.path = `/room/cases/${encodeURIComponent(detail.id)}/slices`;
  }

  /** Asks for a slice; `ready` hears of it, at once where it is kept. */
  want(k) {
    this.wanted = k;
    const known = this.kept.get(k);
    if (known) {
      this.kept.delete(k); // and last in the order of use
      this.kept.set(k, known);
      this.ready(k, known);
    }
    this.working ??= this._work().finally(() => { this.working = null; });
  }

  async _work() {
    for (;;) {
      const k = this._next();
      if (k === null || this.stop.signal.aborted) return;
      try {
        const slice = await this._load(k);
        this.kept.set(k, slice);
        this._forget();
        if (k === this.wanted) this.ready(k, slice);
      } catch (error) {
        if (error.name === "AbortError") return;
        if (k === this.wanted) this.failed(error);
        return;
      }
    }
  }

  _next() {
    const each = this.detail.shape[0] * this.detail.shape[1] * this.detail.channels * 4, n = this.detail.images;
    if (!this.kept.has(this.wanted)) return this.wanted;
    for (let i = 1; i <= AHEAD && each * (2 * i + 1) < KEPT; i++) {
      for (const k of [this.wanted + i, this.wanted - i]) if (k >= 0 && k < n && !this.kept.has(k)) return k;
    }
    return null;
  }

  async _load(k) {
    const { shape: [height, width], channels, dtype, model_shape } = this.detail, signal = this.stop.signal;
    const path = `${this.path}/${this.detail.slices[k].number}`;
    const heat = this.heats && bytes(`${path}/heat`, signal).catch((error) => {
      if (error instanceof Failed && error.status >= 400 && error.status !== 401) return null; // without, the image is shown
      throw error;
    });
    const [pixels, map] = await Promise.all([bytes(`${path}/pixels`, signal), heat]);
    return {
      pixels: new Pixels(pixels, { width, height, channels, dtype }),
      heat: map && heatCanvas(map, model_shape, this.heats.scale, this.heats.colours),
    };
  }

  _forget() {
    let all = [...this.kept.values()].reduce((sum, { pixels }) => sum + pixels.bytes, 0);
    for (const [k, { pixels }] of this.kept) {
      if (all <= KEPT || k === this.wanted) break;
      all -= pixels.bytes;
      this.kept.delete(k);
    }
  }

  close() {
    this.stop.abort();
    this.kept.clear();
  }
}
