// Probabilities and losses as text: each has one form on the whole page.

export const percent = (value) => {
  if (!Number.isFinite(value)) return "–";
  if (value > 0.999) return "> 99.9 %";
  return value > 0 && value < 0.001 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`;
};

export const nats = (value) => {
  if (!Number.isFinite(value)) return String(value);
  return value > 0 && value < 0.001 ? "< 0.001" : value.toFixed(value < 100 ? 3 : 1);
};

export const signed = (value) => (Math.abs(value) < 0.0005 ? "0.000" : value.toFixed(3));

export const large = (value) => (value !== 0 && (value >= 1e5 || value < 1e-3) ? value.toExponential(1) : value.toPrecision(4));

// What the losses of a network follow from: its logits, one per class (0 and z for yes or no).
export function lossOf(logits, target) {
  const highest = Math.max(...logits);
  const exponentials = logits.map((logit) => Math.exp(logit));
  const stable = logits.map((logit) => Math.exp(logit - highest));
  const sum = stable.reduce((total, value) => total + value, 0);
  const losses = logits.map((logit) => Math.log(sum) + highest - logit);
  const probabilities = stable.map((value) => value / sum);
  const gradient = probabilities.map((p, label) => p - (label === target));
  return { exponentials, probabilities, losses, gradient, loss: losses[target] };
}
