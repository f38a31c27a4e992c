// Small images on canvases, in the colours of the theme; elements, and the line for errors.

const colour = (name) => {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
};

// Draws values row by row; a signed one is orange above zero and blue below. `tile` is the side of
// square tiles that lie side by side, each with its own rows.
export function drawValues(canvas, values, limit, { columns, tile = 0 } = {}) {
  const rows = Math.ceil(values.length / columns);
  const [plus, minus] = [colour("--plus"), colour("--minus")];
  const perRow = tile ? Math.floor(canvas.width / (tile + 2)) : 0;
  if (!tile) [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  values.forEach((value, index) => {
    let [x, y] = [index % columns, Math.floor(index / columns)];
    if (tile) {
      const number = Math.floor(index / (tile * tile)), inside = index % (tile * tile);
      x = (number % perRow) * (tile + 2) + (inside % tile);
      y = Math.floor(number / perRow) * (tile + 2) + Math.floor(inside / tile);
    }
    const strength = Math.min(1, Math.abs(value) / (limit || 1));
    image.data.set([...(value < 0 ? minus : plus), 255 * strength], 4 * (y * canvas.width + x));
  });
  context.putImageData(image, 0, 0);
}

export function drawGray(canvas, rows) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(rows[0].length, rows.length);
  rows.flat().forEach((value, index) => image.data.set([value, value, value, 255], 4 * index));
  context.putImageData(image, 0, 0);
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function showError(message) {
  const place = document.querySelector("#error");
  place.textContent = message;
  place.hidden = !message;
}
