// The card from logits to loss: logits that can be moved, and training steps on this digit.

import { element } from "./draw.js";
import { large, lossOf, nats, percent, signed } from "./numbers.js";

const text = (place, content) => Object.assign(place, { textContent: content });
const pairs = (entries) => entries.flatMap(([term, meaning]) => [element("dt", {}, term), element("dd", {}, meaning)]);
const button = (label, onClick, attributes = {}) => {
  const made = element("button", { type: "button", ...attributes }, label);
  made.addEventListener("click", onClick);
  return made;
};

export class LossCard {
  // `onLogits` is called with the probabilities whenever they change; `onSteps` with [steps, learning rate].
  constructor(card, onLogits, onSteps) {
    Object.assign(this, { card, onLogits, onSteps });
    this.find(".reset").addEventListener("click", () => this.useLogits(this.explanation));
    const rate = () => +this.find(".rate").value;
    for (const one of card.querySelectorAll("[data-steps]"))
      one.addEventListener("click", () => onSteps(+one.dataset.steps, rate()));
    this.find(".rate").addEventListener("change", () => onSteps(0, rate()));
  }

  find(selector) { return this.card.querySelector(selector); }

  // `before` is the explanation without steps; `hasTruth` says whether the user chose the target.
  show(explanation, before, { numSteps, hasTruth }) {
    this.explanation = explanation;
    const [row] = explanation.rows, names = explanation.class_names;
    this.isBinary = explanation.kind === "binary";
    this.target = row.target;
    this.find(".truth").textContent = hasTruth ? "" : "The loss for the prediction, until you choose the truth below the drawing. ";
    this.sliders = names.map((name, label) => this.slider(name, label, row));
    this.find("tbody").replaceChildren(...names.map((name, label) => element("tr",
      { className: label === row.target ? "target" : "" }, element("th", { scope: "row" }, name),
      element("td", { className: "logit" }, element("data", {}), this.sliders[label]),
      ...[1, 2, 3, 4].map(() => element("td", {}, element("data", {}))))));
    this.useLogits(explanation);
    this.showMeaning(explanation);
    this.showSteps(explanation, before, numSteps, hasTruth);
  }

  slider(name, label, row) {
    const limit = Math.max(10, Math.ceil(1.2 * Math.max(...row.logits.map(Math.abs))));
    const input = element("input", { type: "range", min: -limit, max: limit, step: "any", disabled: this.isBinary && label === 0 });
    input.setAttribute("aria-label", `Logit of ${name}`);
    input.addEventListener("input", () => {
      this.logits[label] = +input.value;
      this.compute(true);
    });
    return input;
  }

  useLogits({ rows: [row] }) {
    this.logits = this.isBinary ? [0, ...row.logits] : [...row.logits];
    this.sliders.forEach((input, label) => { input.value = this.logits[label]; });
    this.compute(false);
  }

  compute(isMoved) {
    const { exponentials, probabilities, losses, gradient, loss } = lossOf(this.logits, this.target);
    const fill = (cells, values, formats) => cells.forEach((cell, place) => {
      Object.assign(cell, { value: values[place] });
      text(cell, values[place] === "" ? "" : formats[place](values[place]));
    });
    const formats = [(value) => value.toFixed(2), large, percent, nats, signed];
    const columns = [this.logits, exponentials, probabilities, losses, gradient];
    this.find("tbody").querySelectorAll("tr").forEach((line, label) =>
      fill([...line.querySelectorAll("data")], columns.map((column) => column[label]), formats));
    const sum = (values) => values.reduce((total, value) => total + value, 0);
    fill([...this.find("tfoot").querySelectorAll("data")],
      [sum(exponentials), sum(probabilities), sum(gradient)], [large, (value) => `${(100 * value).toFixed(1)} %`, signed]);
    const name = this.explanation.class_names[this.target];
    const value = element("data", { className: "value", value: loss }, nats(loss));
    this.find(".figures").replaceChildren(value,
      element("span", {}, `= −ln ${percent(probabilities[this.target])}, if the truth is ${name}`));
    this.find(".reset").disabled = !isMoved;
    this.find(".four").classList.toggle("stale", isMoved);
    this.onLogits(probabilities);
  }

  showMeaning(explanation) {
    const names = explanation.class_names, guess = Math.log(names.length);
    const p = this.isBinary ? "sigmoid p" : "softmax p";
    text(this.find(".p-name"), p);
    this.find(".meaning").replaceChildren(...pairs([
      ["logits z", `What the last layer gives: any numbers, of which only the differences count. ${
        this.isBinary ? "Of yes or no there is one; that of no is 0." : ""} Drag one to see what follows.`],
      [p, "exp z, divided by the sum of exp z over the classes (Σ): numbers above 0 that sum to 1."],
      ["loss", `−ln of the probability of the truth: 0 where it is certain, ln ${names.length} = ${nats(guess)} for guessing.`],
      ["p − y", "The gradient of the loss in each logit (y is 1 for the truth, else 0): a training "
        + "step raises the logit where it is negative. The gradients sum to 0."],
    ]));
    text(this.find(".agree"), explanation.agree ? ", which agree" : ", which differ: see the note");
    this.find(".methods").replaceChildren(...pairs(Object.entries(explanation.losses).map(([method, loss]) => {
      const [, formula, meaning] = explanation.methods[method];
      return [element("data", { value: +loss }, nats(+loss)), `${formula}: ${meaning}.`];
    })));
    text(this.find(".notes"), explanation.notes.filter((note) => !note.includes("--target")).join(" "));
  }

  showSteps(explanation, before, numSteps, hasTruth) {
    const name = explanation.class_names[this.target];
    for (const one of this.card.querySelectorAll("[data-steps]")) {
      const number = +one.dataset.steps;
      one.disabled = !hasTruth || (number < 0 ? !numSteps : numSteps + number > 100);
    }
    this.find(".rate").disabled = !hasTruth;
    const logits = this.isBinary ? [0, ...before.rows[0].logits] : before.rows[0].logits;
    const start = lossOf(logits, this.target), end = explanation.rows[0].loss;
    const said = this.find(".stepped");
    if (!hasTruth) text(said, "Choose the truth below the drawing first.");
    else if (!numSteps) text(said, `The loss is ${nats(start.loss)} before the first step.`);
    else said.replaceChildren("Loss ", element("data", { className: "before", value: start.loss }, nats(start.loss)), " → ",
      element("data", { className: "after", value: end }, nats(end)),
      ` after ${numSteps} step${numSteps > 1 ? "s" : ""}; ${name}: ${percent(start.probabilities[this.target])} → ${
        percent(explanation.rows[0].probabilities[this.target])}.`);
  }
}
