"use strict";
// Tables whose rows can be put in the order of a column: falling or rising, and back to how they were drawn.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const bodies = [...table.tBodies].map((body) => [body, [...body.rows]]);
  const lines = bodies.flatMap(([, rows]) => rows).filter((row) => !row.classList.contains("family"));
  const shown = (row, column) =>
    [...row.cells[column].childNodes]
      .filter((n) => n.nodeName !== "SMALL" && !(n.classList && n.classList.contains("hidden")))
      .map((n) => n.textContent)
      .join("")
      .trim();
  const number = (text) => parseFloat(text.replace("\u2212", "-").replace(/,/g, ""));
  const drawn = () => {
    for (const [body, rows] of bodies) {
      body.hidden = false;
      body.append(...rows);
    }
  };
  const sort = (column, order) => {
    drawn();
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? order : "none"));
    if (order === "none") return;
    const texts = new Map(lines.map((row) => [row, shown(row, column)]));
    const known = (row) => !["", "\u2013"].includes(texts.get(row));
    const numeric = column > 0 && lines.some((row) => !Number.isNaN(number(texts.get(row))));
    const counts = (row) => known(row) && !(numeric && Number.isNaN(number(texts.get(row))));
    const sign = order === "ascending" ? 1 : -1;
    const sorted = lines.filter(counts).sort((a, b) => {
      const [x, y] = [texts.get(a), texts.get(b)];
      return sign * (numeric ? number(x) - number(y) : x.localeCompare(y));
    });
    // families are no order; what has no value stands last, whichever way
    for (const [body, rows] of bodies.slice(1)) if (rows.length) body.hidden = true;
    const [first, rows] = bodies[0];
    for (const row of rows) if (row.classList.contains("family")) row.remove();
    first.append(...sorted, ...lines.filter((row) => !counts(row)));
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    const numeric = lines.some((row) => column > 0 && !Number.isNaN(number(shown(row, column))));
    const orders = ["none", ...(numeric && !head.textContent.includes("rank")
      ? ["descending", "ascending"]
      : ["ascending", "descending"])];
    button.addEventListener("click", () => {
      const now = orders.indexOf(head.getAttribute("aria-sort"));
      sort(column, orders[(now + 1) % 3]);
    });
  });
}
