// The keys of the reading page, and the list of them. Knows which key does what; what is done is given.

import { make } from "./worklist.js";

const GROUPS = [
  ["List", [
    [["j"], "next", "next image"], [["k"], "previous", "previous image"], [["f"], "flagged", "flagged only, or all"],
    [["m"], "worth", "next image worth marking"], [["/"], "search", "search by name"],
  ]],
  ["Marks", [
    [["a"], "agree", "agree"], [["d"], "disagree", "disagree"], [["s"], "unsure", "unsure"], [["u"], "undo", "undo"],
    [["n"], "note", "write a note; Esc leaves it"], [["b"], "box", "draw boxes; Enter puts one in the middle"],
    [["Delete", "Backspace"], "remove", "delete the chosen box"], [["e"], "nextBox", "choose the next box; arrows move it, with Shift they size it"],
  ]],
  ["Image", [
    [["v"], "move", "drag moves"], [["w"], "window", "drag sets window and level"], [["p"], "preset", "next window preset"],
    [["i"], "invert", "invert"], [["+", "="], "larger", "larger"], [["-"], "smaller", "smaller"], [["0"], "fit", "fit"], [["1"], "full", "1:1"],
    [["o"], "overlay", "heatmap"], [[",", "."], "opacity", "heatmap: weaker, stronger"], [["c"], "contour", "contours"],
    [["h"], "finding", "next finding"],
  ]],
  ["Slices and beside", [
    [["ArrowUp", "ArrowDown"], "arrow", "slice up, down; without slices, and with Shift: move the image"],
    [["ArrowLeft", "ArrowRight"], "arrow", "move the image"],
    [["PageUp", "PageDown"], "page", "ten slices up, down"], [["Home", "End"], "ends", "first, last slice"], [["r"], "worst", "slice of the highest score"],
    [["g"], "normals", "nearest normals beside it"], [["x"], "dissolved", "dissolved beside it"], [["[", "]"], "dissolve", "dissolve less, more"],
    [["?"], "help", "these keys"],
  ]],
];
const SHOWN = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", "-": "−", PageUp: "Page ↑", PageDown: "Page ↓" };

/** Listens for keys, and fills `list` with what they do. `does`: functions by name, called with the event. */
export function keys(list, does) {
  const table = new Map();
  for (const [title, lines] of GROUPS) {
    const body = make("dl");
    for (const [names, what, words] of lines) {
      names.forEach((name) => table.set(name, does[what]));
      const shown = names.filter((name) => !["Backspace", "="].includes(name)).map((name) => make("kbd", { text: SHOWN[name] ?? name }));
      body.append(make("dt", {}, ...shown), make("dd", { text: words }));
    }
    list.append(make("section", {}, make("h3", { text: title }), body));
  }
  document.addEventListener("keydown", (event) => {
    const at = event.target;
    if (at.matches?.("textarea, select, [contenteditable=true], input:not([type=range], [type=checkbox], [type=radio])")) {
      if (event.key === "Escape") at.blur();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape") { does.escape(event); return; }
    if (event.key === "Enter") { // buttons and links have their own
      if (!at.closest?.("button, a, summary, [role=slider]") && does.enter(event)) event.preventDefault();
      return;
    }
    const own = at.matches?.("input[type=range], [role=radio], [role=tab]") && /^(Arrow|Page|Home|End)/.test(event.key);
    const what = table.get(event.key);
    if (own || !what) return;
    event.preventDefault();
    what(event);
  });
}

/** Makes a group of radio or tab buttons one stop of the Tab key, in which arrows move. */
export function roving(group, role = "radio") {
  const all = () => [...group.querySelectorAll(`[role=${role}]`)].filter((b) => b.offsetParent !== null && !b.disabled);
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], buttons = all();
    if (!step || !buttons.includes(event.target)) return;
    event.preventDefault();
    const next = buttons[(buttons.indexOf(event.target) + step + buttons.length) % buttons.length];
    next.focus();
    next.click();
  });
}

/** Marks the chosen button of such a group. */
export function choose(group, button, attribute = "aria-checked", role = "radio") {
  for (const one of group.querySelectorAll(`[role=${role}]`)) {
    one.setAttribute(attribute, String(one === button));
    one.tabIndex = one === button ? 0 : -1;
  }
}
