// The page: one image at a time, one or two networks, and what they make of it.

import { element, showError } from "./draw.js";
import { Pad } from "./pad.js";
import { showRuns } from "./runs.js";
import { View } from "./view.js";

const $ = (selector) => document.querySelector(selector);
const EXAMPLES = ["seven", "postcode", "sheet", "letter"];

// All that belongs to one image. A new image has a new one, so that nothing of an earlier one is left.
const newImage = (truth = null) => ({
  truth, index: 0, multi: null, history: [0], rate: 0.01, before: null, answer: null,
  get numSteps() { return this.history.at(-1); },
});
const state = { image: newImage(), underWay: null, isStale: false, models: [], views: [] };

async function request(path, options = {}) {
  const response = await fetch(path, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer: has it been stopped?");
  });
  if (response.status === 401) $("#sign-in").hidden = false;
  const content = response.status === 204 ? null : await response.json();
  if (!response.ok) throw Object.assign(new Error(content.error ?? "The image could not be read."), { status: response.status });
  return content;
}

async function signIn(token) {
  await request("v1/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  $("#sign-in").hidden = true;
  showError("");
}

const chosenNetworks = () => [$("#network").value, $("#beside").value].filter(Boolean);

// Begins a new image. An answer of the image that it continues, by a stroke more or less, is dimmed
// until the new one comes; any other is cleared.
function begin(image, isContinued = false) {
  state.underWay?.abort();
  state.underWay = null;
  state.image = image;
  pad.boxes = [];
  pad.drawOverlay();
  showError("");
  $("#kept").replaceChildren();
  showTruth();
  const isDimmed = isContinued && !pad.isEmpty && !$("#answers").hidden;
  $("#answers").classList.toggle("stale", isDimmed);
  if (isDimmed) for (const view of state.views) view.setReading();
  else $("#answers").hidden = true;
  $("#empty").hidden = !pad.isEmpty;
  $("#reading").hidden = pad.isEmpty || isDimmed;
  $("#spoken").textContent = "";
}

// Asks for the image as it is now. While one draws, one request is under way at a time, and the one
// after a stroke, or another choice, takes the place of the one before.
async function update(isUrgent = true) {
  if (state.underWay && !isUrgent) { state.isStale = true; return; }
  state.underWay?.abort();
  const image = state.image, controller = new AbortController();
  state.underWay = controller;
  state.isStale = false;
  document.body.dataset.busy = "";
  const isLate = () => controller.signal.aborted || image !== state.image;
  try {
    if (!pad.isEmpty) {
      const startedAt = performance.now();
      const query = new URLSearchParams({ index: image.index, steps: image.numSteps, learning_rate: image.rate });
      if (image.multi !== null) query.set("multi", image.multi);
      for (const name of chosenNetworks()) query.append("checkpoint", name);
      if (image.truth !== null) query.set("target", image.truth);
      const answer = await send(`v1/inspect?${query}`, await pad.blob(), controller.signal);
      if (isLate()) return;
      image.answer = answer;
      if (!image.numSteps) image.before = answer;
      show(image);
      document.body.dataset.milliseconds = (performance.now() - startedAt).toFixed(1);
    }
    showError("");
  } catch (error) {
    if (isLate()) return;
    $("#answers").hidden = $("#reading").hidden = true;
    image.answer = null;
    showTruth();
    showError(error.message);
  }
  state.underWay = null;
  document.body.dataset.answers = +(document.body.dataset.answers ?? 0) + 1;
  delete document.body.dataset.busy;
  if (state.isStale) update();
}

const send = (path, body, signal) =>
  request(path, { method: "POST", headers: { "Content-Type": body.type || "image/*" }, body, signal });

// Another network, digit or way of reading: what was computed for the last one does not hold.
function ask(changes = {}) {
  Object.assign(state.image, { history: [0], ...changes });
  update();
}

function takeSteps(number, rate) {
  const { image } = state;
  if (rate !== image.rate) image.rate = rate;
  if (number > 0) image.history.push(image.numSteps + number);
  else if (number < 0 && image.history.length > 1) image.history.pop();
  update();
}

function show(image) {
  const inspected = image.answer;
  if (state.views.length !== inspected.length) {
    state.views = inspected.map(() => new View((index) => ask({ index }), takeSteps));
    $("#answers").replaceChildren(...state.views.map((view) => view.article));
  }
  $("#answers").classList.toggle("two", inspected.length > 1);
  $("#answers").classList.remove("stale");
  $("#answers").hidden = false;
  $("#reading").hidden = $("#empty").hidden = true;
  inspected.forEach((one, place) => state.views[place].show(one, image.before[place] ?? one, image, inspected.length > 1));
  const [first, second] = inspected.map((one) => one.explanation?.kind);
  state.views.at(-1).article.classList.toggle("repeats", inspected.length > 1 && first === second);
  const { records } = inspected[0];
  $("#multi").checked = image.multi ?? records.length > 1;
  pad.boxes = records.filter((record) => record.box)
    .map((record) => ({ box: Object.values(record.box), text: record.class_name ?? "" }));
  pad.drawOverlay();
  const said = records.map((record) => record.reason ?? `${record.class_name}`).join(" ");
  if ($("#spoken").textContent !== said) $("#spoken").textContent = said;
  showTruth();
}

// The classes to choose the truth from, and whether the digit can be saved.
function showTruth() {
  const { image } = state, answer = image.answer?.[0];
  const names = answer?.explanation?.class_names ?? (state.names ?? [..."0123456789"]);
  state.names = names;
  if ($("#truths").dataset.names !== names.join("\n")) {
    $("#truths").dataset.names = names.join("\n");
    $("#truths").replaceChildren(...names.map((name) => {
      const input = element("input", { type: "radio", name: "truth", value: name });
      input.addEventListener("change", () => ask({ truth: name }));
      return element("label", {}, input, name);
    }));
  }
  for (const input of $("#truths").querySelectorAll("input")) input.checked = input.value === image.truth;
  const isDigit = /^\d$/.test(image.truth ?? "");
  const record = answer?.records[Math.min(image.index, answer.records.length - 1)];
  $("#keep").textContent = isDigit ? `Save as ${image.truth}` : "Save as …";
  $("#keep").disabled = !isDigit || !record;
  $("#keep").title = isDigit ? "Saves the digit with this label" : "Choose the right digit first; only digits can be saved";
}

// The digit to keep: the image itself, or of several digits the network's input, in which no other is.
async function digitToKeep({ answer: [{ records, explanation }] }) {
  if (records.length === 1 || !explanation) return pad.blob();
  const canvas = new OffscreenCanvas(28, 28), image = new ImageData(28, 28);
  explanation.pixels.flat().forEach((value, place) => image.data.set([value, value, value, 255], 4 * place));
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas.convertToBlob();
}

async function keep(event) {
  event.preventDefault();
  const { image } = state;
  $("#keep").disabled = true;
  try {
    const kept = await send(`v1/corrections?label=${image.truth}`, await digitToKeep(image));
    if (image !== state.image) return;
    $("#keep").textContent = `Saved as ${image.truth}`;
    const command = `mnist-ce train --config adapt --init world --dataset mnist+folder:${kept.folder}`;
    $("#kept").replaceChildren(`${kept.file} in ${kept.folder}, which holds ${kept.number}. From three different images of one `
      + "digit on the network can be adapted to them: ",
      element("code", {}, command));
  } catch (error) {
    if (image !== state.image) return;
    $("#keep").disabled = false;
    showError(error.message);
  }
}

async function openExample(name) {
  const response = await fetch(`examples/${name}.jpg`).catch(() => null);
  if (response?.ok) pad.open(new File([await response.blob()], `${name}.jpg`, { type: "image/jpeg" }));
  else showError("The server does not answer: has it been stopped?");
}

// A mistake of a run, with its truth, read by that run's network.
async function openMistake({ image, label }, run) {
  const bytes = Uint8Array.from(atob(image.split(",")[1]), (letter) => letter.charCodeAt(0));
  location.hash = "#draw";
  await listNetworks();
  $("#network").value = run;
  pad.open(new File([bytes], "mistake.png", { type: "image/png" }), label);
}

async function listNetworks() {
  state.models = await request("v1/models");
  const option = ({ name, test_accuracy: accuracy }) => element("option",
    { value: name }, accuracy ? `${name} (${(100 * accuracy).toFixed(2)} %)` : name);
  const groups = () => [["Shipped", true], ["Your runs, newest first", false]].map(([label, isShipped]) =>
    [label, state.models.filter((model) => model.is_shipped === isShipped)])
    .filter(([, models]) => models.length)
    .map(([label, models]) => element("optgroup", { label }, ...models.map(option)));
  const [first, second] = [$("#network").value, $("#beside").value];
  $("#network").replaceChildren(...groups());
  $("#beside").replaceChildren(element("option", { value: "" }, "None"), ...groups());
  if (first) $("#network").value = first;
  if (second) $("#beside").value = second;
  showNewest();
}

function showNewest() {
  const newest = state.models.find((model) => !model.is_shipped);
  $("#newest").hidden = !newest || $("#network").value === newest.name;
  $("#newest").textContent = `Use your newest run, ${newest?.name}`;
  $("#newest").value = newest?.name ?? "";
}

function route() {
  const [view, run] = location.hash.slice(1).split("=");
  const name = view === "runs" ? "runs" : "draw";
  for (const one of ["draw", "runs"]) {
    $(`#${one}`).hidden = one !== name;
    const link = $(`nav a[href="#${one}"]`);
    if (one === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showError("");
  showRuns(name === "runs", run ? [decodeURIComponent(run)] : null, openMistake, request);
  if (name === "draw") listNetworks().catch((error) => showError(error.message));
}

const pad = new Pad($("#pad"), $("#overlay"), {
  onNew: (isContinued, truth) => begin(newImage(truth), isContinued),
  onChange: update,
});
$("#undo").addEventListener("click", () => pad.undo());
$("#clear").addEventListener("click", () => pad.clear());
$("#brush").addEventListener("input", (event) => { pad.width = +event.target.value; });
for (const input of [$("#file"), $("#camera")]) input.addEventListener("change", () => {
  if (input.files[0]) pad.open(input.files[0]);
  input.value = "";
});
$("#multi").addEventListener("change", (event) => ask({ multi: event.target.checked, index: 0 }));
for (const input of [$("#network"), $("#beside")]) input.addEventListener("change", () => { showNewest(); ask(); });
$("#newest").addEventListener("click", (event) => {
  $("#network").value = event.target.value;
  showNewest();
  ask();
});
$("#examples").append(...EXAMPLES.map((name) => {
  const button = element("button", { type: "button", title: `Open ${name}.jpg` },
    element("img", { src: `examples/${name}.jpg`, alt: `Example: ${name}` }));
  button.addEventListener("click", () => openExample(name));
  return button;
}));
$("#correct").addEventListener("submit", keep);
addEventListener("paste", (event) => { if (event.clipboardData.files[0]) pad.open(event.clipboardData.files[0]); });
addEventListener("dragover", (event) => { event.preventDefault(); $("#paper").classList.add("drop"); });
addEventListener("dragleave", () => $("#paper").classList.remove("drop"));
addEventListener("drop", (event) => {
  event.preventDefault();
  $("#paper").classList.remove("drop");
  if (event.dataTransfer.files[0]) pad.open(event.dataTransfer.files[0]);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => update());
addEventListener("hashchange", route);
$("#sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn($("#token").value).then(route).catch((error) => showError(error.message));
});

let failure = "";
const token = /^#token=(.+)$/.exec(location.hash);
if (token) {
  history.replaceState(null, "", "#draw"); // so that the token stays in no address bar
  await Promise.resolve(token[1]).then(decodeURIComponent).then(signIn).catch((error) => { failure = error.message; });
}
begin(newImage());
route();
if (failure) showError(failure);
