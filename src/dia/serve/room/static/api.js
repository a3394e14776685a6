// Requests of all pages. Knows paths and failures; knows no page.

/** A request that failed: `status` 0 where no answer came, else the answer's. */
export class Failed extends Error {
  constructor(status, line) {
    super(line);
    this.status = status;
  }
}

const listeners = new Set();

/** Calls `hear(trouble)` with a `Failed` of status 0 or 401 when one occurs, and with null when an answer comes. */
export const onTrouble = (hear) => listeners.add(hear);
const tell = (trouble) => listeners.forEach((hear) => hear(trouble));

const TRIES = 6, PAUSE = 400; // of what is only asked for, while pictures are being made

async function answer(path, options, tries = TRIES) {
  let got;
  try {
    got = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const failed = new Failed(0, "The service does not answer.");
    tell(failed);
    throw failed;
  }
  if (got.status === 401) {
    const failed = new Failed(401, "Your session has ended.");
    tell(failed);
    throw failed;
  }
  tell(null);
  if (got.ok) return got;
  if (got.status === 503 && tries > 1 && (options.method ?? "GET") === "GET") {
    await new Promise((yes) => setTimeout(yes, PAUSE));
    options.signal?.throwIfAborted();
    return answer(path, options, tries - 1);
  }
  const line = await got.json().then((said) => said.detail, () => null);
  throw new Failed(got.status, typeof line === "string" ? line : `The server answered ${got.status}.`);
}

const json = (method, body) => ({
  method,
  ...(body === undefined ? {} : { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }),
});

/** Asks for JSON; null where the answer is empty (204). */
export async function get(path, signal) {
  const got = await answer(path, { signal });
  return got.status === 204 ? null : got.json();
}

/** Sends JSON, and returns the answer's. `keepalive` lets it outlive the page. */
export async function send(method, path, body, { keepalive = false } = {}) {
  const got = await answer(path, { ...json(method, body), keepalive });
  return got.status === 204 ? null : got.json().catch(() => null);
}

/** Sends a form of files. */
export const sendForm = async (path, form, signal) =>
  (await answer(path, { method: "POST", body: form, signal })).json();

/** Asks for bytes. */
export const bytes = async (path, signal) => (await answer(path, { signal })).arrayBuffer();

/** Makes `ask` a function that runs once at a time. A call while it runs has it run once more, since what is on its way
 *  may be older than what the call is about; `ask(counts)` learns by `counts()` whether its answer is still wanted.
 *  `.due()` runs it only where it does not run, `.outdate()` has it run once more only where it does. */
export function latest(ask) {
  let running = null, again = false;
  const run = async () => {
    try {
      do {
        again = false;
        await ask(() => !again);
      } while (again);
    } finally {
      running = null;
    }
  };
  const asking = () => {
    again = running !== null;
    return (running ??= run());
  };
  return Object.assign(asking, { due: () => running ?? asking(), outdate: () => { again ||= running !== null; } });
}

/** Asks for a picture. */
export const picture = async (path, signal) => createImageBitmap(await (await answer(path, { signal })).blob());
