// A line chart in SVG: round ticks, a legend, and the values under the pointer.

import { element } from "./draw.js";

const svg = (name, attributes, ...children) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
};

// Round numbers from low to high: 1, 2 or 5 times a power of ten.
export function ticks(low, high, isLog, wanted = 5) {
  const within = (values) => values.filter((value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9));
  const round = (value) => +value.toPrecision(12);
  if (isLog) {
    const powers = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) powers.push(10 ** power);
    const sets = [[1, 2, 5], [1, 3], [1]].map((factors) =>
      within(powers.flatMap((power) => factors.map((factor) => round(factor * power)))));
    const every = Math.ceil(sets[2].length / 7);
    const found = sets.find((values) => values.length <= 7) ?? sets[2].filter((_, place) => place % every === 0);
    if (found.length > 1) return found;
  }
  const power = 10 ** Math.floor(Math.log10((high - low) / wanted));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => (high - low) / size <= wanted);
  const first = Math.ceil(low / step - 1e-9);
  return within(Array.from({ length: wanted + 2 }, (_, place) => round((first + place) * step)));
}

// `series` are { name, colour, points: [[x, y], …], isDotted, isFaint }; `guess` is a level with a name.
export function drawChart(place, { series, label, format, isLog = false, guess = null }) {
  const shown = series.filter((one) => one.points.length);
  if (!shown.length) {
    place.replaceChildren(element("p", { className: "note" }, "No figures yet: the first come within seconds of training."));
    return;
  }
  const width = Math.max(260, place.clientWidth), height = 220, left = 56, bottom = 24, top = 10, right = 12;
  const all = shown.flatMap((one) => one.points), values = all.map(([, y]) => y).filter((y) => !isLog || y > 0);
  const lastStep = Math.max(1, ...all.map(([step]) => step));
  let [low, high] = [Math.min(...values, guess?.value ?? Infinity), Math.max(...values, guess?.value ?? 0)];
  if (!values.length) [low, high] = [0.001, 1];
  if (isLog) [low, high] = [Math.max(low / 1.15, high / 1e6), high * 1.15];
  else [low, high] = [0, high * 1.08 || 1];
  const scale = isLog ? Math.log : (value) => value, range = scale(high) - scale(low);
  const x = (step) => left + (step / lastStep) * (width - left - right);
  const y = (value) => height - bottom - ((scale(Math.max(value, low)) - scale(low)) / range) * (height - top - bottom);
  const latest = shown.map((one) => `${one.name} ${format(one.points.at(-1)[1])}`).join(", ");
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${label}. Latest: ${latest}` });
  for (const value of ticks(low, high, isLog))
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value, true)));
  for (const step of ticks(0, lastStep, false, 4))
    root.append(svg("text", { x: x(step), y: height - 6, "text-anchor": step ? "middle" : "start" },
      step.toLocaleString("en")));
  if (guess) root.append(svg("line", { class: "guess", x1: left, x2: width - right, y1: y(guess.value), y2: y(guess.value) }),
    svg("text", { x: width - right, y: y(guess.value) + 14, "text-anchor": "end" }, guess.name));
  for (const { points, colour, isDotted, isFaint } of shown) {
    const path = points.map(([step, value], index) => `${index ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    const drawn = svg("path", { d: path, opacity: isFaint ? 0.5 : 1 });
    drawn.style.stroke = colour;
    root.append(drawn);
    if (isDotted) root.append(...points.map(([step, value]) => {
      const dot = svg("circle", { cx: x(step), cy: y(value), r: 3.5 });
      dot.style.fill = colour;
      return dot;
    }));
  }
  const cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
  root.append(cursor);
  const key = element("div", { className: "key" });
  const nearest = (points, step) => points.reduce((best, one) => (Math.abs(one[0] - step) < Math.abs(best[0] - step) ? one : best));
  const showKey = (step = null) => {
    cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null) for (const end of ["x1", "x2"]) cursor.setAttribute(end, x(step));
    key.replaceChildren(element("span", {}, step === null ? label : `step ${Math.round(step).toLocaleString("en")}`),
      ...shown.map((one) => {
        const swatch = element("span", { className: "swatch" });
        swatch.style.background = one.colour;
        const value = format((step === null ? one.points.at(-1) : nearest(one.points, step))[1]);
        return element("span", {}, swatch, ` ${one.name} ${value}`);
      }));
  };
  const stepOf = (event) => {
    const box = root.getBoundingClientRect(), at = (event.clientX - box.left) * (width / box.width);
    return Math.min(lastStep, Math.max(0, ((at - left) / (width - left - right)) * lastStep));
  };
  root.addEventListener("pointermove", (event) => showKey(stepOf(event)));
  root.addEventListener("pointerleave", () => showKey());
  showKey();
  place.replaceChildren(root, key);
}
