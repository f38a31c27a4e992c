// The page: one drawing, one or two networks, and what they make of it.

import { element, showError } from "./draw.js";
import { Pad } from "./pad.js";
import { showRuns } from "./runs.js";
import { View } from "./view.js";

const $ = (selector) => document.querySelector(selector);
const state = { target: null, index: 0, underWay: null, isStale: false, models: [], views: [] };

async function request(path, options = {}) {
  const response = await fetch(path, options).catch(() => null);
  if (!response) throw new Error("The server does not answer: has it been stopped?");
  if (response.status === 401) $("#sign-in").hidden = false;
  const content = response.status === 204 ? null : await response.json();
  if (!response.ok) throw new Error(content.error ?? "The image could not be read.");
  return content;
}

async function signIn(token) {
  await request("v1/session", { method: "POST", headers: { Authorization: `Bearer ${token}` } });
  $("#sign-in").hidden = true;
  showError("");
}

const chosenNetworks = () => [$("#network").value, $("#beside").value].filter(Boolean);

// Asks for the image as it is now. While one draws, one request is under way at a time, and the one
// after a stroke, or another choice, takes the place of the one before.
async function update(isUrgent = true) {
  if (state.underWay && !isUrgent) { state.isStale = true; return; }
  state.underWay?.abort();
  const controller = state.underWay = new AbortController();
  state.isStale = false;
  document.body.dataset.busy = "";
  const startedAt = performance.now();
  try {
    $("#answers").hidden = pad.isEmpty;
    $("#empty").hidden = !pad.isEmpty;
    $("#keep").disabled = pad.isEmpty || !/^\d$/.test(state.target ?? "");
    if (!pad.isEmpty) {
      const query = new URLSearchParams({ multi: $("#multi").checked, index: state.index });
      for (const name of chosenNetworks()) query.append("checkpoint", name);
      if (state.target !== null) query.set("target", state.target);
      const inspected = await send(`v1/inspect?${query}`, controller.signal);
      if (controller.signal.aborted) return;
      show(inspected);
      document.body.dataset.milliseconds = (performance.now() - startedAt).toFixed(1);
    }
    showError("");
  } catch (error) {
    if (controller.signal.aborted) return;
    $("#answers").hidden = true;
    showError(error.message);
  }
  state.underWay = null;
  document.body.dataset.answers = +(document.body.dataset.answers ?? 0) + 1;
  delete document.body.dataset.busy;
  if (state.isStale) update();
}

async function send(path, signal) {
  const body = await pad.blob();
  return request(path, { method: "POST", headers: { "Content-Type": body.type || "image/*" }, body, signal });
}

function show(inspected) {
  $("#answers").classList.toggle("two", inspected.length > 1);
  if (state.views.length !== inspected.length) {
    state.views = inspected.map(() => new View((index) => { state.index = index; update(); }));
    $("#answers").replaceChildren(...state.views.map((view) => view.article));
  }
  inspected.forEach((one, place) => state.views[place].show(one, state.index, inspected.length > 1));
  const { records, explanation } = inspected[0];
  pad.boxes = records.filter((record) => record.box)
    .map((record) => ({ box: Object.values(record.box), text: record.class_name ?? "" }));
  pad.drawOverlay();
  const said = records.map((record) => record.reason ?? `${record.class_name}`).join(" ");
  if ($("#spoken").textContent !== said) $("#spoken").textContent = said;
  if (explanation) showTruths(explanation.class_names);
}

function showTruths(names) {
  if ($("#truths").dataset.names === names.join("\n")) return;
  $("#truths").dataset.names = names.join("\n");
  if (!names.includes(state.target)) state.target = null;
  $("#truths").replaceChildren(...names.map((name) => {
    const input = element("input", { type: "radio", name: "truth", value: name, checked: name === state.target });
    input.addEventListener("change", () => { state.target = name; update(); });
    return element("label", {}, input, name);
  }));
}

async function keep(event) {
  event.preventDefault();
  try {
    const kept = await send(`v1/corrections?label=${state.target}`);
    $("#kept").textContent = `Kept as ${kept.file}. Images in ${kept.folder}: ${kept.number}. `
      + `Train on them: mnist-ce train --dataset folder:${kept.folder}`;
  } catch (error) { showError(error.message); }
}

async function listNetworks() {
  state.models = await request("v1/models");
  const options = () => state.models.map(({ name, test_accuracy: accuracy }) => element("option",
    { value: name }, accuracy ? `${name} (${(100 * accuracy).toFixed(2)} %)` : name));
  const [first, second] = [$("#network").value, $("#beside").value];
  $("#network").replaceChildren(...options());
  $("#beside").replaceChildren(element("option", { value: "" }, "none"), ...options());
  if (first) $("#network").value = first;
  if (second) $("#beside").value = second;
}

function route() {
  const view = location.hash === "#runs" ? "runs" : "draw";
  for (const name of ["draw", "runs"]) {
    $(`#${name}`).hidden = name !== view;
    const link = $(`nav a[href="#${name}"]`);
    if (name === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  showRuns(view === "runs");
  if (view === "draw") listNetworks().catch((error) => showError(error.message));
}

const pad = new Pad($("#pad"), $("#overlay"), (isDone) => {
  if (isDone) state.index = 0;
  update(isDone);
});
$("#undo").addEventListener("click", () => pad.undo());
$("#clear").addEventListener("click", () => pad.clear());
$("#brush").addEventListener("input", (event) => { pad.width = +event.target.value; });
for (const input of [$("#file"), $("#camera")]) input.addEventListener("change", () => {
  if (input.files[0]) pad.open(input.files[0]);
  input.value = "";
});
for (const input of [$("#multi"), $("#network"), $("#beside")]) input.addEventListener("change", () => {
  state.index = 0;
  update();
});
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

const token = /^#token=(.+)$/.exec(location.hash);
if (token) {
  history.replaceState(null, "", "#draw"); // so that the token stays in no address bar
  await Promise.resolve(token[1]).then(decodeURIComponent).then(signIn).catch((error) => showError(error.message));
}
showTruths([..."0123456789"]);
$("#answers").hidden = true;
route();
