// Runs while they are trained: curves, first-layer weights and mistakes, by server-sent events.

import { drawChart } from "./chart.js";
import { drawValues, element, showError } from "./draw.js";
import { nats, percent } from "./numbers.js";

const $ = (selector) => document.querySelector(selector);
const COLOURS = ["--plus", "--minus", "--text", "--bad", "--soft", "--accent"];
const ROW = { train: 2, validationAccuracy: 3, testAccuracy: 4, validation: 5, test: 6, seconds: 8 };
const curves = new Map();
let source = null, shown = [], runs = [], isChosen = false, openMistake = null;

// `names` are the runs to show, none for the newest; `onMistake` opens an image with its truth.
export function showRuns(isVisible, names, onMistake) {
  openMistake = onMistake;
  source?.close();
  source = null;
  if (names) [shown, isChosen] = [names, true];
  if (isVisible) listen();
}

function listen() {
  source?.close();
  const query = new URLSearchParams(isChosen ? shown.map((name) => ["run", name]) : []);
  source = new EventSource(`v1/events?${query}`);
  source.addEventListener("open", () => showError(""));
  source.addEventListener("runs", (event) => {
    ({ shown, runs } = JSON.parse(event.data));
    show();
  });
  source.addEventListener("curve", (event) => {
    const curve = JSON.parse(event.data);
    curves.set(curve.name, curve);
    show();
  });
  source.addEventListener("snapshot", (event) => showSnapshot(JSON.parse(event.data)));
  source.addEventListener("failed", (event) => {
    source.close();
    showError(`The runs cannot be followed: ${JSON.parse(event.data).reason}`);
  });
  source.addEventListener("error", () => showError(source.readyState === EventSource.CLOSED
    ? "The runs cannot be followed: the server refuses." : "The server does not answer: has it been stopped?"));
}

const colourAt = (place) => `var(${COLOURS[place % COLOURS.length]})`;
const minutes = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`);

function show() {
  $("#no-runs").hidden = runs.length > 0;
  for (const card of document.querySelectorAll(".followed")) card.hidden = !runs.length;
  if ($("#runs").dataset.focus !== (shown[0] ?? "")) clearSnapshot();
  listRuns();
  drawCharts();
}

// Weights and mistakes of the run before are not those of this one.
function clearSnapshot() {
  $("#runs").dataset.focus = shown[0] ?? "";
  $("#has-weights").hidden = true;
  $("#no-weights").hidden = false;
  $("#no-weights").textContent = $("#mistakes-note").textContent = shown.length
    ? "They appear after the first epoch." : "Choose a run above.";
  $("#mistakes").replaceChildren();
}

// What a run has reached: where it is, and how long it will take, or its result.
function progress({ name, state, epochs, test_accuracy: accuracy }) {
  const curve = curves.get(name), rows = curve?.epochs ?? [];
  if (state !== "running") {
    if (typeof accuracy === "number") return `${state}, ${(100 * accuracy).toFixed(2)} % of the test images`;
    return `${state}, ${epochs ?? "?"} epochs`;
  }
  const done = rows.at(-1)?.[1] ?? 0, perEpoch = done ? rows.at(-1)[0] / done : 0;
  const place = `epoch ${Math.min(done + 1, epochs ?? done + 1)} of ${epochs ?? "?"}`;
  const seconds = rows.map((row) => row[ROW.seconds]).filter((value) => value !== null);
  if (!perEpoch || !seconds.length || !epochs) return `running, ${place}`;
  const mean = seconds.reduce((sum, value) => sum + value, 0) / seconds.length;
  const left = Math.max(0, epochs - (curve.steps.at(-1)?.[0] ?? rows.at(-1)[0]) / perEpoch) * mean;
  return `running, ${place}, about ${minutes(left)} left`;
}

function listRuns() {
  $("#run-list").replaceChildren(...runs.map((run) => {
    const { name, state } = run, isShown = shown.includes(name);
    const input = element("input", { type: "checkbox", checked: isShown });
    input.addEventListener("change", () => {
      shown = input.checked ? [...shown, name] : shown.filter((other) => other !== name);
      isChosen = shown.length > 0;
      listen();
    });
    const swatch = element("span", { className: "swatch" });
    if (isShown && shown.length > 1) swatch.style.background = colourAt(shown.indexOf(name));
    return element("li", {}, element("label", {}, input, swatch, element("span", { className: "name" }, name),
      element("span", { className: `state ${state}` }, progress(run))));
  }));
  for (const title of document.querySelectorAll(".focus-name")) title.textContent = shown[0] ?? "";
}

function drawCharts() {
  const lines = shown.map((name) => curves.get(name)).filter(Boolean);
  // Of one run the training is in one colour and the test in another; each of several runs has its own.
  const series = (index, rowIndices, names, of = (value) => value) => lines.flatMap((curve, place) => {
    const title = (name) => (lines.length > 1 ? `${curve.name}, ${name}` : name);
    const colour = colourAt(place), second = lines.length > 1 ? colour : colourAt(1);
    const steps = curve.steps.map((row) => [row[0], of(row[index])]);
    const column = (key) => curve.epochs.filter((row) => typeof row[key] === "number").map((row) => [row[0], of(row[key])]);
    const training = steps.length || index !== 1 ? steps : column(ROW.train);
    const key = rowIndices.find((one) => column(one).length);
    const made = [{ name: title(names[0]), colour, points: training, isFaint: lines.length > 1 && key !== undefined }];
    if (key !== undefined) made.push({ name: title(names[1 + rowIndices.indexOf(key)]), colour: second, points: column(key), isDotted: true });
    return made;
  });
  const classes = runs.find(({ name }) => name === shown[0])?.class_names?.length;
  const names = ["training", "validation", "test"];
  const round = (value) => +value.toPrecision(6);
  drawChart($("#loss-chart"), { series: series(1, [ROW.validation, ROW.test], names), isLog: true,
    label: "Loss by step, on a logarithmic axis; training: means over the last steps",
    format: (value, isTick) => (isTick ? `${round(value)}` : nats(value)),
    guess: classes ? { value: Math.log(classes), name: `guessing: ln ${classes} = ${nats(Math.log(classes))}` } : null });
  drawChart($("#accuracy-chart"), { series: series(2, [ROW.validationAccuracy, ROW.testAccuracy], names, (value) => 1 - value), isLog: true,
    label: "Images predicted wrongly, by step, on a logarithmic axis",
    format: (value, isTick) => (isTick ? `${round(100 * value)} %` : `${(100 * value).toFixed(2)} %`),
    guess: classes ? { value: 1 - 1 / classes, name: `guessing: ${round(100 * (1 - 1 / classes))} %` } : null });
  drawChart($("#rate-chart"), { series: series(3, [], ["learning rate"]), label: "By step",
    format: (value, isTick) => `${isTick ? round(value) : +value.toPrecision(3)}` });
}

function showSnapshot(snapshot) {
  $("#has-weights").hidden = !snapshot.weights;
  $("#no-weights").hidden = Boolean(snapshot.weights);
  if (snapshot.weights) {
    const bytes = Uint8Array.from(atob(snapshot.weights), (letter) => letter.charCodeAt(0));
    $("#weights").width = $("#weights").width; // clears it
    drawValues($("#weights"), Array.from(new Int8Array(bytes.buffer)), 127, { columns: 28, tile: 28 });
  } else $("#no-weights").textContent = `No weights: ${snapshot.reason}.`;
  const { num_wrong: wrong, num_tested: tested, split, reason } = snapshot;
  $("#mistakes-note").textContent = reason ? `No mistakes: ${reason}.` : `${wrong} of the first ${tested.toLocaleString("en")} ${split} images `
    + `are wrong (${((100 * wrong) / tested).toFixed(2)} %), the most confident first. Click one to open it in Draw.`;
  $("#mistakes").replaceChildren(...snapshot.mistakes.map((one) => {
    const button = element("button", { type: "button" },
      element("img", { src: one.image, alt: "" }),
      element("p", {}, `true ${one.label}, predicted ${one.prediction} (${percent(one.probability)})`));
    button.title = `${split} image ${one.index}, counted from 0`;
    button.addEventListener("click", () => openMistake(one, snapshot.name).catch((error) => showError(error.message)));
    return element("li", {}, button);
  }));
}
