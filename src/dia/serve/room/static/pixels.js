// Pixels of an image: window and level, reduced copies, heat in colours. Knows arrays and canvases; no page.

const TYPES = { uint8: Uint8Array, uint16: Uint16Array, float32: Float32Array };
const WHOLE = 3e6; // pixels up to which a level is drawn whole and kept; beyond, only what is seen

const canvasOf = (w, h) => Object.assign(document.createElement("canvas"), { width: w, height: h });

/** Halves an image by the mean of 2 × 2 pixels. */
function halved({ data, w, h }, channels) {
  const W = Math.max(w >> 1, 1), H = Math.max(h >> 1, 1), out = new data.constructor(W * H * channels);
  const right = w > 1 ? channels : 0, down = h > 1 ? w * channels : 0;
  for (let y = 0, o = 0; y < H; y++) {
    for (let x = 0, i = 2 * y * w * channels; x < W; x++, i += 2 * channels) {
      for (let c = 0; c < channels; c++, o++) {
        const j = i + c;
        out[o] = (data[j] + data[j + right] + data[j + down] + data[j + right + down]) / 4;
      }
    }
  }
  return { data: out, w: W, h: H };
}

/** One image or slice.
 *  `buffer`: little-endian, rows of `width` pixels of `channels` values. */
export class Pixels {
  constructor(buffer, { width, height, channels, dtype }) {
    const data = new TYPES[dtype](buffer);
    if (data.length !== width * height * channels) throw new Error("The image has another size than was said.");
    Object.assign(this, { width, height, channels, dtype });
    this.levels = [{ data, w: width, h: height }];
    this.bytes = buffer.byteLength;
    this.scratch = null;
    this.drawn = "";
  }

  /** The values of a pixel. */
  at(x, y) {
    const start = (y * this.width + x) * this.channels;
    return this.levels[0].data.subarray(start, start + this.channels);
  }

  _level(k) {
    while (this.levels.length <= k) this.levels.push(halved(this.levels.at(-1), this.channels));
    return this.levels[k];
  }

  /** Draws the part of the image that is seen, `low` black and `high` white.
   *  `per`: pixels of the image for one of the screen; `seen`: [x0, y0, x1, y1] in the image's pixels. Returns
   *  {canvas, box}: a canvas and the place of its whole in the image's pixels. */
  draw(per, seen, low, high, invert) {
    const k = Math.max(0, Math.min(Math.floor(Math.log2(Math.max(per, 1)) + 1e-6), Math.floor(Math.log2(Math.min(this.width, this.height)))));
    const level = this._level(k), whole = level.w * level.h <= WHOLE;
    const sx = this.width / level.w, sy = this.height / level.h;
    let box = [0, 0, level.w, level.h];
    if (!whole) { // a margin, so that smoothing finds neighbours
      box = [Math.floor(seen[0] / sx) - 2, Math.floor(seen[1] / sy) - 2, Math.ceil(seen[2] / sx) + 2, Math.ceil(seen[3] / sy) + 2];
      box = [Math.max(box[0], 0), Math.max(box[1], 0), Math.min(box[2], level.w), Math.min(box[3], level.h)];
    }
    const w = Math.max(box[2] - box[0], 1), h = Math.max(box[3] - box[1], 1);
    const key = [k, box, low, high, invert].join();
    if (key !== this.drawn) {
      if (!this.scratch || this.scratch.width !== w || this.scratch.height !== h) this.scratch = canvasOf(w, h);
      const picture = new ImageData(w, h);
      this._fill(picture, level, box, low, high, invert);
      this.scratch.getContext("2d").putImageData(picture, 0, 0);
      this.drawn = key;
    }
    return { canvas: this.scratch, box: [box[0] * sx, box[1] * sy, w * sx, h * sy] };
  }

  _fill(picture, { data, w }, [x0, y0, x1, y1], low, high, invert) {
    const n = this.channels, scale = 255 / Math.max(high - low, 1e-12), row = x1 - x0;
    const grey = (v) => { // what is no number is black
      const g = Math.min(Math.max((v - low) * scale || 0, 0), 255);
      return Math.round(invert ? 255 - g : g);
    };
    const deep = this.dtype === "float32";
    const table = deep ? null : Uint8Array.from({ length: this.dtype === "uint8" ? 256 : 65536 }, (_, v) => grey(v));
    if (n === 1) { // one word for a pixel: bytes r, g, b, opacity on the little-endian machines that run browsers
      const words = new Uint32Array(picture.data.buffer), opaque = 0xff000000;
      for (let y = y0, o = 0; y < y1; y++) {
        for (let i = y * w + x0, end = i + row; i < end; i++, o++) {
          words[o] = opaque | ((deep ? grey(data[i]) : table[data[i]]) * 0x010101);
        }
      }
      return;
    }
    const out = picture.data;
    for (let y = y0, o = 0; y < y1; y++) {
      for (let i = (y * w + x0) * 3, end = i + row * 3; i < end; i += 3, o += 4) {
        for (let c = 0; c < 3; c++) out[o + c] = deep ? grey(data[i + c]) : table[data[i + c]];
        out[o + 3] = 255;
      }
    }
  }

  /** Frees what was drawn. */
  close() {
    this.levels = [];
    this.scratch = null;
  }
}

const SOLID = 0.75; // share of the scale from which heat hides what is under it

/** The colour of a place `v` (0–1) on the scale, as [r, g, b, opacity], each 0–255: the lower, the more transparent. */
export function colourOf(v, colours) {
  const at = Math.min(Math.max(v || 0, 0), 1);
  return [...colours[Math.round(at * (colours.length - 1))], 255 * Math.min(at / SOLID, 1)];
}

/** A heatmap as a canvas of its own size. `scale`: [low, high] of the colours. */
export function heatCanvas(buffer, [h, w], [low, high], colours) {
  const heat = new Float32Array(buffer), canvas = canvasOf(w, h), picture = new ImageData(w, h);
  if (heat.length !== w * h) throw new Error("The heatmap has another size than was said.");
  for (let i = 0; i < heat.length; i++) picture.data.set(colourOf((heat[i] - low) / Math.max(high - low, 1e-9), colours), 4 * i);
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return { canvas, heat, w, h };
}
