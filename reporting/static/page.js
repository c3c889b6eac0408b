"use strict";
// The address after # holds the whole state, so that every view can be linked to.

const ORANGE = "#e69f00"; // with blue() of Okabe and Ito's palette: apart for everybody
const SHOWN = 60, PAGE = 50;
const $ = (selector) => document.querySelector(selector);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
let rows = [], data = {}, shown = SHOWN, table = { sort: "speed", down: false, page: 0 };

start();

async function start() {
  data = JSON.parse(await unpack($("#data").textContent));
  rows = unroll(data);
  const machines = unique(rows.map((row) => row.machine));
  $("#machines").replaceChildren(...machines.map((name) => option(name)));
  $("#about").textContent = `${rows.length.toLocaleString()} numbers of ${machines.length.toLocaleString()} ` +
    `machines, written ${data.written} by version ${data.version}.`;
  for (const event of ["change", "input"]) $("#controls").addEventListener(event, fromControls);
  $("#controls").addEventListener("submit", (event) => event.preventDefault());
  $("#more").addEventListener("click", () => { shown = Infinity; render(); });
  window.addEventListener("hashchange", () => { shown = SHOWN; table.page = 0; render(); });
  dark.addEventListener("change", render);
  window.addEventListener("resize", debounce(render, 200));
  await render();
  document.body.dataset.ready = "yes";
}

// Data

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function unroll({ experiments, columns, texts }) {
  return columns.speed.map((speed, i) => {
    const row = { speed, ci95: columns.ci95[i], higher: columns.higher[i] === 1,
      extrapolated: columns.extrapolated[i] === 1, disturbed: columns.disturbed[i] === 1, ...pick(experiments[columns.experiment[i]]) };
    for (const [name, { texts: values, codes }] of Object.entries(texts)) row[name] = values[codes[i]];
    return row;
  });
}

function pick({ title, backend }) { return { experiment: title, framework_name: backend }; }

// State: defaults, then what the address says

function state() {
  const asked = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const now = { view: "bars", framework: "", configuration: "default", older: "", synthetic: "yes", machine: "",
    other: "", search: "", ...asked };
  now.frameworks = unique(rows.map((row) => row.framework_name));
  const ofFramework = rows.filter((row) => !now.framework || row.framework_name === now.framework);
  now.experiments = unique(ofFramework.map((row) => row.experiment));
  now.experiment = known(asked.experiment, now.experiments);
  const ofExperiment = ofFramework.filter((row) => row.experiment === now.experiment);
  now.tests = unique(ofExperiment.map((row) => row.test));
  now.test = known(asked.test, now.tests, mostCommon(ofExperiment.map((row) => row.test)));
  const ofTest = ofExperiment.filter((row) => row.test === now.test);
  now.precisions = ["any", ...unique(ofTest.map((row) => row.precision).filter(Boolean))];
  now.precision = known(asked.precision, now.precisions);
  now.configurations = ["default", "any", ...unique(ofTest.map((row) => row.configuration).filter(Boolean))];
  now.configuration = known(now.configuration, now.configurations);
  now.chosen = ofTest.filter((row) => allowed(row, now));
  return now;
}

function allowed(row, now) {
  const wanted = { default: "", any: row.configuration }[now.configuration] ?? now.configuration;
  return (now.precision === "any" || row.precision === now.precision) &&
    (row.configuration === wanted || (now.precision !== "any" && row.configuration === now.precision)) &&
    (row.protocol === "2023") === (now.older === "yes") && (now.synthetic === "yes" || row.data !== "synthetic");
}

function fromControls(event) {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const { name, type, checked, value } = event.target;
  if (event.type === "input" && name !== "search") return;
  wanted.set(name, type === "checkbox" ? (checked ? "yes" : "no") : value);
  if (name === "framework") wanted.delete("experiment");
  if (["framework", "experiment"].includes(name)) ["test", "precision", "configuration"].forEach((n) => wanted.delete(n));
  location.hash = wanted;
}

// Drawing

async function render() {
  const now = state();
  const needed = { bars: ["framework", "experiment", "test", "precision", "configuration", "machine", "older", "synthetic"],
    price: ["framework", "experiment", "test", "precision", "configuration", "machine", "older", "synthetic"],
    pair: ["machine", "other", "older", "synthetic"], table: ["search", "machine"] }[now.view] ?? [];
  const lists = { framework: ["", ...now.frameworks], experiment: now.experiments, test: now.tests,
    precision: now.precisions, configuration: now.configurations };
  for (const field of $("#controls").elements) {
    if (field.tagName === "SELECT") field.replaceChildren(...lists[field.name].map((name) => option(name, name || "all")));
    if (field.type === "checkbox") field.checked = now[field.name] === "yes";
    else if (field !== document.activeElement || field.tagName === "SELECT") field.value = now[field.name];
    field.closest("label").hidden = !needed.includes(field.name);
  }
  for (const link of document.querySelectorAll("nav a")) {
    const address = new URLSearchParams(location.hash.slice(1));
    address.set("view", link.dataset.view);
    link.href = `#${address}`;
    link.toggleAttribute("aria-current", link.dataset.view === now.view);
  }
  $("#more").hidden = true;
  for (const id of ["#chart", "#rows"]) $(id).replaceChildren();
  await ({ bars: drawBars, price: drawPrices, pair: drawPair, table: drawTable }[now.view] ?? drawBars)(now);
}

async function drawBars(now) {
  const good = now.chosen.filter((row) => row.speed !== null).map((row) => forChart(row, now));
  good.sort((a, b) => (a.higher ? b.speed - a.speed : a.speed - b.speed));
  heading(now, good, "no machine has this number");
  if (!good.length) return;
  const visible = good.slice(0, shown);
  const yours = good.find((row) => row.yours);
  if (yours && !visible.includes(yours)) visible.push(yours);
  if (visible.length < good.length) {
    $("#more").hidden = false;
    $("#more").textContent = `Show all ${good.length.toLocaleString()}`;
  }
  const reference = yours ? [{ layer: "reference", speed: yours.speed }] : [];
  const x = { field: "speed", type: "quantitative", title: axisTitle(good[0]), scale: scaleFor(visible) };
  const y = { field: "label", type: "nominal", sort: null, title: null };
  const text = { type: "text", align: "left", dx: 6, color: ink() };
  await draw({
    data: { values: visible }, height: { step: 24 },
    layer: [
      { mark: { type: "bar", tooltip: true }, encoding: { x, y, ...colours(), tooltip: tooltips() } },
      { transform: [{ filter: "isValid(datum.low)" }], mark: { type: "rule", color: ink(), strokeWidth: 1.5 },
        encoding: { x: { field: "low", type: "quantitative" }, x2: { field: "high" }, y } },
      { mark: text, encoding: { x: { field: "high", type: "quantitative" }, y, text: { field: "said" } } },
      { data: { values: reference }, mark: { type: "rule", strokeDash: [5, 4], color: ORANGE },
        encoding: { x: { field: "speed", type: "quantitative" } } },
    ],
  });
}

async function drawPrices(now) {
  const priced = now.chosen.filter((row) => row.speed !== null && data.prices[row.machine])
    .map((row) => ({ ...forChart(row, now), ...data.prices[row.machine] }));
  heading(now, priced, "no machine with a known price has this number");
  if (!priced.length) return;
  const x = { field: "price", type: "quantitative", title: `price in ${unique(priced.map((r) => r.currency)).join(", ")}`,
    scale: { zero: false } };
  const y = { field: "speed", type: "quantitative", title: axisTitle(priced[0]), scale: scaleFor(priced) };
  await draw({
    data: { values: priced }, height: 420,
    layer: [
      { mark: { type: "point", filled: true, size: 90, tooltip: true },
        encoding: { x, y, ...colours(), tooltip: [...tooltips(), { field: "price" }, { field: "date" }] } },
      { mark: { type: "text", dy: -12, color: ink() }, encoding: { x, y, text: { field: "label" } } },
    ],
  });
}

async function drawPair(now) {
  $("#title").textContent = now.machine && now.other ? `${now.machine} beside ${now.other}` : "Two machines";
  const pairs = pairUp(now);
  $("#note").textContent = !now.machine || !now.other ? "Choose your machine and another one." : pairs.length
    ? `How many times as fast ${now.machine} is, over ${pairs.length} numbers that both measured; ` +
      `geometric mean ${digits(geometricMean(pairs.map((pair) => pair.ratio)))}. Right of 1 it is the faster one.`
    : "The two have no number in common.";
  if (!pairs.length) return;
  const x = { field: "ratio", type: "quantitative", title: "speed ratio (log scale)", scale: { type: "log", nice: false } };
  const y = { field: "name", type: "nominal", sort: null, title: null };
  await draw({
    data: { values: pairs }, height: { step: 22 },
    layer: [
      { mark: { type: "rule", color: ink() }, transform: [{ filter: "isValid(datum.low)" }],
        encoding: { x: { field: "low", type: "quantitative", scale: { type: "log" } }, x2: { field: "high" }, y } },
      { mark: { type: "point", filled: true, size: 80, tooltip: true, color: blue() }, encoding: { x, y,
        tooltip: ["name", "ratio", "low", "high", "verdict"].map((field) => ({ field })) } },
      { data: { values: [{ one: 1 }] }, mark: { type: "rule", strokeDash: [5, 4], color: ORANGE },
        encoding: { x: { field: "one", type: "quantitative", scale: { type: "log" } } } },
    ],
  });
  const columns = { name: "number", ratio: "ratio", low: "low", high: "high", verdict: "verdict", differs: "differs in", disturbed: "disturbed",
    first: now.machine, second: now.other, unit: "unit" };
  $("#rows").replaceChildren(asTable(pairs, columns));
}

function pairUp(now) {
  const usable = rows.filter((row) => row.speed !== null && (row.protocol === "2023") === (now.older === "yes") &&
    (now.synthetic === "yes" || row.data !== "synthetic"));
  const key = (row) => JSON.stringify([row.experiment, row.test, row.configuration, row.unit]);
  const second = new Map(usable.filter((row) => row.machine === now.other).map((row) => [key(row), row]));
  return usable.filter((row) => row.machine === now.machine && second.has(key(row))).map((a) => {
    const b = second.get(key(a));
    const [above, below] = a.higher ? [a, b] : [b, a];
    const [ratio, low, high] = ratioWithInterval(above, below);
    const verdict = low === null ? "no interval" : low <= 1 && high >= 1 ? "no significant difference"
      : ratio > 1 ? "first is faster" : "second is faster";
    const name = [a.experiment, a.test, a.configuration].filter(Boolean).join(", ");
    const differs = ["data", "project_version"].filter((n) => a[n] !== b[n]).map((n) => `${n}: ${a[n]} / ${b[n]}`).join("; ");
    const disturbed = [a.disturbed && "first", b.disturbed && "second"].filter(Boolean).join(" and ");
    return { name, differs, disturbed, first: a.speed, second: b.speed, unit: a.unit, ratio, low, high, verdict };
  });
}

// As compare_results.py: Fieller's limits from two half-widths.
function ratioWithInterval({ speed: a, ci95: da }, { speed: b, ci95: db }) {
  if (da === null || db === null || db >= b) return [a / b, null, null];
  const width = b * b - db * db;
  const root = Math.sqrt(Math.max(0, (a * b) ** 2 - (a * a - da * da) * width));
  return [a / b, Math.max((a * b - root) / width, 1e-9), (a * b + root) / width];
}

// The table of all rows

const COLUMNS = { machine: "machine", experiment: "experiment", test: "number", configuration: "configuration",
  speed: "speed", ci95: "+/-", unit: "unit", data: "data", extrapolated: "extrapolated", disturbed: "disturbed", status: "status",
  protocol: "protocol", framework: "framework", project_version: "version", started_at: "measured", source: "file" };

function drawTable(now) {
  const words = now.search.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter((row) => {
    const text = words.length ? Object.values(row).join(" ").toLowerCase() : "";
    return words.every((word) => text.includes(word));
  });
  const order = (a, b) => (a === b ? 0 : a === null || a === "" ? 1 : b === null || b === "" ? -1 : a < b ? -1 : 1);
  found.sort((a, b) => (table.down ? -1 : 1) * order(a[table.sort], b[table.sort]));
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  table.page = Math.min(table.page, pages - 1);
  $("#title").textContent = "All rows";
  $("#note").textContent = `${found.length.toLocaleString()} of ${rows.length.toLocaleString()} rows, with where they are from.`;
  const pager = document.createElement("div");
  pager.className = "pager";
  const place = document.createElement("span");
  place.textContent = `page ${table.page + 1} of ${pages}`;
  pager.append(button("Back", () => turn(-1), table.page === 0), place,
    button("Next", () => turn(1), table.page === pages - 1), button("Download as CSV", () => download(found)));
  const page = found.slice(table.page * PAGE, (table.page + 1) * PAGE);
  $("#rows").replaceChildren(pager, asTable(page, COLUMNS, sortBy, now.machine));
}

function turn(step) { table.page += step; render(); }

function sortBy(name) {
  table = { sort: name, down: table.sort === name && !table.down, page: 0 };
  render();
}

function asTable(list, columns, onSort, yours) {
  const element = document.createElement("table");
  const head = element.createTHead().insertRow();
  for (const [name, title] of Object.entries(columns)) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.className = list.some((row) => typeof row[name] === "number") ? "number" : "";
    if (onSort && name === table.sort) cell.setAttribute("aria-sort", table.down ? "descending" : "ascending");
    cell.append(onSort ? button(title, () => onSort(name)) : title);
    head.append(cell);
  }
  const body = element.createTBody();
  for (const row of list) {
    const line = body.insertRow();
    if (yours && row.machine === yours) line.className = "yours";
    for (const name of Object.keys(columns)) {
      const cell = line.insertCell();
      const value = row[name];
      cell.textContent = typeof value === "number" ? digits(value) : value === true ? "yes" : value || "";
      cell.title = cell.textContent;
      if (typeof value === "number") cell.className = "number";
    }
  }
  return element;
}

function download(found) {
  // A spreadsheet takes a text that begins so for a formula.
  const cell = (value) => {
    const text = String(value ?? "");
    return `"${(typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
  };
  const names = Object.keys(COLUMNS);
  const lines = [names, ...found.map((row) => names.map((name) => row[name]))].map((line) => line.map(cell).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
  link.download = "machine_learning_speed.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

// Small things

function forChart(row, now) {
  const weak = [row.disturbed && "disturbed", row.data === "synthetic" && "synthetic", row.extrapolated && "extrapolated",
    row.protocol === "2023" && "2023"].filter(Boolean).join(", ");
  const half = row.ci95 ?? 0;
  return { ...row, weak, yours: row.machine === now.machine, evidence: weak ? "weaker" : "measured whole, real data",
    label: [row.machine.replaceAll("_", " "), row.configuration].filter(Boolean).join(", "),
    low: row.ci95 === null ? null : Math.max(row.speed - half, row.speed / 1e3), high: row.speed + half,
    said: [digits(row.speed), narrow() ? weak.replace(/\B\w+/g, "") : weak].filter(Boolean).join("  ") };
}

function heading(now, list, none) {
  const best = list.length ? (list[0].higher ? "higher is better" : "lower is better") : none;
  $("#title").textContent = `${now.experiment ?? "No results"}, ${now.test ?? ""}: ${list[0]?.axis ?? "speed"} (${best})`;
  const yours = list.findIndex((row) => row.yours);
  $("#note").textContent = yours >= 0 ? `${now.machine} is number ${yours + 1} of ${list.length}.`
    : now.machine && list.length ? `${now.machine} has no such number.` : "";
}

function axisTitle(row) { return `${row.axis} (${row.higher ? "higher" : "lower"} is better)`; }

function scaleFor(list) {
  const values = list.map((row) => row.speed);
  return Math.max(...values) > 100 * Math.min(...values) ? { type: "log" } : {};
}

function colours() {
  return { color: { condition: { test: "datum.yours", value: ORANGE }, value: blue() },
    opacity: { condition: { test: "datum.weak != ''", value: 0.55 }, value: 1 } };
}

function tooltips() {
  return ["machine", "configuration", "speed", "ci95", "unit", "data", "extrapolated", "disturbed", "framework", "started_at"]
    .map((field) => ({ field }));
}

function blue() { return dark.matches ? "#56b4e9" : "#0072b2"; }
function narrow() { return $("#chart").clientWidth < 600; }
function ink() { return dark.matches ? "#ececec" : "#1b1b1b"; }

function draw(spec) {
  const size = narrow() ? 10 : 12;
  const labels = { labelLimit: narrow() ? 130 : 330, labelColor: ink(), titleColor: ink(), labelFontSize: size,
    gridOpacity: 0.25, domainColor: ink(), tickColor: ink() };
  const config = { background: "transparent", axis: labels, view: { stroke: null }, text: { fontSize: size } };
  return vegaEmbed("#chart", { $schema: "https://vega.github.io/schema/vega-lite/v6.json", width: "container", ...spec,
    config }, { actions: false, renderer: "svg" });
}

function option(value, text = value) {
  const element = document.createElement("option");
  element.value = value;
  element.textContent = text;
  return element;
}

function button(text, act, disabled = false) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.disabled = disabled;
  element.addEventListener("click", act);
  return element;
}

function digits(value) {
  return value === null || value === undefined ? "" : value.toLocaleString(undefined, { maximumSignificantDigits: value >= 1000 ? 4 : 3 });
}

function geometricMean(values) { return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length); }
function unique(values) { return [...new Set(values)]; }
function known(value, values, fallback = values[0]) { return values.includes(value) ? value : fallback; }

function mostCommon(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1])[0]?.[0];
}

function debounce(act, milliseconds) {
  let timer;
  return () => { clearTimeout(timer); timer = setTimeout(act, milliseconds); };
}
