// Runs while they are trained: curves, first-layer weights and mistakes, asked for every second.

import { drawChart } from "./chart.js";
import { drawValues, element, showError } from "./draw.js";
import { nats, percent } from "./numbers.js";

const $ = (selector) => document.querySelector(selector);
const COLOURS = ["--plus", "--minus", "--text", "--bad", "--soft", "--accent"];
const ROW = { train: 2, validationAccuracy: 3, testAccuracy: 4, validation: 5, test: 6, seconds: 8 };
const SECONDS = 1, SECONDS_AFTER_AN_ERROR = 5;
let visit = 0, shown = [], runs = [], curves = [], isChosen = false, openMistake = null, request = null;

// `names` are the runs to show, none for the newest; `onMistake` opens an image with its truth.
export function showRuns(isVisible, names, onMistake, requestJson) {
  [openMistake, request] = [onMistake, requestJson];
  if (names) [shown, isChosen] = [names, true];
  visit += 1; // ends the loop of the visit before
  if (isVisible) follow(visit);
}

// Asks again and again, until the view is left; not after a refusal, which would only come again.
async function follow(own) {
  let last = {};
  while (own === visit) {
    let seconds = SECONDS;
    try {
      const names = isChosen ? shown : [];
      const answer = await request(`v1/runs?${new URLSearchParams(names.map((name) => ["run", name]))}`);
      if (own !== visit) return;
      showError("");
      ({ shown, runs, curves } = answer);
      const changed = (key) => JSON.stringify(answer[key]) !== JSON.stringify(last[key]);
      if (["shown", "runs", "curves"].some(changed)) show();
      if (answer.snapshot && changed("snapshot")) showSnapshot(answer.snapshot);
      last = answer;
    } catch (error) {
      if (own !== visit) return;
      showError(error.status ? `The runs cannot be followed: ${error.message}` : error.message);
      if (error.status) return;
      seconds = SECONDS_AFTER_AN_ERROR;
    }
    await new Promise((done) => { setTimeout(done, 1000 * seconds); });
  }
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
  const curve = curves.find((one) => one.name === name), rows = curve?.epochs ?? [];
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
      visit += 1;
      follow(visit);
    });
    const swatch = element("span", { className: "swatch" });
    if (isShown && shown.length > 1) swatch.style.background = colourAt(shown.indexOf(name));
    return element("li", {}, element("label", {}, input, swatch, element("span", { className: "name" }, name),
      element("span", { className: `state ${state}` }, progress(run))));
  }));
  for (const title of document.querySelectorAll(".focus-name")) title.textContent = shown[0] ?? "";
}

function drawCharts() {
  // Of one run the training is in one colour and the test in another; each of several runs has its own.
  const series = (index, rowIndices, names, of = (value) => value) => curves.flatMap((curve, place) => {
    const title = (name) => (curves.length > 1 ? `${curve.name}, ${name}` : name);
    const colour = colourAt(place), second = curves.length > 1 ? colour : colourAt(1);
    const steps = curve.steps.map((row) => [row[0], of(row[index])]);
    const column = (key) => curve.epochs.filter((row) => typeof row[key] === "number").map((row) => [row[0], of(row[key])]);
    const training = steps.length || index !== 1 ? steps : column(ROW.train);
    const key = rowIndices.find((one) => column(one).length);
    const made = [{ name: title(names[0]), colour, points: training, isFaint: curves.length > 1 && key !== undefined }];
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
