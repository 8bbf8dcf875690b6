// A photograph as the model sees it, with the patches that a stage has pruned dimmed.

import { cropBox, patchEdges } from "./geometry.js";

const PIXELS = 3; // of the canvas for each of the model's: sharp on a dense screen
const DIM = "rgb(11 15 13 / 82%)";
const FADE_MS = 360;

const stillness = matchMedia("(prefers-reduced-motion: reduce)");

export function movesAllowed() {
  return !stillness.matches;
}

/**
 * The part of a photograph that the model sees, transparency on white.
 * @param {ImageBitmap} bitmap upright
 * @returns {HTMLCanvasElement}
 */
export function cropped(bitmap, input) {
  const canvas = document.createElement("canvas");
  canvas.width = input.width * PIXELS;
  canvas.height = input.height * PIXELS;
  const context = canvas.getContext("2d");
  const box = cropBox(bitmap.width, bitmap.height, input);
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, box.left, box.top, box.width, box.height, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** A canvas that shows a photograph through a mask, and fades from one mask to the next. */
export class MaskedPicture {
  #canvas;
  #photograph = null;
  #rows = [];
  #columns = [];
  #dimness = new Float32Array();
  #frame = 0;

  constructor(canvas) {
    this.#canvas = canvas;
  }

  /** Show a photograph as `cropped` gives it, with all its patches. */
  setPhotograph(photograph, model) {
    const [rows, columns] = model.grid;
    this.#photograph = photograph;
    this.#canvas.width = photograph.width;
    this.#canvas.height = photograph.height;
    this.#rows = edges(model.input.height, rows, model.patch_size[0], model.patch_stride[0]);
    this.#columns = edges(model.input.width, columns, model.patch_size[1], model.patch_stride[1]);
    this.#dimness = new Float32Array(rows * columns);
    this.show(null);
  }

  /** Dim all patches but those of `kept`, by their indices; null keeps all. At once, or fading. */
  show(kept, { fade = false } = {}) {
    if (!this.#photograph) return;
    cancelAnimationFrame(this.#frame);
    const from = this.#dimness.slice();
    const to = new Float32Array(from.length).fill(kept === null ? 0 : 1);
    for (const patch of kept ?? []) to[patch] = 0;
    if (!fade || !movesAllowed()) {
      this.#dimness = to;
      this.#draw();
      return;
    }
    const started = performance.now();
    const step = (now) => {
      const part = Math.min(1, Math.max(0, (now - started) / FADE_MS));
      const eased = part * (2 - part);
      this.#dimness = from.map((dimness, patch) => dimness + (to[patch] - dimness) * eased);
      this.#draw();
      if (part < 1) this.#frame = requestAnimationFrame(step);
    };
    this.#frame = requestAnimationFrame(step);
  }

  #draw() {
    const context = this.#canvas.getContext("2d");
    context.globalAlpha = 1;
    context.drawImage(this.#photograph, 0, 0);
    context.fillStyle = DIM;
    const columns = this.#columns.length - 1;
    this.#dimness.forEach((dimness, patch) => {
      if (dimness === 0) return;
      const row = Math.floor(patch / columns);
      const column = patch % columns;
      const [top, left] = [this.#rows[row], this.#columns[column]];
      context.globalAlpha = dimness;
      context.fillRect(left, top, this.#columns[column + 1] - left, this.#rows[row + 1] - top);
    });
  }
}

/** Edges of patches in the canvas's pixels. */
function edges(side, patches, size, stride) {
  return patchEdges(side, patches, size, stride).map((edge) => edge * PIXELS);
}
