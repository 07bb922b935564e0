"use strict";
(() => {
  const board = JSON.parse(document.getElementById("data").textContent);
  const names = ["certified", "open", "broken", "clean error"];
  const first = document.getElementById("first");
  const second = document.getElementById("second");
  const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  const code = new Map(Array.from(alphabet, (sign, place) => [sign, place]));

  const unpack = text => {
    const found = new Uint8Array(board.n);
    for (let place = 0; place < board.n; place++) {
      found[place] = (code.get(text[Math.floor(place / 3)]) >> (2 * (place % 3))) & 3;
    }
    return found;
  };
  // log of n choose k by sums of logarithms: exact enough for a p-value, and no overflow
  const logs = [0];
  const factorial = n => {
    for (let k = logs.length; k <= n; k++) logs.push(logs[k - 1] + Math.log(k));
    return logs[n];
  };
  const mcnemar = (b, c) => {
    const n = b + c;
    if (n === 0) return 1;
    const one = k => Math.exp(factorial(n) - factorial(k) - factorial(n - k) - n * Math.LN2);
    const limit = one(b) * (1 + 1e-7);
    let p = 0;
    for (let k = 0; k <= n; k++) if (one(k) <= limit) p += one(k);
    return Math.min(1, p);
  };
  const percent = share => (100 * share).toFixed(board.n > 1000 ? 2 : 1) + " %";
  const cell = (row, text, name) => {
    const made = document.createElement(name || "td");
    made.textContent = text;
    if (name) made.scope = "row"; else made.className = "num";
    row.append(made);
  };
  const show = () => {
    const a = board.entries[first.selectedIndex], b = board.entries[second.selectedIndex];
    const x = unpack(a.s), y = unpack(b.s);
    const pairs = Array.from({length: 4}, () => [0, 0, 0, 0]);
    for (let place = 0; place < board.n; place++) pairs[x[place]][y[place]]++;
    const sum = (rows, columns) => rows.reduce((all, r) => all + columns.reduce((part, c) => part + pairs[r][c], 0), 0);
    const every = [0, 1, 2, 3], good = [0, 1], bad = [2, 3];
    const only = [sum(good, bad), sum(bad, good)];
    const p = mcnemar(only[0], only[1]);
    const robust = [sum(good, every) / board.n, sum(every, good) / board.n];
    const proven = [sum([0], every) / board.n, sum(every, [0]) / board.n];
    const low = Math.max(...proven), high = Math.min(...robust);
    const lines = [
      ["clean", 1 - sum([3], every) / board.n, 1 - sum(every, [3]) / board.n],
      ["best known robust", ...robust],
      ["certified", ...proven],
    ].map(([what, l, r]) => [what, percent(l), percent(r)]);
    lines.push(["robust here only", String(only[0]), String(only[1])]);
    const figures = document.getElementById("figures");
    figures.replaceChildren(...lines.map(line => {
      const row = document.createElement("tr");
      cell(row, line[0], "th");
      cell(row, line[1]);
      cell(row, line[2]);
      return row;
    }));
    document.getElementById("head-first").textContent = a.name;
    document.getElementById("head-second").textContent = b.name;
    const better = robust[0] >= robust[1] ? a.name : b.name;
    const overlap = low <= high ? "The brackets overlap from " + percent(low) + " to " + percent(high) + "." : "The brackets do not overlap.";
    const said = low > high ? better + " is more robust on these samples, whatever stronger attacks may find."
      : p < 0.05 ? better + " withstands the known attacks more often; stronger attacks could turn it."
      : "No difference that chance does not explain.";
    document.getElementById("verdict").textContent = "McNemar p = " + p.toPrecision(3) + ". " + overlap + " " + said;
    document.getElementById("verdict").dataset.p = String(p);
    document.getElementById("agreement").replaceChildren(...every.map(r => {
      const row = document.createElement("tr");
      cell(row, names[r], "th");
      every.forEach(c => cell(row, String(pairs[r][c])));
      return row;
    }));
  };
  for (const select of [first, second]) {
    for (const entry of board.entries) {
      const option = document.createElement("option");
      option.textContent = entry.name;
      option.value = entry.id;
      select.append(option);
    }
    select.addEventListener("change", show);
  }
  if (board.entries.length > 1) second.selectedIndex = 1;
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const [name, select] of [["a", first], ["b", second]]) {
    const place = board.entries.findIndex(entry => entry.id === asked.get(name));
    if (place >= 0) select.selectedIndex = place;
  }
  if (board.entries.length) show();
})();
