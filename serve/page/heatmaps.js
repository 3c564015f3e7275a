// Where the words fit: small maps beside each other, a row for each query, a column for each layer.

import { COLOURS, formatRange, layerTitle, make, paint } from "./drawing.js";

export class HeatMaps {
  // `choose(layer, query)` is told of the map that a reader picks.
  constructor(choose) {
    this.choose = choose;
    this.rows = make("div", { class: "map-rows" });
    this.scroll = make("div", { class: "scroll" }, this.rows);
    this.root = make("section", { class: "maps", hidden: "" }, make("h2", {}, "Where the words fit"), this.scroll);
    this.tiles = [];
    this.drawn = [];
  }

  show({ answers, layer, view, picture }) {
    this.root.hidden = view.words.length === 0;
    const maps = view.words.flatMap((query) => answers.names.map((name) => answers.map(name, query, view)));
    const shown = [picture.url, view.words.join("\n"), ...maps];
    const same = shown.length === this.drawn.length && shown.every((one, i) => one === this.drawn[i]);
    if (!same) this.build(answers, view, picture);
    this.drawn = shown;
    for (const { button, query, name } of this.tiles) {
      button.setAttribute("aria-pressed", String(name === layer && query === view.map));
    }
  }

  build(answers, view, picture) {
    const focused = this.tiles.findIndex(({ button }) => button === document.activeElement);
    this.tiles = [];
    this.rows.style.setProperty("--layers", answers.names.length);
    this.rows.replaceChildren(
      ...view.words.map((query) => {
        const tiles = answers.names.map((name) => this.tile(answers, view, picture, name, query));
        return make("div", { class: "map-row" }, make("h3", {}, `\u201c${query}\u201d`), make("div", { class: "tiles" }, ...tiles));
      }),
    );
    this.tiles[focused]?.button.focus();
    const crowded = answers.names.length > 6;
    this.scroll.classList.toggle("crowded", crowded);
    if (crowded) this.scroll.setAttribute("tabindex", 0); // so that the arrow keys can scroll it
    else this.scroll.removeAttribute("tabindex");
  }

  tile(answers, view, picture, name, query) {
    const map = answers.map(name, query, view);
    const [left, top, right, bottom] = answers.region;
    const aspect = (right - left) / (bottom - top);
    const canvas = make("canvas", { "aria-hidden": "true" });
    const frame = make("span", { class: "frame" }, placed(picture, answers), canvas);
    frame.style.aspectRatio = aspect;
    const range = map ? formatRange(paint(canvas, map, aspect, COLOURS)) : "reading \u2026";
    const title = layerTitle({ layer: name });
    const button = make(
      "button",
      { type: "button", class: map ? "tile" : "tile waiting", "aria-pressed": "false" },
      frame,
      make("span", { class: "layer-name" }, title),
      make("span", { class: "range" }, range),
    );
    button.setAttribute("aria-label", `\u201c${query}\u201d in ${title}: ${map ? `${range} nats` : "not there yet"}`);
    button.addEventListener("click", () => this.choose(name, query));
    this.tiles.push({ button, query, name });
    return button;
  }
}

// The picture behind a map: cut to the part that the grids cover.
function placed(picture, { region: [left, top, right, bottom], size: [width, height] }) {
  const image = make("img", { src: picture.url, alt: "" });
  Object.assign(image.style, {
    width: `${(100 * width) / (right - left)}%`,
    height: `${(100 * height) / (bottom - top)}%`,
    left: `${(-100 * left) / (right - left)}%`,
    top: `${(-100 * top) / (bottom - top)}%`,
  });
  return image;
}
