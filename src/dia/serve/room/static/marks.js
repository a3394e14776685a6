// Marks on their way to the server: verdict, note and boxes are kept until it has answered. Knows no page.

import { Failed, send } from "./api.js";

const TYPING = 500; // ms after the last key of a note until it is sent
const AGAIN = 3000; // ms until another try, where no answer came

export class Marks {
  /** `state(id, words, kind)` hears where a case's mark stands ("saving", "saved", "bad"); `saved(id, answer)` what
   *  the server keeps. `rate()` returns the false-alarm rate in use. */
  constructor({ state, saved, rate }) {
    Object.assign(this, { state, saved, rate, waiting: new Map(), sending: null, timer: null });
    addEventListener("pagehide", () => this.leave());
    addEventListener("beforeunload", (event) => { if (this.stuck) event.preventDefault(); });
  }

  get unsaved() { return this.waiting.size > 0 || this.sending !== null; }

  /** The fields of a case that are not saved yet. */
  pending(id) {
    return { ...(this.sending?.id === id ? this.sending.fields : {}), ...(this.waiting.get(id)?.fields ?? {}) };
  }

  /** Changes fields of a case's mark. `soon`: may wait for more, as a note does while it is written. */
  change(id, fields, soon = false) {
    const before = this.waiting.get(id);
    this.waiting.set(id, { fields: { ...before?.fields, ...fields }, rate: "verdict" in fields ? this.rate() : before?.rate ?? this.rate() });
    this.state(id, "Saving …", "saving");
    clearTimeout(this.timer);
    if (soon) this.timer = setTimeout(() => this.flush(), TYPING);
    else this.flush();
  }

  /** Sends all that waits, one after the other; resolves when nothing waits, or the server is away. */
  flush() {
    clearTimeout(this.timer);
    this.running ??= this._flush().finally(() => { this.running = null; });
    return this.running;
  }

  async _flush() {
    while (this.waiting.size) {
      const [id, change] = this.waiting.entries().next().value;
      this.waiting.delete(id);
      this.sending = { id, ...change };
      try {
        const answer = await send("PATCH", `/room/cases/${encodeURIComponent(id)}/mark`, { ...change.fields, rate: change.rate },
          { keepalive: true }); // else leaving the page would break it off
        this.sending = null;
        this.stuck = false;
        if (!this.waiting.has(id)) this.state(id, "Saved", "saved");
        this.saved(id, answer);
      } catch (error) {
        this.sending = null;
        const later = error instanceof Failed && [0, 401, 409, 429, 502, 503, 504].includes(error.status);
        if (!later) { this.state(id, `Not saved: ${error.message}`, "bad"); continue; }
        const newer = this.waiting.get(id); // what was changed meanwhile counts
        this.waiting.set(id, { fields: { ...change.fields, ...newer?.fields }, rate: newer?.rate ?? change.rate });
        this.stuck = true;
        this.state(id, `Not saved yet: ${error.message} It is kept here and tried again.`, "bad");
        this.timer = setTimeout(() => this.flush(), AGAIN);
        return;
      }
    }
  }

  /** Sends what waits as the page is left; the browser finishes it. */
  leave() {
    clearTimeout(this.timer);
    for (const [id, { fields, rate }] of this.waiting) {
      send("PATCH", `/room/cases/${encodeURIComponent(id)}/mark`, { ...fields, rate }, { keepalive: true }).catch(() => null);
    }
    if (!this.stuck) this.waiting.clear();
  }

  /** Takes back the last change of a case. */
  async undo(id) {
    await this.flush();
    if (this.waiting.has(id)) return null; // the server is away
    return send("POST", `/room/cases/${encodeURIComponent(id)}/undo`);
  }
}
