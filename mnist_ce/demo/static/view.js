// What a network makes of an image: prediction, loss, input, stages, activations.

import { drawGray, drawValues, element } from "./draw.js";
import { LossCard } from "./loss.js";
import { percent } from "./numbers.js";

const text = (place, content) => Object.assign(place, { textContent: content });

export class View {
  constructor(onIndex, onSteps) {
    this.article = document.querySelector("#answer").content.cloneNode(true).firstElementChild;
    this.onIndex = onIndex;
    this.loss = new LossCard(this.find(".loss"), (probabilities) => this.showBars(probabilities), onSteps);
    this.find(".copy").addEventListener("click", async () => {
      await navigator.clipboard.writeText(this.find(".lines").textContent);
      text(this.find(".copy"), "Copied");
    });
  }

  find(selector) { return this.article.querySelector(selector); }

  // The answer of the image before, until that of the new one comes.
  setReading() {
    text(this.find(".label"), "…");
    text(this.find(".reason"), "reading…");
  }

  // `inspected` is one entry of what /v1/inspect returns, `before` the one without training steps.
  show(inspected, before, image, isOneOfTwo) {
    const { records, explanation } = inspected;
    const chosen = records[Math.min(image.index, records.length - 1)];
    this.isRejected = chosen.status !== "ok";
    this.before = before.explanation;
    this.explanation = explanation;
    this.showPrediction(inspected, chosen);
    this.find(".stages").replaceChildren(...Object.entries(inspected.stages).map(([name, url]) =>
      element("figure", {}, element("img", { src: url, alt: "" }), element("figcaption", {}, name))));
    for (const place of this.article.querySelectorAll(".which")) text(place, isOneOfTwo ? ` (${inspected.checkpoint})` : "");
    for (const card of this.article.querySelectorAll(".card:not(.verdict)")) card.hidden = explanation === null;
    if (explanation === null) { this.find(".bars").replaceChildren(); return; }
    this.showInput(explanation);
    this.showLayers(inspected);
    this.loss.show(explanation, before.explanation, { numSteps: image.numSteps, hasTruth: image.truth !== null });
  }

  showPrediction({ records, explanation, checkpoint, lines }, chosen) {
    const card = this.find(".verdict"), label = this.find(".label"), isSeveral = records.length > 1;
    card.classList.toggle("rejected", this.isRejected);
    text(card.querySelector("h2"), `Prediction (${checkpoint})`);
    const rows = lines ?? [...new Map(records.map(({ line, text: read }) => [line, read])).values()];
    this.find(".reading").hidden = !isSeveral;
    text(this.find(".copy"), "Copy");
    text(this.find(".lines"), isSeveral ? rows.join("\n") : "");
    const name = explanation ? explanation.class_name : chosen.class_name ?? "–";
    text(label, this.isRejected && explanation ? `${name}?` : name);
    label.classList.toggle("word", name.length > 2 || isSeveral);
    this.summary = isSeveral ? `Digit ${chosen.index + 1} of ${records.length}: ` : "";
    text(this.find(".reason"), chosen.reason ? `${this.summary}rejected: ${chosen.reason}.` : this.summary);
    this.find(".digits").replaceChildren(...(isSeveral ? records : []).flatMap((record, place) => {
      const button = element("button", { type: "button" }, record.class_name ?? "?");
      button.setAttribute("aria-pressed", record === chosen);
      button.classList.toggle("unread", record.status !== "ok");
      button.addEventListener("click", () => this.onIndex(place));
      const isNewLine = place > 0 && record.line !== records[place - 1].line;
      return isNewLine ? [element("span", { className: "break" }), button] : [button];
    }));
  }

  showBars(probabilities) {
    const names = this.explanation.class_names, best = probabilities.indexOf(Math.max(...probabilities));
    text(this.find(".label"), this.isRejected ? `${names[best]}?` : names[best]);
    const past = this.before.rows[0].probabilities;
    if (!this.isRejected) text(this.find(".reason"), `${this.summary}${names[best]} is ${percent(probabilities[best])} probable`);
    this.find(".bars").replaceChildren(...names.flatMap((name, label) => {
      const bar = element("i"), mark = element("s");
      bar.style.width = `${100 * probabilities[label]}%`;
      mark.style.insetInlineStart = `${100 * past[label]}%`;
      mark.hidden = Math.abs(past[label] - probabilities[label]) < 0.001;
      return element("li", { className: label === best ? "best" : "" },
        element("b", {}, name), element("span", {}, bar, mark), element("em", {}, percent(probabilities[label])));
    }));
  }

  showInput(explanation) {
    drawGray(this.find(".input"), explanation.pixels);
    const name = explanation.class_names[explanation.rows[0].target];
    const values = explanation.gradient_times_input[name].flat();
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
      const what = `${isLast ? "logit" : "unit"}${values.length > 1 ? "s" : ""}`;
      const title = `Layer ${place + 1}: ${values.length} ${what}`;
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
}
