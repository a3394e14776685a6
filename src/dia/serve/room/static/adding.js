// Files on their way to the list: dropped or chosen, sent, read, scored; and those that were left out. Knows its part of
// the page.

import { send } from "./api.js";
import { chosen, dropped, upload } from "./drops.js";
import { make } from "./worklist.js";

const MOST_LINES = 500;
const el = (id) => document.getElementById(id);

export class Adding {
  /** `known()`: the progress that the server told last; `sent()` is called when it begins to read; `lead()` brings the
   *  list into sight; `trouble(words, options)` and `say(words)` tell. */
  constructor({ known, sent, lead, trouble, say }) {
    Object.assign(this, { known, sent, lead, trouble, say, uploading: null, refused: [] });
    for (const id of ["files", "folder"]) {
      el(`choose-${id}`).addEventListener("click", () => el(id).click());
      el(id).addEventListener("change", () => {
        const files = chosen(el(id));
        el(id).value = "";
        this.add(files);
      });
      if (el(id).files.length) el(id).dispatchEvent(new Event("change")); // chosen before this ran
    }
    el("stop").addEventListener("click", () => this.uploading?.stop.abort());
    this._drops();
  }

  get busy() { return this.uploading !== null; }

  /** A drag of files anywhere over the page. */
  _drops() {
    const files = (event) => event.dataTransfer?.types.includes("Files");
    const curtain = (over) => { this.over = over; el("curtain").hidden = over <= 0; };
    addEventListener("dragenter", (event) => { if (files(event)) curtain((this.over ?? 0) + 1); });
    addEventListener("dragleave", (event) => { if (files(event)) curtain(Math.max(this.over - 1, 0)); });
    addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
    addEventListener("drop", async (event) => {
      if (!files(event)) return;
      event.preventDefault();
      curtain(0);
      this.add(await dropped(event.dataTransfer));
    });
  }

  /** Sends files, and has them read. */
  async add(files) {
    if (!files.length) { this.say("No files there."); return; }
    if (this.uploading) { this.trouble("Files are being sent already; add these when they have arrived.", { retry: false }); return; }
    const stop = new AbortController();
    this.uploading = { part: 0, files: files.length, stop };
    this.refused = [];
    el("welcome").hidden = el("list-loading").hidden = true;
    this.show();
    this.lead();
    try {
      const drop = await upload(files, {
        told: (sent, all) => { this.uploading.part = all ? sent / all : 1; this.show(); },
        problem: (name, error) => this.refused.push({ name, error }), signal: stop.signal,
      });
      await send("POST", `/room/drops/${drop}/read`, {});
      this.say(`${files.length} files sent.`);
    } catch (error) {
      if (error.name === "AbortError") this.say("Stopped.");
      else if (error.status > 401) this.trouble(`The files were not taken: ${error.message}`, { retry: false });
      else this.refused = files.map(({ name }) => ({ name, error: `not sent: ${error.message} Add it again.` })); // a banner would go
    }
    this.uploading = null;
    this.sent();
    this.show();
  }

  /** Shows how far sending, reading and scoring are. */
  show(p = this.known() ?? { done: true, problems: [] }) {
    const busy = !p.done || this.busy;
    el("progress").hidden = !busy;
    el("stop").hidden = !this.busy;
    if (this.uploading) {
      const { part, files } = this.uploading;
      el("bar").value = part;
      el("progress-words").textContent = `Sending ${files} file${files === 1 ? "" : "s"}: ${Math.round(100 * part)} %`;
    } else if (busy) {
      el("bar").value = Math.min((p.files ? p.read / p.files : 0) / 2 + (p.images ? p.scored / p.images : 0) / 2, 1);
      el("progress-words").textContent = `${p.read} of ${p.files} files read, ${p.scored} of ${p.images} images scored`;
    }
    const problems = [...p.problems, ...this.refused];
    el("problems").hidden = !problems.length;
    el("problems-words").textContent = `${problems.length} file${problems.length === 1 ? "" : "s"} left out`;
    el("problems-list").replaceChildren(...problems.slice(0, MOST_LINES).map(({ name, error }) => make("li", {}, make("b", { text: name }), ` ${error}`)));
  }
}
