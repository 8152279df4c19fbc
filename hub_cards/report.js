// The page's behaviour. One number is its state: how many rows are kept. Everything shown follows.
"use strict";

const numbers = JSON.parse(document.getElementById("numbers").textContent);
const byId = (id) => document.getElementById(id);
const count = (value) => value.toLocaleString("en");
const decimals = (value, digits = 4) =>
  value === null || Number.isNaN(value) ? "–" : value.toFixed(digits);
const percent = (part, whole) => (whole ? `${((100 * part) / whole).toFixed(1)} %` : "–");

const ARRAYS = { uint8: Uint8Array, uint32: Uint32Array, float32: Float32Array };
function unpacked({ dtype, base64 }) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new ARRAYS[dtype](bytes.buffer);
}

const NO_RANK = 2 ** 32 - 1;
const rank = unpacked(numbers.rank);
const score = unpacked(numbers.score);
const length = unpacked(numbers.length);
const flags = { numeric: unpacked(numbers.numeric), code: unpacked(numbers.code) };
const categories = numbers.categories.map((one) => ({ ...one, code: unpacked(one.code) }));
const points = {
  row: unpacked(numbers.points.row),
  at: unpacked(numbers.points.at),
  spread: unpacked(numbers.points.spread),
};
for (const [name, values] of Object.entries(numbers.points.map)) {
  points[name] = unpacked(values);
}
const pointScore = Float32Array.from(points.at, (i) => score[i]);
const pointRank = Uint32Array.from(points.at, (i) => rank[i]);

let kept = numbers.selected;
let threshold = numbers.threshold;
let asInRun = true;

// Counting

function bins(values, edges) {
  // The bin of each value; edges rise, and the last bin holds its right edge.
  const found = new Uint16Array(values.length);
  for (let i = 0; i < values.length; i++) {
    let low = 0;
    let high = edges.length - 2;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (edges[middle] <= values[i]) low = middle;
      else high = middle - 1;
    }
    found[i] = low;
  }
  return found;
}

function evenEdges(values, n, isLog = false) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (!(high > low)) [low, high] = isLog ? [low / 2, low * 2] : [low - 0.5, low + 0.5];
  const step = isLog ? (high / low) ** (1 / n) : (high - low) / n;
  return Array.from({ length: n + 1 }, (_, i) => (isLog ? low * step ** i : low + step * i));
}

function histogram(values, ranks, n, isLog = false) {
  const edges = evenEdges(values, n, isLog);
  const bin = bins(values, edges);
  const [left, right] = [edges.slice(0, -1), edges.slice(1)];
  const counted = () => {
    const groups = { kept: new Float64Array(n), other: new Float64Array(n) };
    for (let i = 0; i < bin.length; i++) groups[ranks[i] < kept ? "kept" : "other"][bin[i]] += 1;
    return groups;
  };
  return { edges, left, right, counted };
}

function filtered(values, test) {
  const places = [];
  for (let i = 0; i < values.length; i++) if (test(i)) places.push(i);
  return {
    values: Float64Array.from(places, (i) => values[i]),
    ranks: Uint32Array.from(places, (i) => rank[i]),
  };
}

const bars = (values) => Math.min(80, Math.max(10, Math.round(1.5 * Math.sqrt(values.length))));

// Charts: what each one's data sources are given

function scoresChart() {
  const rated = filtered(score, (i) => rank[i] !== NO_RANK);
  const { left, right, counted } = histogram(rated.values, rated.ranks, bars(rated.values));
  const groups = counted();
  const scale = numbers.rows / numbers.drawn;
  const top = Array.from(groups.kept, (value, i) => scale * (value + groups.other[i]));
  return () => {
    const cut = threshold ?? Infinity;
    return {
      kept: { left: left.map((x, i) => Math.min(Math.max(x, cut), right[i])), right, top },
      other: { left, right: right.map((x, i) => Math.max(Math.min(x, cut), left[i])), top },
      cut: { x: threshold === null ? [] : [threshold] },
    };
  };
}

function sharesChart(values, ranks, isLog) {
  const n = Math.min(40, bars(values));
  const { edges, left, right, counted } = histogram(values, ranks, n, isLog);
  const shares = (group) => {
    const whole = group.reduce((sum, value) => sum + value, 0) || 1;
    return Array.from(group, (value) => (100 * value) / whole);
  };
  return () => {
    const groups = counted();
    const y = shares(groups.kept);
    return {
      other: { left, right, top: shares(groups.other) },
      kept: { x: [edges[0], ...edges], y: [0, ...y, 0] },
    };
  };
}

function pointsChart(x, y) {
  return () => {
    const groups = { kept: [], other: [] };
    for (let i = 0; i < pointRank.length; i++) groups[pointRank[i] < kept ? "kept" : "other"].push(i);
    const columns = { x, y, row: points.row, score: pointScore };
    const part = (places) =>
      Object.fromEntries(
        Object.entries(columns).map(([name, all]) => [
          name,
          Float32Array.from(places, (i) => all[i]),
        ]),
      );
    return { kept: part(groups.kept), other: part(groups.other) };
  };
}

const FILLERS = {
  scores: scoresChart,
  lengths: () => {
    const readable = filtered(length, (i) => length[i] > 0);
    return sharesChart(readable.values, readable.ranks, true);
  },
  spread: () => pointsChart(pointScore, points.spread),
  map: () => pointsChart(points.x, points.y),
  distance: () => sharesChart(points.distance, pointRank, false),
};

// Charts: embedded when they come near the screen, filled when they are on it

const charts = new Map();

async function embed(element) {
  const name = element.dataset.chart;
  const views = await Bokeh.embed.embed_item(numbers.charts[name], element);
  const model = views.roots[0].model;
  const parts = new Map();
  for (const one of model.references()) if (one.name) parts.set(one, one.name);
  const chart = { element, model, parts, fill: FILLERS[name]?.(), near: true };
  charts.set(element, chart);
  for (const [one, part] of parts) {
    if (part.endsWith(" data") && "row" in one.data) {
      one.selected.properties.indices.change.connect(() => read(one));
    }
  }
  paint(chart);
  fill(chart);
}

function read(source) {
  // The row of a point that was clicked.
  const place = source.selected.indices[0];
  if (place === undefined) return;
  byId("search").value = `#${source.data.row[place]}`;
  lists();
  byId("rows").scrollIntoView();
}

function fill(chart) {
  chart.stale = !chart.near;
  if (!chart.near || !chart.fill) return;
  const data = chart.fill();
  for (const [model, name] of chart.parts) {
    if (name.endsWith(" data")) model.data = data[name.slice(0, -5)];
  }
}

function paint(chart) {
  const style = getComputedStyle(document.documentElement);
  const tone = (name) => style.getPropertyValue(`--${name}`).trim();
  const { model } = chart;
  for (const axis of [...model.below, ...model.left]) {
    axis.axis_label_text_color = axis.major_label_text_color = tone("muted");
    axis.axis_line_color = axis.major_tick_line_color = tone("line");
  }
  for (const grid of model.center) if (grid.dimension === 1) grid.grid_line_color = tone("line");
  for (const [part, name] of chart.parts) {
    if (!part.glyph) continue;
    const color = "fill_color" in part.glyph ? "fill_color" : "line_color";
    part.glyph[color] = tone(name);
  }
}

// Tables

function median(values) {
  if (!values.length) return NaN;
  const sorted = Float64Array.from(values).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function cell(tag, text, isNumber = false) {
  const element = document.createElement(tag);
  element.textContent = text;
  if (isNumber) element.className = "number";
  if (tag === "th") element.scope = "row";
  return element;
}

function tableRow(name, ...values) {
  const row = document.createElement("tr");
  row.append(cell("th", name), ...values.map((value) => cell("td", value, true)));
  return row;
}

function contrast() {
  const groups = [[], [], []];
  for (let i = 0; i < length.length; i++) {
    if (!length[i]) continue;
    groups[rank[i] < kept ? 0 : 1].push(i);
    groups[2].push(i);
  }
  const share = (flag) =>
    groups.map((g) => percent(g.reduce((sum, i) => sum + flag[i], 0), g.length));
  const lengths = groups.map((group) => group.map((i) => length[i]));
  const mean = (all) => all.reduce((sum, value) => sum + value, 0) / all.length;
  const whole = (value) => (Number.isNaN(value) ? "–" : count(Math.round(value)));
  byId("contrast").replaceChildren(
    tableRow("median characters", ...lengths.map((all) => whole(median(all)))),
    tableRow("mean characters", ...lengths.map((all) => whole(mean(all)))),
    tableRow("with a digit", ...share(flags.numeric)),
    tableRow("with code", ...share(flags.code)),
  );
}

function categoryTables() {
  for (const [place, { names, code }] of categories.entries()) {
    const all = new Uint32Array(names.length);
    const best = new Uint32Array(names.length);
    for (let i = 0; i < code.length; i++) {
      all[code[i]] += 1;
      if (rank[i] < kept) best[code[i]] += 1;
    }
    const order = [...names.keys()].sort((a, b) => all[b] - all[a] || a - b);
    const body = document.querySelector(`[data-category="${place}"]`);
    body.style.setProperty("--mark", kept / numbers.rows);
    body.replaceChildren(
      ...order.map((i) => {
        const row = tableRow(names[i], count(all[i]), count(best[i]), percent(best[i], all[i]));
        const bar = document.createElement("span");
        bar.className = "bar";
        const inner = document.createElement("i");
        inner.style.setProperty("--share", all[i] ? best[i] / all[i] : 0);
        bar.append(inner);
        const last = cell("td", "");
        last.append(bar);
        row.append(last);
        return row;
      }),
    );
  }
}

function distances() {
  const said = byId("distance-said");
  if (!said) return;
  const groups = { kept: [], other: [] };
  for (let i = 0; i < pointRank.length; i++) {
    groups[pointRank[i] < kept ? "kept" : "other"].push(points.distance[i]);
  }
  said.textContent =
    `Median distance to the centre: kept ${decimals(median(groups.kept), 3)}, ` +
    `not kept ${decimals(median(groups.other), 3)}.`;
}

// Rows

const PAGE = 8;
const NOT_HERE = "This page does not contain the text of that row.";
const texts = numbers.texts.map((text) => ({
  ...text,
  shuffled: Math.imul(text.row + 1, 2654435761) >>> 0,
  whole: `${text.instruction}\n${text.response}`.toLowerCase(),
}));
const shown = { kept: PAGE, other: PAGE };

function sorted(rows, side, order) {
  const place = (text) => (text.rank < 0 ? Infinity : text.rank);
  const direction = (side === "kept") === (order === "near") ? -1 : 1;
  if (order === "random") return rows.sort((a, b) => a.shuffled - b.shuffled);
  if (side === "other" && order === "far") {
    const rated = rows.filter((text) => text.rank >= 0).sort((a, b) => b.rank - a.rank);
    return [...rated, ...rows.filter((text) => text.rank < 0)];
  }
  return rows.sort((a, b) => (place(a) - place(b) || 0) * direction);
}

function marked(text, wanted) {
  // The text as nodes, with what was searched for marked; nothing is ever parsed as HTML.
  const parts = document.createDocumentFragment();
  const lower = text.toLowerCase();
  let from = 0;
  if (wanted && lower.length === text.length) {
    for (let at = lower.indexOf(wanted); at >= 0; at = lower.indexOf(wanted, from)) {
      const mark = document.createElement("mark");
      mark.textContent = text.slice(at, at + wanted.length);
      parts.append(text.slice(from, at), mark);
      from = at + wanted.length;
    }
  }
  parts.append(text.slice(from));
  return parts;
}

function excerpt(text, wanted) {
  // From shortly before what was searched for, where it would not be seen in the first lines.
  const at = wanted ? text.toLowerCase().indexOf(wanted) : -1;
  return at > 120 ? `…${text.slice(at - 60)}` : text;
}

function rowItem(text, wanted) {
  const item = document.createElement("li");
  const meta = document.createElement("div");
  meta.className = "meta";
  const strong = document.createElement("b");
  strong.textContent = text.rank < 0 ? (text.status ?? "not rated") : decimals(text.score);
  meta.append(strong, cell("span", `row ${count(text.row)}`));
  if (text.rank >= 0) meta.append(cell("span", `rank ${count(text.rank + 1)}`));
  item.append(meta);
  const paragraphs = ["instruction", "response"].map((name) => {
    const paragraph = document.createElement("p");
    paragraph.className = `text ${name} short`;
    paragraph.dir = "auto";
    paragraph.append(marked(excerpt(text[name], wanted), wanted));
    return paragraph;
  });
  item.append(...paragraphs);
  const lines = text.response.split("\n").length;
  if (text.instruction.length > 110 || text.response.length > 160 || lines > 3) {
    item.append(unfolding(text, paragraphs, wanted));
  }
  return item;
}

function unfolding(text, paragraphs, wanted) {
  const button = document.createElement("button");
  const left = text.left ? ` (${count(text.left)} more characters are not on this page)` : "";
  const say = (isOpen) => {
    button.textContent = isOpen ? `Show less${left}` : "Show all";
    button.setAttribute("aria-expanded", isOpen);
    button.setAttribute("aria-label", `Show ${isOpen ? "less" : "all"} of row ${text.row}${isOpen ? left : ""}`);
  };
  button.type = "button";
  button.addEventListener("click", () => {
    const isOpen = paragraphs[0].classList.contains("short");
    for (const [place, name] of ["instruction", "response"].entries()) {
      const shown = isOpen ? text[name] : excerpt(text[name], wanted);
      paragraphs[place].replaceChildren(marked(shown, wanted));
      paragraphs[place].classList.toggle("short", !isOpen);
    }
    say(isOpen);
  });
  say(false);
  return button;
}

function lists() {
  const wanted = byId("search").value.trim().toLowerCase();
  const number = /^#([\d,]+)$/.exec(wanted)?.[1].replaceAll(",", "");
  const order = document.querySelector("#order input:checked").value;
  const found = texts.filter((text) =>
    number === undefined ? text.whole.includes(wanted) : text.row === Number(number),
  );
  const isKept = (text) => text.rank >= 0 && text.rank < kept;
  const missing = number === undefined ? "No text on this page matches." : NOT_HERE;
  byId("nothing").textContent = found.length ? "" : missing;
  for (const side of ["kept", "other"]) {
    const rows = sorted(found.filter((text) => isKept(text) === (side === "kept")), side, order);
    const some = rows.slice(0, shown[side]);
    byId(`${side}-rows`).replaceChildren(
      ...some.map((text) => rowItem(text, number === undefined ? wanted : "")),
    );
    byId(`${side}-count`).textContent = wanted
      ? `${count(rows.length)} found`
      : `${count(side === "kept" ? kept : numbers.rows - kept)} rows`;
    byId(`${side}-more`).hidden = some.length === rows.length;
  }
}

// The control

function said() {
  const rows = `${count(kept)} of ${count(numbers.rows)} kept`;
  return threshold === null ? rows : `${rows}, score ≥ ${decimals(threshold)}`;
}

let waiting = false;
function changed() {
  byId("said").textContent = said();
  byId("reset").disabled = asInRun;
  const command = byId("command");
  const cut = asInRun ? command.dataset.cut : `--proportion ${Number(byId("keep").value) / 1000}`;
  command.textContent = `${command.dataset.command} ${cut}`;
  byId("keep").setAttribute("aria-valuetext", `${byId("share").value} %`);
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    for (const chart of charts.values()) fill(chart);
    contrast();
    categoryTables();
    distances();
    lists();
  });
}

function keep(step) {
  [kept, threshold, asInRun] = [numbers.counts[step], numbers.thresholds[step], false];
  changed();
}

function reset() {
  [kept, threshold, asInRun] = [numbers.selected, numbers.threshold, true];
  byId("keep").value = numbers.step;
  byId("share").value = ((100 * kept) / numbers.rows).toFixed(1);
  if (numbers.counts[numbers.step] === kept) byId("share").value = (numbers.step / 10).toFixed(1);
  changed();
}

byId("keep").addEventListener("input", (event) => {
  byId("share").value = (event.target.value / 10).toFixed(1);
  keep(Number(event.target.value));
});
byId("share").addEventListener("change", (event) => {
  const step = Math.min(1000, Math.max(1, Math.round(10 * Number(event.target.value)) || 1));
  event.target.value = (step / 10).toFixed(1);
  byId("keep").value = step;
  keep(step);
});
byId("reset").addEventListener("click", reset);
byId("search").addEventListener("input", () => {
  [shown.kept, shown.other] = [PAGE, PAGE];
  lists();
});
byId("order").addEventListener("change", lists);
for (const side of ["kept", "other"]) {
  byId(`${side}-more`).addEventListener("click", () => {
    shown[side] += 2 * PAGE;
    lists();
  });
}

// Light and dark

const system = matchMedia("(prefers-color-scheme: dark)");
const theme = () => document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
function themed() {
  byId("theme").textContent = theme() === "dark" ? "Light" : "Dark";
  for (const chart of charts.values()) paint(chart);
}
byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = theme() === "dark" ? "light" : "dark";
  themed();
});
system.addEventListener("change", themed);

// Start

themed();
reset();
const observer = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const chart = charts.get(target);
      if (chart) {
        chart.near = isIntersecting;
        if (chart.near && chart.stale) fill(chart);
      } else if (isIntersecting) {
        charts.set(target, { element: target, model: null, parts: new Map(), near: true });
        embed(target);
      }
    }
  },
  { rootMargin: "300px" },
);
const first = document.querySelector('[data-chart="scores"]');
embed(first).then(() => {
  for (const element of document.querySelectorAll("[data-chart]")) observer.observe(element);
  document.documentElement.dataset.ready = "true";
  performance.mark("ready");
});
