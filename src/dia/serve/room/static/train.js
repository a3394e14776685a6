// The page that trains: what was dropped is checked, trained on, and served. It draws what GET /room/train says.

import { get, latest, onTrouble, send } from "./api.js";
import { curveOf, histogramOf, short } from "./charts.js";
import { chosen, dropped, upload as sendFiles } from "./drops.js";

const at = (id) => document.getElementById(id);
const MARKS = { good: "good", note: "note", warn: "look", stop: "stop" };
const STATES = { running: "running", stopped: "stopped", failed: "failed", done: "trained" };
let state = null; // as the server said last
let upload = null; // {sent, all, files, of, control} while files are on their way
let last = null; // the run that was under way when the server was asked before
let busy = false; // a button's request is on its way
let timer = 0;
const drawn = new Map();

/** Makes an element; `on…` properties are listeners, others are set; children are elements or plain text. */
function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** Fills a part of the page anew where what it shows has changed; the focus stays where it was. */
function fill(id, shown, build) {
  const key = JSON.stringify(shown);
  if (drawn.get(id) === key) return;
  drawn.set(id, key);
  const kept = document.activeElement?.id;
  const inside = at(id).contains(document.activeElement);
  at(id).replaceChildren(...[build()].flat(9).filter(Boolean));
  if (inside && kept) at(kept)?.focus();
}

const say = (words) => { at("said").textContent = words; };
function trouble(words) {
  at("trouble").textContent = words;
  at("trouble").hidden = !words;
}

/** Runs what a button asks for; its error is shown, and the page drawn anew. */
async function act(work, words) {
  if (busy) return;
  busy = true;
  trouble("");
  try {
    await work();
    if (words) say(words);
  } catch (error) {
    trouble(error.message);
  } finally {
    busy = false;
    await look();
  }
}

const button = (words, click, extra = {}) => make("button", { type: "button", onclick: click, ...extra }, words);
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
const when = (iso) => (iso ? new Date(iso).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) : "–");
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

// --- asking ------------------------------------------------------------------------------------------------

onTrouble((failed) => { if (failed?.status === 401) location.reload(); }); // leads to the login

const look = latest(async (counts) => {
  clearTimeout(timer);
  try {
    const now = await get("/room/train");
    if (!counts()) return;
    state = now;
    if (at("trouble").dataset.of === "asking") trouble("");
    delete at("trouble").dataset.of;
    draw();
  } catch (error) {
    at("loading")?.remove();
    trouble(error.message);
    at("trouble").dataset.of = "asking";
  }
  timer = setTimeout(look.due, document.hidden ? 30000 : state?.job ? 1000 : 10000);
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) look.due(); });

async function bring(found) {
  if (upload) return;
  upload = { sent: 0, all: 1, files: 0, of: found.length, control: new AbortController() };
  trouble("");
  draw();
  try {
    const refused = [];
    const drop = await sendFiles(found, {
      told: (sent, all, files, of) => { Object.assign(upload, { sent, all, files, of }); draw(); },
      problem: (name, error) => refused.push(`${name}: ${error}`), signal: upload.control.signal,
    });
    if (refused.length) trouble(`${refused.length} left out; the first: ${refused[0]}`);
    await send("POST", "/room/train/check", { drop, ...wanted() });
    say("The images are being checked.");
  } catch (error) {
    if (!upload.control.signal.aborted) trouble(error.message);
  } finally {
    upload = null;
    await look();
  }
}

const wanted = () => ({
  method: document.querySelector("input[name=method]:checked")?.value || "dia+", rate: Number(at("rate").value),
});
const again = (more = {}) => {
  const { folders, patients } = state.check;
  const kept = folders?.every((f) => f.chosen) ? null : folders?.filter((f) => f.chosen).map((f) => f.id);
  return act(() => send("POST", "/room/train/check", { folders: kept, patients, ...wanted(), ...more }));
};

// --- drawing -----------------------------------------------------------------------------------------------

function draw() {
  if (!state) return;
  drawJob();
  drawNormals();
  drawModel();
  fill("runs-body", state.runs, runs);
  const run = state.job?.run || null;
  if (last && !run) {
    const ended = state.runs.find((one) => one.name === last);
    if (ended) say(`${last}: ${STATES[ended.state]}${ended.problem ? `. ${ended.problem}` : ""}`);
    at("job-title").textContent = last;
    fill("job-body", ended, () => [
      ended?.state === "done" ? make("p", { class: "notice good" }, "The model is trained. Serve it, and read new images with it.")
        : make("p", { class: ended?.problem ? "notice bad" : "notice" }, ended?.problem ? `The training failed: ${ended.problem}` : "The training was stopped; it can go on from where it was."),
      make("p", { class: "actions" }, ...(ended ? deeds(ended, true) : [])),
    ]);
    at("job").hidden = false;
  }
  if (run && run !== last) say(`The training of ${run} has begun.`);
  last = run || (at("job").hidden ? null : last);
}

function drawJob() {
  const job = state.job;
  if (!job?.run) {
    if (!last) at("job").hidden = true;
    return;
  }
  at("job").hidden = false;
  at("job-title").textContent = `Training ${job.run}`;
  fill("job-body", [job.run, job.stopping], () => [
    make("div", { class: "work" },
      make("progress", { id: "far", "aria-label": "how far this part of the training is", max: 1 }),
      make("p", { class: "numbers", id: "numbers" }),
      make("div", { id: "curve" })),
    make("p", { class: "actions" },
      button(job.stopping ? "Stopping …" : "Stop", () => act(() => send("POST", "/room/train/stop"), "Stopping."), { id: "stop", disabled: job.stopping })),
    make("p", { class: "soft" }, "You can close this page: the training goes on. A training that is stopped can go on later."),
  ]);
  progress(at("far"), job);
  fill("numbers", [job.words, Math.round(job.seconds), Math.round(job.left_seconds ?? -1)], () => [
    make("span", {}, make("b", {}, job.words)),
    make("span", {}, `${time(job.seconds)} so far`),
    job.left_seconds !== null && make("span", {}, `about ${time(job.left_seconds)} left of this part`),
  ]);
  fill("curve", job.curve, () => job.curve.length > 1
    ? [make("p", { class: "soft" }, `Loss of the ${job.curve_of}; it should fall.`), curveOf(job.curve, job.curve_of)] : []);
}

function progress(bar, job) {
  if (job.steps > 1 && job.step) bar.value = job.step / job.steps;
  else bar.removeAttribute("value");
}

function drawNormals() {
  const { check, job } = state;
  const checking = job?.state === "checking" && job.own;
  const shown = upload ? ["upload", upload.sent, upload.files] : [check, checking, checking ? job.words : "", Boolean(job), job?.run || null, state.sets, state.model];
  fill("normals-body", shown, () => {
    if (upload) return uploading();
    if (checking) return looking(job);
    if (check?.state === "ready") return findings(check);
    return [check?.state === "failed" && make("p", { class: "notice bad", role: "alert" }, `These images cannot be used: ${check.problem}`), zone()];
  });
  if (checking && at("check-far")) progress(at("check-far"), job);
}

const uploading = () => [
  make("p", {}, `Sending ${plural(upload.of, "file")}: ${megabytes(upload.sent)} of ${upload.all > 1 ? megabytes(upload.all) : "…"}`),
  make("progress", { "aria-label": "files sent", max: 1, value: upload.sent / upload.all }),
  make("p", { class: "actions" }, button("Cancel", () => upload.control.abort(), { id: "cancel" })),
];

const looking = (job) => [
  make("p", {}, "Looking at the images before anything is trained."),
  make("div", { class: "work" }, make("progress", { id: "check-far", max: 1, "aria-label": "how far the check is" })),
  make("p", { class: "soft" }, job.words),
  make("p", { class: "actions" }, button("Cancel", () => act(() => send("DELETE", "/room/train/check")), { id: "cancel" })),
];

function zone() {
  if (state.job) return make("p", { class: "soft" }, state.job.run ? "New images can be checked once this training has ended or is stopped." : "Images of another reader are being checked; that takes a moment.");
  const set = make("select", { id: "set" }, ...state.sets.map(({ name, about }) => make("option", { value: name }, `${name} – ${about}`)));
  return [
    !state.model && make("p", { class: "notice" }, "No model is served yet. Drop normal images here and train one; or choose the generated set below, to see how it works."),
    make("div", { class: "drop" },
      make("p", { class: "large" }, "Drop a folder or files of normal images anywhere on this page"),
      make("p", { class: "soft" }, "PNG, JPEG, TIFF, DICOM, NIfTI, MetaImage, NRRD, or a zip of them; from 100 images on is good, 5 is the least."),
      make("p", {}, button("Choose a folder …", () => at("folder").click(), { id: "choose-folder", class: "primary" }), " ",
        button("Choose files …", () => at("files").click(), { id: "choose-files" }))),
    make("div", { class: "or" },
      make("label", { htmlFor: "set" }, state.data_root ? "or a set on the server" : "or a set to try it with", set),
      button("Check this set", () => act(() => send("POST", "/room/train/check", { data: set.value, ...wanted() }), "The set is being checked."), { id: "choose-set" })),
  ];
}

function findings(check) {
  const list = check.findings.map(({ kind, words, examples }) => make("li", {},
    make("span", { class: `mark ${kind}` }, MARKS[kind]),
    make("div", {}, words, examples.length > 0 && make("details", {}, make("summary", {}, "which"),
      make("ul", {}, ...examples.map((names) => make("li", {}, names.join(" – "))))))));
  const left = check.left_out.map(([name, why]) => `${name} – ${why}`);
  if (left.length) list.push(make("li", {}, make("span", { class: "mark warn" }, MARKS.warn), make("div", {}, `${plural(left.length, "file")} could not be taken.`,
    make("details", {}, make("summary", {}, "which"), make("ul", {}, ...left.map((line) => make("li", {}, line)))))));
  const thumbs = Array.from({ length: check.thumbs }, (_, i) => make("li", {},
    make("img", { src: `/room/train/check/thumbs/${i}?of=${check.images}`, alt: `one of the images, ${i + 1} of ${check.thumbs} shown` })));
  const tick = (one) => make("label", { class: "tick" },
    make("input", { type: "checkbox", checked: one.chosen, value: one.id, name: "folders" }),
    make("span", {}, make("b", {}, one.name), ` ${plural(one.images, "file")}${one.meaning === "anomalous" ? ": by its name, anomalies" : ""}`));
  const patients = make("input", { type: "checkbox", id: "patients", checked: check.patients });
  const several = check.folders.length > 1 || check.folders.some((f) => f.meaning === "anomalous");
  return [
    make("p", { class: "headline", id: "headline" }, check.kind === "set" ? `${check.name}: ${check.headline}` : check.headline),
    thumbs.length > 0 && make("ul", { class: "thumbs", "aria-label": "some of the images" }, ...thumbs),
    make("ul", { class: "findings" }, ...list),
    several && make("fieldset", {}, make("legend", {}, "Folders of normal images"),
      make("div", { class: "folders" }, ...check.folders.map(tick)),
      make("label", { class: "tick" }, patients, "one folder is one patient"),
      button("Check again with this choice", () => {
        const folders = [...document.querySelectorAll("input[name=folders]:checked")].map((i) => i.value);
        again({ folders: folders.length === check.folders.length ? null : folders, patients: patients.checked });
      }, { id: "again" })),
    make("p", { class: "actions" }, button("Take other images", () => act(() => send("DELETE", "/room/train/check")), { id: "others" })),
  ];
}

function drawModel() {
  const { check, job, methods } = state;
  at("model-form").hidden = !(check?.state === "ready");
  if (!check || check.state !== "ready") return;
  if (!at("methods").querySelector("input")) {
    at("methods").append(...methods.map(({ name, line, warning }) => make("label", { class: "tick" },
      make("input", { type: "radio", name: "method", value: name, checked: name === check.method, onchange: () => again() }),
      make("span", {}, make("b", {}, name), ` ${line}`, warning && make("span", { class: "bad-words" }, ` ${warning}`)))));
  }
  if (!at("name").value) at("name").value = suggested(check);
  at("kept").textContent = check.kind === "drop"
    ? "The images are kept on the server beside the model, under numbers instead of names: a stopped training can go on, and the model can show the most similar normals. You can delete them below at any time."
    : "";
  const why = job?.run ? `${job.run} is being trained; one at a time.` : job ? "Wait for the check." : check.usable ? "" : "These images cannot be trained on; the check says why.";
  at("start").disabled = Boolean(why);
  at("start-why").textContent = why;
}

function suggested(check) {
  const day = new Date().toISOString().slice(0, 10);
  const base = (check.name || "normals").replace(/[^A-Za-z0-9_-]+/g, "-").replace(/^[^A-Za-z0-9]+/, "") || "normals";
  const taken = new Set(state.runs.map((run) => run.name));
  let name = `${base.slice(0, 40)}-${day}`;
  for (let i = 2; taken.has(name); i += 1) name = `${base.slice(0, 40)}-${day}-${i}`;
  return name;
}

function runs() {
  if (!state.runs.length) return make("p", { class: "empty" }, "No trainings yet. They are listed here, with what became of them.");
  return make("ul", { class: "runs" }, ...state.runs.map((run) => make("li", { "data-run": run.name },
    make("div", {}, make("h3", {}, run.name), make("span", { class: `mark ${run.serving ? "serving" : run.state}` }, run.serving ? "in use" : STATES[run.state])),
    make("div", { class: "about" },
      make("p", {}, [run.method, run.normals && plural(run.normals, "normal"), run.of && `of ${run.of}`].filter(Boolean).join(", ")),
      make("p", {}, `${when(run.when)}${run.seconds ? `, ${time(run.seconds)}` : ""}`),
      run.state === "done" && make("p", {}, run.threshold === null ? "no threshold: too few normals" : `threshold ${short(run.threshold)} at ${short(100 * run.rate)} % false alarms`),
      run.problem && make("p", { class: "bad-words" }, run.problem),
      run.state === "stopped" && make("p", {}, "Stopped; it can go on from where it was.")),
    make("p", { class: "actions" }, ...deeds(run)))));
}

/** The buttons of a run; `few` leaves out what deletes. */
function deeds(run, few = false) {
  const name = run.name;
  const done = run.state === "done";
  const id = (what) => ({ id: `${few ? "job-" : ""}${what}-${name}`, "aria-label": undefined });
  return [
    done && !run.serving && button("Serve this model", () => act(async () => {
      say(`Loading ${name}`);
      await send("POST", "/room/train/serve", { run: name });
      location.assign("/");
    }), { class: few ? "primary" : "", ...id("serve") }),
    done && button("Report", () => report(name), id("report")),
    ["stopped", "failed"].includes(run.state) && button(run.state === "failed" ? "Try again" : "Resume", () => act(() => send("POST", "/room/train/resume", { run: name }), `${name} goes on`), id("resume")),
    !few && run.kept && run.state !== "running" && button("Delete its images", () => sure(`Delete the images of ${name}?`,
      done ? "The model stays, but can no longer show similar normals." : "A training that has not ended cannot go on without them.",
      () => send("POST", "/room/train/forget", { run: name })), { class: "quiet", ...id("forget") }),
    !few && !run.serving && run.state !== "running" && button("Delete", () => sure(`Delete ${name}?`,
      "Its model, its images on the server and its report are deleted for good.",
      () => send("DELETE", `/room/train/runs/${name}`)), { class: "danger", ...id("delete") }),
  ].filter(Boolean);
}

function sure(title, words, work) {
  at("sure-title").textContent = title;
  at("sure-words").textContent = words;
  at("sure").returnValue = "";
  at("sure").onclose = () => { if (at("sure").returnValue === "yes") act(work, "Deleted."); };
  at("sure").showModal();
}

async function report(name) {
  await act(async () => {
    const facts = await get(`/room/train/runs/${name}`);
    const rows = [
      ["Method", facts.method], ["Normal images", facts.normals && `${facts.normals.toLocaleString("en")}${facts.of ? ` of ${facts.of}` : ""}`],
      ["Patients", facts.patients], ["Size", facts.shape && `${facts.shape[1]} × ${facts.shape[0]} pixels, ${facts.shape[2] === 3 ? "colour" : "grey"}`],
      ["Threshold", facts.threshold === null ? facts.few : `${short(facts.threshold)}, at ${short(100 * facts.rate)} % false alarms, from ${plural(facts.calibrated, "score")} of normals`],
      ["Trained", `${when(facts.when)}, for ${time(facts.fit_seconds)}`], ["Device", facts.device],
      ["Versions", facts.versions && Object.entries(facts.versions).filter(([, v]) => v).map(([k, v]) => `${k} ${v}`).join(", ")],
    ].filter(([, value]) => value !== null && value !== undefined && value !== "");
    at("report-body").replaceChildren(...[
      make("h2", { id: "report-title" }, `Report of ${name}`),
      make("table", {}, make("tbody", {}, ...rows.map(([key, value]) => make("tr", {}, make("th", { scope: "row" }, key), make("td", {}, String(value)))))),
      facts.histogram.length && make("h3", {}, "Scores of normal images"),
      facts.histogram.length && histogramOf(facts.histogram, facts.threshold),
      facts.histogram.length && make("p", { class: "soft" }, `${facts.calibrated === facts.normals ? "Each was judged by the others." : "The model was not trained on these."} New images right of the threshold are flagged; how many anomalies that finds, only labelled images can tell.`),
      facts.curve.length > 1 && make("h3", {}, `Loss of the ${facts.curve_of}`),
      facts.curve.length > 1 && curveOf(facts.curve, facts.curve_of),
      make("p", { class: "actions" },
        facts.report ? make("a", { class: "button", href: `/room/train/report/${name}`, download: "" }, "Download the report on its labelled test images") : "",
        button("Close", () => at("report").close(), { id: "report-close" })),
    ].filter(Boolean));
    at("report").showModal();
    at("report").scrollTop = 0;
  });
}

// --- what the reader does ----------------------------------------------------------------------------------

at("model-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = at("name");
  const there = state.runs.some((run) => run.name === name.value);
  name.setCustomValidity(there ? "There is a training of this name; choose another." : "");
  if (!name.reportValidity()) return;
  act(async () => {
    await send("POST", "/room/train/start", { name: name.value, method: wanted().method });
    name.value = "";
    last = null;
    at("job").scrollIntoView({ block: "start" });
  });
});
at("name").addEventListener("input", () => at("name").setCustomValidity(""));
at("rate").addEventListener("change", () => again());
for (const id of ["files", "folder"]) {
  at(id).addEventListener("change", () => { if (at(id).files.length) bring(chosen(at(id))); at(id).value = ""; });
}
let within = 0; // elements below the pointer while something is dragged
const dragged = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => { if (dragged(event)) { within += 1; at("dropping").hidden = false; } });
addEventListener("dragleave", (event) => { if (dragged(event)) { within -= 1; at("dropping").hidden = within <= 0; } });
addEventListener("dragover", (event) => { if (dragged(event)) event.preventDefault(); });
addEventListener("drop", async (event) => {
  if (!dragged(event)) return;
  event.preventDefault();
  within = 0;
  at("dropping").hidden = true;
  const found = await dropped(event.dataTransfer);
  if (state?.job) trouble("A check or training is under way; wait for it, or stop it.");
  else bring(found);
});
look();
