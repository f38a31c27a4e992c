// What a network makes of an image: prediction, input, stages, activations, loss.

import { drawGray, drawValues, element } from "./draw.js";

const percent = (value) => `${(100 * value).toFixed(value > 0.9995 && value < 1 ? 2 : 1)} %`;
const number = (value, digits = 4) => (Number.isFinite(+value) ? (+value).toFixed(digits) : String(value));
const small = (value) => (value !== 0 && Math.abs(value) < 5e-5 ? (+value).toExponential(1) : number(value));
const text = (place, content) => Object.assign(place, { textContent: content });

export class View {
  constructor(onIndex) {
    this.article = document.querySelector("#answer").content.cloneNode(true).firstElementChild;
    this.onIndex = onIndex;
  }

  find(selector) { return this.article.querySelector(selector); }

  // `inspected` is one entry of what /v1/inspect returns.
  show(inspected, index, isOneOfTwo) {
    const chosen = inspected.records[Math.min(index, inspected.records.length - 1)];
    this.showPrediction(inspected, chosen);
    this.find(".stages").replaceChildren(...Object.entries(inspected.stages).map(([name, url]) =>
      element("figure", {}, element("img", { src: url, alt: "" }),
        element("figcaption", {}, name))));
    for (const place of this.article.querySelectorAll(".which")) text(place, isOneOfTwo ? ` (${inspected.checkpoint})` : "");
    const hasDigit = inspected.explanation !== null;
    for (const card of this.article.querySelectorAll(".card:not(.verdict)")) card.hidden = !hasDigit;
    if (!hasDigit) return;
    this.showInput(inspected.explanation);
    this.showLayers(inspected);
    this.showLoss(inspected.explanation);
  }

  showPrediction(inspected, chosen) {
    const card = this.find(".verdict"), label = this.find(".label");
    card.classList.toggle("rejected", chosen.status !== "ok");
    text(card.querySelector("h2"), `Prediction (${inspected.checkpoint})`);
    const name = chosen.class_name ?? "–";
    text(label, chosen.status === "ok" || chosen.label === null ? name : `${name}?`);
    label.classList.toggle("word", name.length > 2);
    const certain = chosen.probability === null ? "" : `${percent(chosen.probability)} probable`;
    text(this.find(".reason"), chosen.reason ? `Rejected: ${chosen.reason}.` : certain);
    const several = inspected.records.length > 1 ? inspected.records : [];
    this.find(".digits").replaceChildren(...several.map((record, place) => {
      const button = element("button", { type: "button" }, record.class_name ?? "?");
      button.setAttribute("aria-pressed", record === chosen);
      button.addEventListener("click", () => this.onIndex(place));
      return button;
    }));
    const classes = [...chosen.top_k].sort((a, b) => a.label - b.label);
    this.find(".bars").replaceChildren(...classes.map((one) => {
      const bar = element("i");
      bar.style.width = `${100 * one.probability}%`;
      return element("li", { className: one.label === chosen.label ? "best" : "" },
        one.class_name, element("span", {}, bar), element("em", {}, percent(one.probability)));
    }));
  }

  showInput(explanation) {
    drawGray(this.find(".input"), explanation.pixels);
    const maps = explanation.gradient_times_input;
    const name = explanation.class_names[explanation.rows[0].target];
    const values = maps[name].flat();
    drawValues(this.find(".attribution"), values, Math.max(...values.map(Math.abs)), { columns: 28 });
    text(this.find(".attribution + figcaption"), `gradient × input for ${name}`);
  }

  showLayers({ activations, explanation }) {
    const names = explanation.class_names;
    this.find(".layers").replaceChildren(...activations.map((values, place) => {
      const isLast = place === activations.length - 1;
      const largest = Math.max(...values.map(Math.abs));
      const canvas = element("canvas", { className: "pixels" });
      canvas.setAttribute("role", "img");
      const active = values.filter((value) => value > 0).length / values.length;
      const caption = isLast ? `largest ${Math.max(...values).toFixed(1)}`
        : `${Math.round(100 * active)} % active, largest ${largest.toFixed(1)}`;
      const title = `l${place + 1}: ${values.length} ${isLast ? "logits" : "units"}`;
      canvas.setAttribute("aria-label", `${title}, ${caption}`);
      drawValues(canvas, values, largest, { columns: Math.min(values.length, isLast ? 10 : 65) });
      canvas.style.height = isLast ? "24px" : `${8 * canvas.height}px`;
      const figure = element("figure", {}, element("figcaption", {},
        element("span", {}, title), element("span", {}, caption)), canvas);
      if (isLast && values.length === names.length)
        figure.append(element("div", { className: "note names" }, ...names.map((one) => element("span", {}, one))));
      return figure;
    }));
  }

  showLoss(explanation) {
    const [row] = explanation.rows, names = explanation.class_names;
    const isBinary = explanation.kind === "binary", guess = Math.log(names.length);
    const truth = names[row.target], p = row.probabilities[row.target];
    this.find(".figures").replaceChildren(element("b", { className: "value" }, small(row.loss)),
      element("span", {}, `= −ln ${small(p)}, if the truth is ${truth}`));
    this.find("tbody").replaceChildren(...names.map((name, label) => {
      const logit = isBinary ? [0, ...row.logits][label] : row.logits[label];
      const cells = [number(logit, 2), small(row.probabilities[label]),
        number(row.negative_log_probabilities[label], 2),
        small(row.probabilities[label] - (label === row.target))];
      return element("tr", { className: label === row.target ? "target" : "" },
        element("th", { scope: "row" }, name), ...cells.map((cell) => element("td", {}, cell)));
    }));
    const pairs = (entries) => entries.flatMap(([term, meaning]) =>
      [element("dt", {}, term), element("dd", {}, meaning)]);
    this.find(".meaning").replaceChildren(...pairs([
      ["logits z", "What the last layer gives: any numbers, of which only the differences count."],
      [isBinary ? "sigmoid p" : "softmax p", `Makes them probabilities: ${isBinary
        ? "1 / (1 + exp(−z)) for yes." : "exp z, divided by the sum of exp z over the classes."}`],
      ["loss", `−ln of the probability of the truth: 0 where it is certain, ln ${names.length} = ${
        guess.toFixed(2)} for guessing; here ${number(row.loss, 2)}.`],
      ["p − y", "The gradient of the loss in each logit (y is 1 for the truth, else 0): a training "
        + "step raises the logit where it is negative."],
    ]));
    text(this.find(".agree"), explanation.agree ? ", which agree" : ", which differ: see the note");
    this.find(".methods").replaceChildren(...pairs(Object.entries(explanation.losses).map(
      ([method, loss]) => {
        const [, formula, meaning] = explanation.methods[method];
        return [number(loss, 6), `${formula}: ${meaning}.`];
      })));
    text(this.find(".notes"), explanation.notes.filter((note) => !note.includes("--target")).join(" "));
  }
}
