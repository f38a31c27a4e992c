// Runs while they are trained: curves, first-layer weights and mistakes, by server-sent events.

import { drawValues, element, showError } from "./draw.js";

const $ = (selector) => document.querySelector(selector);
const COLOURS = ["--plus", "--minus", "--text", "--bad", "--soft", "--accent"];
const curves = new Map();
let source = null, shown = [], isChosen = false;

export function showRuns(isVisible) {
  source?.close();
  source = null;
  if (isVisible) listen();
}

function listen() {
  source?.close();
  const query = new URLSearchParams(isChosen ? shown.map((name) => ["run", name]) : []);
  source = new EventSource(`v1/events?${query}`);
  source.addEventListener("runs", (event) => {
    const content = JSON.parse(event.data);
    shown = content.shown;
    listRuns(content.runs);
    drawCharts();
  });
  source.addEventListener("curve", (event) => {
    const curve = JSON.parse(event.data);
    curves.set(curve.name, curve);
    drawCharts();
  });
  source.addEventListener("snapshot", (event) => showSnapshot(JSON.parse(event.data)));
  source.addEventListener("failed", (event) => {
    source.close();
    showError(`The runs cannot be followed: ${JSON.parse(event.data).reason}`);
  });
  source.addEventListener("error", () => { // otherwise the browser connects again
    if (source.readyState === EventSource.CLOSED) showError("The runs cannot be followed: the server refuses.");
  });
}

const colourOf = (name) => `var(${COLOURS[shown.indexOf(name) % COLOURS.length]})`;

function listRuns(runs) {
  $("#no-runs").hidden = runs.length > 0;
  $("#run-list").replaceChildren(...runs.map(({ name, state, epochs, test_accuracy: accuracy }) => {
    const input = element("input", { type: "checkbox", checked: shown.includes(name) });
    input.addEventListener("change", () => {
      shown = input.checked ? [...shown, name] : shown.filter((other) => other !== name);
      isChosen = shown.length > 0;
      listen();
    });
    const swatch = element("span", { className: "swatch" });
    if (shown.includes(name)) swatch.style.background = colourOf(name);
    const result = accuracy ? `, ${(100 * accuracy).toFixed(2)} %` : `, ${epochs ?? "?"} epochs`;
    return element("li", {}, element("label", {}, input, swatch,
      element("span", { className: "name", title: name }, name),
      element("span", { className: `state ${state}` }, state + result)));
  }));
  for (const title of document.querySelectorAll(".focus-name")) title.textContent = shown[0] ?? "the run";
}

function drawCharts() {
  const lines = shown.map((name) => curves.get(name)).filter(Boolean);
  const column = (curve, index) => curve.steps.map((row) => [row[0], row[index]]);
  const points = (curve, ...indices) => curve.epochs.map((row) =>
    [row[0], indices.map((index) => row[index]).find((value) => value !== null)])
    .filter(([, value]) => value !== undefined);
  drawChart($("#loss-chart"), lines, (curve) => column(curve, 1), (curve) => points(curve, 2),
    "Training loss by step, on a logarithmic scale; dots: means over epochs", Math.log);
  drawChart($("#accuracy-chart"), lines, (curve) => column(curve, 2), (curve) => points(curve, 3, 4),
    "Training accuracy by step; dots: validation or test accuracy");
  drawChart($("#rate-chart"), lines, (curve) => column(curve, 3), () => [], "Learning rate by step");
}

function drawChart(place, curves, line, dots, label, scale = (value) => value) {
  const width = Math.max(260, place.clientWidth), height = 220, left = 52, bottom = 24, top = 8;
  const all = curves.flatMap((curve) => [...line(curve), ...dots(curve)]);
  if (!all.length) {
    place.replaceChildren(element("p", { className: "note" }, "No figures yet."));
    return;
  }
  const lastStep = Math.max(...all.map(([step]) => step));
  let [low, high] = [Math.min(...all.map(([, y]) => y)), Math.max(...all.map(([, y]) => y))];
  if (high === low) [low, high] = [low * 0.9, high * 1.1 || 1];
  if (scale === Math.log) low = Math.max(low, high / 1e6);
  const [bottomValue, range] = [scale(low), scale(high) - scale(low)];
  const x = (step) => left + (step / lastStep) * (width - left - 8);
  const y = (value) => height - bottom - ((scale(Math.max(value, low)) - bottomValue) / range) * (height - top - bottom);
  const svg = (name, attributes, ...children) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const latest = curves.map((curve) => `${curve.name}: ${(line(curve).at(-1) ?? dots(curve).at(-1) ?? [])[1]}`);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `${label}. Latest: ${latest.join(", ")}` });
  const format = (value) => (high < 0.01 ? value.toExponential(1) : value.toPrecision(3));
  for (const part of [0, 1 / 3, 2 / 3, 1]) {
    const value = scale === Math.log ? low * (high / low) ** part : low + part * (high - low);
    root.append(svg("line", { class: "grid", x1: left, x2: width - 8, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
  for (const part of [0, 0.5, 1])
    root.append(svg("text", { x: x(part * lastStep), y: height - 6, "text-anchor": part ? (part < 1 ? "middle" : "end") : "start" },
      part === 1 ? `step ${Math.round(lastStep)}` : Math.round(part * lastStep)));
  for (const curve of curves) {
    const path = line(curve).map(([step, value], index) =>
      `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const drawn = svg("path", { d: path });
    drawn.style.stroke = colourOf(curve.name);
    root.append(drawn, ...dots(curve).map(([step, value]) => {
      const dot = svg("circle", { cx: x(step), cy: y(value), r: 3.5 });
      dot.style.fill = colourOf(curve.name);
      return dot;
    }));
  }
  place.replaceChildren(root, element("p", { className: "note" }, label));
}

function showSnapshot(snapshot) {
  const bytes = Uint8Array.from(atob(snapshot.weights), (letter) => letter.charCodeAt(0));
  $("#weights").width = $("#weights").width; // clears it
  drawValues($("#weights"), Array.from(new Int8Array(bytes.buffer)), 127, { columns: 28, tile: 28 });
  const { num_wrong: wrong, num_tested: tested, split } = snapshot;
  $("#mistakes-note").textContent = snapshot.reason ?? `${wrong} of the first ${tested} ${split} images `
    + `are wrong (${((100 * wrong) / tested).toFixed(2)} %); the most confident first.`;
  $("#mistakes").replaceChildren(...snapshot.mistakes.map((one) => element("li", {},
    element("img", { src: one.image, alt: `A ${one.label}` }),
    element("p", {}, `${one.label}, not ${one.prediction}`),
    element("p", { className: "note" }, `${(100 * one.probability).toFixed(1)} %`))));
}
