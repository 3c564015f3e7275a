// The picture with a layer's grid over it, and the place that is pointed at.

import { COLOURS, cellCentre, gridLines, make, paint } from "./drawing.js";

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

export class Stage {
  // `hover(point)` and `pin(point)` are told of places, as fractions of the picture; null for none.
  constructor({ hover, pin }) {
    this.hover = hover;
    this.pin = pin;
    this.image = make("img", { alt: "" });
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.lines = make("div", { class: "lines" });
    this.cursor = make("div", { class: "cursor" });
    this.region = make("div", { class: "region", hidden: "" }, this.canvas, this.lines, this.cursor);
    this.root = make("div", { class: "stage" }, this.image, this.region);
    this.drawn = "";
    this.listen();
  }

  setPicture(picture, label) {
    this.image.src = picture.url;
    this.root.style.setProperty("--aspect", picture.width / picture.height);
    for (const [name, value] of Object.entries({
      tabindex: 0,
      role: "application",
      "aria-label": label,
      "aria-describedby": "pointing",
    })) {
      this.root.setAttribute(name, value);
    }
    this.region.hidden = true;
    this.answers = null;
    this.drawn = "";
  }

  // Show what is known: `layer` names the grid, `map` may be null, `point` too.
  show({ answers, layer, map, point, pinned }) {
    Object.assign(this, { answers, layer, pinned });
    const { region, size } = answers;
    const { grid } = answers.layers.get(layer);
    const [width, height] = size;
    const [left, top, right, bottom] = region;
    this.region.hidden = false;
    Object.assign(this.region.style, {
      left: `${(100 * left) / width}%`,
      top: `${(100 * top) / height}%`,
      width: `${(100 * (right - left)) / width}%`,
      height: `${(100 * (bottom - top)) / height}%`,
    });
    this.draw(map, grid, (right - left) / (bottom - top));
    this.point(point && answers.cell(layer, point), grid);
  }

  draw(map, grid, aspect) {
    const drawn = [grid.join(), this.layer].join();
    if (drawn !== this.drawn) this.lines.replaceChildren(gridLines(grid));
    if (map && map !== this.map) paint(this.canvas, map, aspect, COLOURS);
    this.drawn = drawn;
    this.map = map;
    this.canvas.hidden = !map;
    this.root.classList.toggle("heated", map !== null);
  }

  point(cell, [rows, columns]) {
    this.cursor.hidden = !cell;
    this.cursor.classList.toggle("held", this.pinned !== null);
    if (!cell) return;
    Object.assign(this.cursor.style, {
      left: `${(100 * cell[1]) / columns}%`,
      top: `${(100 * cell[0]) / rows}%`,
      width: `${100 / columns}%`,
      height: `${100 / rows}%`,
    });
  }

  listen() {
    this.root.addEventListener("pointermove", (event) => this.hover(this.pointOf(event)));
    this.root.addEventListener("pointerleave", () => this.hover(null));
    this.root.addEventListener("pointercancel", () => this.hover(null));
    this.root.addEventListener("click", (event) => {
      const point = this.pointOf(event);
      if (point) this.pin(this.isPinned(point) ? null : point);
    });
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  // The place of an event; null where the model does not look.
  pointOf(event) {
    if (!this.answers) return null;
    const box = this.image.getBoundingClientRect();
    const share = (value, low, side) => Math.min(Math.max((value - low) / side, 0), 1);
    const point = [share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height)];
    return this.answers.cell(this.layer, point) && point;
  }

  isPinned(point) {
    if (!this.pinned) return false;
    return String(this.answers.cell(this.layer, this.pinned)) === String(this.answers.cell(this.layer, point));
  }

  key(event) {
    if (!this.answers || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") return this.pin(null);
    if (!Object.hasOwn(STEPS, event.key)) return;
    event.preventDefault();
    const { grid } = this.answers.layers.get(this.layer);
    const cell = this.pinned && this.answers.cell(this.layer, this.pinned);
    const [row, column] = cell
      ? cell.map((at, side) => Math.min(Math.max(at + STEPS[event.key][side], 0), grid[side] - 1))
      : grid.map((side) => Math.floor((side - 1) / 2));
    const centre = cellCentre(this.answers.region, grid, row, column);
    this.pin(centre.map((at, side) => at / this.answers.size[side]));
  }
}
