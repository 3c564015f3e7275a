// What each layer says: of the whole picture, or of the place that is pointed at.

import { formatPercent, layerTitle, make } from "./drawing.js";

const MOST_LIKELY = 6;

export class Readings {
  // `choose(name)` is told of the layer that a reader picks.
  constructor(name, choose) {
    this.name = name;
    this.choose = choose;
    this.title = make("span", {});
    this.where = make("small", {});
    this.back = make("button", { type: "button", class: "plain" }, "Whole picture");
    this.list = make("div", { role: "radiogroup", "aria-label": "Layer whose grid is shown" });
    this.head = make("div", { class: "readings-head" }, make("h2", {}, this.title, this.where), this.back);
    this.root = make("section", { class: "readings" }, this.head, this.list);
    this.rows = new Map();
  }

  show({ answers, layer, point, view, waiting }) {
    if (answers.names.join("\n") !== [...this.rows.keys()].join("\n")) this.build(answers);
    this.title.textContent = point ? "At this place" : "In the whole picture";
    const cell = point && answers.cell(layer, point);
    this.where.textContent = cell ? `row ${cell[0] + 1}, column ${cell[1] + 1}` : "";
    this.back.hidden = !view.at;
    for (const [name, row] of this.rows) {
      row.input.checked = name === layer;
      const seen = !point || answers.cell(name, point);
      this.fill(row, answers.caption(name, point), answers.words(name, point, view), { seen, waiting });
    }
  }

  build(answers) {
    this.rows.clear();
    for (const name of answers.names) {
      const [rows, columns] = answers.layers.get(name).grid;
      const input = make("input", { type: "radio", name: this.name, value: name });
      input.addEventListener("change", () => this.choose(name));
      const caption = make("span", { class: "layer-caption" });
      const sure = make("span", { class: "sure", title: "how sure the language model is of a token, on average" });
      const likely = make("span", { class: "likely" });
      const title = make("span", { class: "layer-name" }, layerTitle({ layer: name }));
      const grid = make("span", { class: "layer-grid" }, `${rows} \u00d7 ${columns}`);
      const label = make("label", { class: "layer" }, input, title, grid, caption, sure, likely);
      this.rows.set(name, { input, caption, sure, likely, label });
    }
    this.list.replaceChildren(...[...this.rows.values()].map((row) => row.label));
  }

  fill(row, caption, words, { seen, waiting }) {
    const missing = seen ? (waiting ? "reading \u2026" : "\u2026") : "outside what this model looks at";
    row.caption.textContent = caption ? caption.text || "(nothing)" : missing;
    row.caption.classList.toggle("none", !caption?.text);
    row.label.classList.toggle("waiting", !caption && waiting);
    const probability = caption && Math.exp(caption.log_probability / caption.tokens);
    row.sure.textContent = caption ? formatPercent(probability) : "";
    row.sure.style.setProperty("--sure", caption ? Math.min(1, probability) : 0);
    const likely = (words ?? []).slice(0, MOST_LIKELY);
    row.likely.replaceChildren(...likely.map(({ word }) => make("span", {}, word)));
  }

  // The same in one sentence, for those who listen.
  spoken({ answers, layer, point }) {
    const others = answers.names.filter((name) => name !== layer);
    const cell = point && answers.cell(layer, point);
    const where = cell ? `Row ${cell[0] + 1}, column ${cell[1] + 1}. ` : "Whole picture. ";
    const said = [layer, ...others].flatMap((name) => {
      const caption = answers.caption(name, point);
      return caption ? [`${layerTitle({ layer: name })}: ${caption.text || "nothing"}.`] : [];
    });
    return said.length ? where + said.join(" ") : "";
  }
}
