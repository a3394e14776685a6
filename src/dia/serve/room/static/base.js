// The frame of a page: the reader's name, where there is no login that gave it.

import { get, send } from "./api.js";

const name = document.querySelector("input#reader");
if (name) {
  const tell = async () => {
    try {
      name.value = (await send("PUT", "/room/reader", { name: name.value })).reader;
      name.setCustomValidity("");
      document.dispatchEvent(new CustomEvent("reader", { detail: name.value }));
    } catch (error) {
      name.setCustomValidity(error.message);
      name.reportValidity();
    }
  };
  name.addEventListener("change", tell);
  // typed and left before this script ran
  if (name.value !== name.defaultValue && document.activeElement !== name) tell();
  name.addEventListener("keydown", (event) => { if (event.key === "Enter") name.blur(); });
}

const model = document.querySelector("#model[data-loading]");
if (model) { // the answer comes when it is there
  get("/room/state").then((state) => {
    if (state.model) model.textContent = `${state.model.method}, fitted on ${state.model.n_train} normals`;
  }, (error) => { model.textContent = error.message; });
}
