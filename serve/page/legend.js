// What the colours over the picture stand for, and how strong they are.

import { COLOURS, GRADIENT, MEASURES, formatEnds, formatRange, layerTitle, make, normaliseMap } from "./drawing.js";

export class Legend {
  // `hide()` is called when the colours shall go.
  constructor(hide) {
    this.what = make("p", { class: "legend-title" });
    this.low = make("span", {});
    this.high = make("span", {});
    this.bar = make("span", { class: "bar" });
    this.off = make("button", { type: "button", class: "plain" }, "Hide the colours");
    this.off.addEventListener("click", hide);
    this.measure = make("p", { class: "hint" });
    const scale = make("div", { class: "scale" }, this.low, this.bar, this.high);
    this.root = make("div", { class: "legend" }, make("div", { class: "legend-head" }, this.what, this.off), scale, this.measure);
  }

  show({ layer, map, view }) {
    this.root.hidden = !map;
    if (!map) return;
    const scale = normaliseMap(map);
    this.what.replaceChildren(make("em", {}, `\u201c${view.map}\u201d`), ` in ${layerTitle({ layer })}`);
    const [low, high] = scale.flat ? [formatRange(scale), ""] : formatEnds(scale);
    this.low.textContent = low;
    this.high.textContent = high && `${high} nats`;
    this.bar.style.backgroundImage = scale.flat ? `linear-gradient(rgb(${COLOURS[0]}), rgb(${COLOURS[0]}))` : GRADIENT;
    this.measure.textContent = MEASURES[view.calibration];
  }
}
