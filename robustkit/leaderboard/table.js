"use strict";
(() => {
  const table = document.getElementById("board");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const words = document.getElementById("filter");
  const state = document.getElementById("state");
  const order = document.getElementById("order");
  const count = document.getElementById("count");
  const original = rows.slice();

  const value = (row, place) => row.cells[place].dataset.v;
  const sort = (place, down) => {
    const sign = down ? -1 : 1;
    const numeric = heads[place].dataset.kind === "number";
    const sorted = original.slice().sort((a, b) => {
      const x = value(a, place), y = value(b, place);
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y));
    });
    heads.forEach((head, at) => head.setAttribute("aria-sort", at === place ? (down ? "descending" : "ascending") : "none"));
    order.value = place + (down ? "-" : "+");
    body.append(...sorted);
  };
  const filter = () => {
    const wanted = words.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.dataset.text.toLocaleLowerCase();
      const good = wanted.every(word => text.includes(word)) && (state.value === "" || row.dataset.state === state.value);
      row.hidden = !good;
      shown += good;
    }
    count.textContent = shown + " of " + rows.length + (rows.length === 1 ? " entry" : " entries");
  };

  heads.forEach((head, place) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const first = head.dataset.first === "down";
      sort(place, now === "ascending" ? true : now === "descending" ? false : first);
    });
    for (const [mark, text] of [["-", ", highest first"], ["+", ", lowest first"]]) {
      const option = document.createElement("option");
      option.value = place + mark;
      option.textContent = button.textContent.trim() + text;
      order.append(option);
    }
  });
  order.addEventListener("change", () => sort(Number(order.value.slice(0, -1)), order.value.endsWith("-")));
  words.addEventListener("input", filter);
  state.addEventListener("change", filter);
  order.value = "0+";
  document.getElementById("tools").hidden = false;
  filter();
})();
