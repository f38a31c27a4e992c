// The drawing area: strokes by mouse, finger, pen or keyboard, or an image from elsewhere.

const SIZE = 560; // pixels of the canvas
const SENT = 280; // pixels of the side of what is sent

export class Pad {
  // `onNew` is called when another image begins: with whether it continues the one before, and its
  // truth, if that is known; `onChange` with whether a stroke, or the image, is complete.
  constructor(canvas, overlay, { onNew, onChange }) {
    Object.assign(this, { canvas, overlay, onNew, onChange, strokes: [], file: null, width: 24 });
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.pen = { x: SIZE / 2, y: SIZE / 2, isDown: false, isShown: false };
    this.boxes = [];
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"])
      canvas.addEventListener(name, (event) => this.end(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.showPen(false));
    this.redraw();
  }

  get isEmpty() { return !this.strokes.length && !this.file; }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIZE, ((event.clientY - box.top) / box.height) * SIZE];
  }

  start(point) {
    this.file = null;
    this.strokes.push({ width: this.width, points: [point] });
    this.redraw();
    this.onNew(this.strokes.length > 1);
  }

  begin(event) {
    if (event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointer = event.pointerId;
    this.showPen(false);
    this.start(this.point(event));
  }

  move(event) {
    if (event.pointerId !== this.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const one of events.length ? events : [event]) this.strokes.at(-1).points.push(this.point(one));
    this.redraw();
    this.onChange(false);
  }

  end(event) {
    if (event.pointerId !== this.pointer) return;
    this.pointer = null;
    this.onChange(true);
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const { pen } = this, move = moves[event.key];
    if (move) {
      const step = event.shiftKey ? 6 : 24;
      pen.x = Math.min(SIZE, Math.max(0, pen.x + move[0] * step));
      pen.y = Math.min(SIZE, Math.max(0, pen.y + move[1] * step));
      if (pen.isDown) {
        this.strokes.at(-1).points.push([pen.x, pen.y]);
        this.redraw();
        this.onChange(false);
      }
    } else if (event.key === " ") {
      pen.isDown = !pen.isDown;
      if (pen.isDown) this.start([pen.x, pen.y]);
      this.onChange(true);
    } else if (event.key === "Delete") this.clear();
    else if (event.key === "Backspace" || (event.key === "z" && (event.ctrlKey || event.metaKey))) this.undo();
    else return;
    event.preventDefault();
    this.showPen(true);
  }

  showPen(isShown) {
    this.pen.isShown = isShown;
    if (!isShown) this.pen.isDown = false;
    this.drawOverlay();
  }

  undo() {
    this.strokes.pop();
    this.pointer = null;
    this.pen.isDown = false;
    this.file = null;
    this.redraw();
    this.onNew(true);
    this.onChange(true);
  }

  clear() {
    this.strokes = [];
    this.undo();
  }

  // Shows an image from a file, which is sent as it is.
  async open(file, truth = null) {
    this.strokes = [];
    this.image = null;
    this.file = file;
    this.redraw();
    this.onNew(false, truth);
    this.onChange(true);
    const image = await createImageBitmap(file).catch(() => null);
    if (file !== this.file) return; // another was opened meanwhile
    this.image = image;
    this.redraw();
  }

  redraw() {
    const { context } = this;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, SIZE, SIZE);
    context.imageSmoothingEnabled = !(this.image?.width <= 64); // pixels of small images stay squares
    if (this.file && this.image) context.drawImage(this.image, ...this.place());
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: "#111" });
    for (const { width, points } of this.strokes) {
      context.lineWidth = 2 * width;
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points) context.lineTo(...point);
      context.stroke();
    }
    this.drawOverlay();
    this.canvas.parentElement.querySelector("#hint").hidden = !this.isEmpty;
  }

  // Where the image lies on the canvas: left, top, width, height.
  place() {
    const { width, height } = this.image ?? { width: SENT, height: SENT };
    const scale = SIZE / Math.max(width, height);
    return [(SIZE - width * scale) / 2, (SIZE - height * scale) / 2, width * scale, height * scale];
  }

  // Draws the boxes of the digits (x, y, width, height in pixels of the image) and the pen.
  drawOverlay() {
    const context = this.overlay.getContext("2d");
    context.clearRect(0, 0, SIZE, SIZE);
    const [left, top, width] = this.file ? this.place() : [0, 0, SIZE];
    const scale = width / (this.file ? this.image?.width ?? SENT : SENT);
    context.font = "bold 26px system-ui";
    for (const { box, text } of this.boxes) {
      const [x, y, w, h] = box.map((value) => value * scale);
      Object.assign(context, { lineWidth: 4, strokeStyle: "#b84a00", fillStyle: "#b84a00" });
      context.strokeRect(left + x, top + y, w, h);
      // Beside the box where there is no room above it.
      if (top + y > 30) context.fillText(text, left + x + 2, top + y - 6);
      else context.fillText(text, left + x + w + 6, top + y + 22);
    }
    const { x, y, isDown, isShown } = this.pen;
    if (!isShown) return;
    Object.assign(context, { lineWidth: 4, strokeStyle: isDown ? "#b84a00" : "#00639c" });
    context.beginPath();
    context.arc(x, y, this.width, 0, 7);
    context.moveTo(x - 12, y); context.lineTo(x + 12, y);
    context.moveTo(x, y - 12); context.lineTo(x, y + 12);
    context.stroke();
  }

  // The bytes to send: the file itself, or the drawing as a PNG.
  async blob() {
    if (this.file) return this.file;
    const small = new OffscreenCanvas(SENT, SENT);
    small.getContext("2d").drawImage(this.canvas, 0, 0, SENT, SENT);
    return small.convertToBlob();
  }
}
