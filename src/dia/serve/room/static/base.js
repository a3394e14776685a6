// The frame of a page: the reader's name, where there is no login that gave it. Other modules import `ask`.

/** Sends a request of the page, and returns its answer as JSON; null for 204. Throws an Error with one line.
 *  A session that has ended leads to the login. */
export async function ask(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.body = body instanceof FormData ? body : JSON.stringify(body);
    if (!(body instanceof FormData)) options.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The service does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    location.reload();
    throw new Error("Your session has ended; log in again.");
  }
  if (answer.status === 204) return null;
  const said = (answer.headers.get("Content-Type") || "").includes("json") ? await answer.json() : {};
  if (!answer.ok) throw new Error(said.detail || `The service answered ${answer.status}.`);
  return said;
}

const name = document.querySelector("input#reader");
if (name) {
  name.addEventListener("change", async () => {
    try {
      name.value = (await ask("PUT", "/room/reader", { name: name.value })).reader;
      name.setCustomValidity("");
      document.dispatchEvent(new CustomEvent("reader", { detail: name.value }));
    } catch (error) {
      name.setCustomValidity(error.message);
      name.reportValidity();
    }
  });
  name.addEventListener("keydown", (event) => { if (event.key === "Enter") name.blur(); });
}

const model = document.querySelector("#model[data-loading]");
if (model) { // the answer comes when it is there
  ask("GET", "/room/state").then((state) => {
    if (state.model) model.textContent = `${state.model.method}, fitted on ${state.model.n_train} normals`;
  }, (error) => { model.textContent = error.message; });
}
