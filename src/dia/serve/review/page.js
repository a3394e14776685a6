// The review page's keyboard, heatmap opacity, list highlight and CSV download. Everything else is the server's.
(() => {
  const find = (selector) => document.querySelector(selector);
  const click = (selector) => find(selector)?.click();
  const root = document.documentElement;

  const step = (delta) => {  // of the dissolve slider; what the framework hears is the input event
    const slider = find("#dissolve-t input[type=range]");
    if (!slider) return;
    const value = Math.min(Math.max(Number(slider.value) + delta, Number(slider.min)), Number(slider.max));
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(slider, String(value));
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  };

  const help = () => { const keys = find("#keys"); keys.open ? keys.close() : keys.showModal(); };

  const flaggedOnly = () => {
    const radios = [...document.querySelectorAll("#show input[type=radio]")];  // all, flagged, unmarked
    radios[radios[1].checked ? 0 : 1].click();
  };

  const KEYS = {
    j: () => click("#next"), ArrowDown: () => click("#next"),
    k: () => click("#previous"), ArrowUp: () => click("#previous"),
    a: () => click("#agree"), d: () => click("#disagree"), u: () => click("#undo"),
    n: () => find("#note textarea")?.focus(), f: flaggedOnly,
    "[": () => step(-25), "]": () => step(25),
    o: () => root.classList.toggle("no-heat"), "?": help,
  };

  document.addEventListener("keydown", (event) => {
    const at = event.target;
    const typing = at.matches?.("textarea, select, [contenteditable=true], input:not([type=range], [type=radio])");
    if (typing) {
      if (event.key === "Escape") at.blur();
      return;
    }
    const arrows = event.key.startsWith("Arrow") && at.matches?.("input");  // a slider's own
    const busy = find("#keys")?.open && event.key !== "?";
    if (event.ctrlKey || event.metaKey || event.altKey || arrows || busy || !(event.key in KEYS)) return;
    event.preventDefault();
    KEYS[event.key]();
  });

  // the framework's own event misses what is pasted or dictated
  document.addEventListener("input", (event) => {
    if (event.target.matches("#note textarea")) setTimeout(() => click("#written"));
  });

  document.addEventListener("click", (event) => {
    if (event.target.closest("#keys-open, #keys-close")) help();
  });

  const dia = window.dia = {
    opacity: (percent) => root.style.setProperty("--heat", percent / 100),

    // what a redrawn list lost: focus, place, which row is open
    list: (element) => {
      let focus = "", top = 0;
      element.addEventListener("focusin", (event) => {
        const at = event.target.closest("[data-sort], [data-sha]");
        focus = at && (at.dataset.sort ? `[data-sort="${at.dataset.sort}"]` : `[data-sha="${at.dataset.sha}"] button`);
      });
      element.addEventListener("scroll", (event) => { top = event.target.scrollTop; }, true);
      return () => {
        const box = element.querySelector(".scroll");
        if (box) box.scrollTop = top;
        if (focus && document.activeElement === document.body) element.querySelector(focus)?.focus();
        dia.select(dia.opened);
      };
    },

    select: (sha) => {
      dia.opened = sha;
      for (const row of document.querySelectorAll("#list tr[data-sha]")) {
        if (row.dataset.sha !== sha) { row.removeAttribute("aria-current"); continue; }
        row.setAttribute("aria-current", "true");
        const box = row.closest(".scroll"), head = box.querySelector("thead").offsetHeight;
        box.scrollTop = Math.min(Math.max(box.scrollTop, row.offsetTop + row.offsetHeight - box.clientHeight),
          row.offsetTop - head);
      }
      if (dia.follow && innerWidth < 800) find("#detail")?.scrollIntoView({ behavior: "smooth" });
      dia.follow = false;  // only after a tap on the list
    },

    save: (text, name) => {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    },
  };
})();
