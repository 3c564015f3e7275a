// What one model has said about one picture so far, gathered from the answers of several requests.

import { cellAt } from "./drawing.js";

// Maps of a query depend on these, with "contrast" on the other queries, too.
function mapKey({ calibration, prompt, words }) {
  return JSON.stringify([calibration, prompt, calibration === "contrast" ? [...words].sort() : null]);
}

// Likely words know one calibration only.
function wordKey({ calibration, prompt }) {
  return JSON.stringify([calibration === "pmi", prompt]);
}

export class Answers {
  constructor() {
    this.layers = new Map(); // name -> {grid, caption, captions: Map, words: Map of Map}
    this.maps = new Map(); // key -> query -> layer -> map
    this.region = null;
    this.version = "";
  }

  get names() {
    return [...this.layers.keys()];
  }

  // Take in an explanation that was asked for under `view`.
  add(explanation, view) {
    this.region = explanation.region;
    this.size = explanation.image_size;
    this.version = explanation.version;
    for (const layer of explanation.layers) this.addLayer(layer, view);
  }

  addLayer({ layer: name, grid, caption, captions, words, saliency }, view) {
    if (!this.layers.has(name)) {
      this.layers.set(name, { grid, caption: null, captions: new Map(), words: new Map() });
    }
    const layer = this.layers.get(name);
    layer.caption = caption ?? layer.caption;
    fill(layer.captions, captions);
    if (words) fill(entry(layer.words, wordKey(view)), words);
    const maps = entry(this.maps, mapKey(view));
    for (const [query, map] of Object.entries(saliency)) entry(maps, query).set(name, map);
  }

  // Row and column of the location at a point; null where the layer sees nothing.
  cell(name, [x, y]) {
    const [width, height] = this.size;
    // The far edges belong to the last locations.
    const inside = (share, side) => Math.min(share * side, side - 1e-6);
    return cellAt(this.region, this.layers.get(name).grid, inside(x, width), inside(y, height));
  }

  caption(name, point) {
    const layer = this.layers.get(name);
    if (!point) return layer.caption;
    const cell = this.cell(name, point);
    return (cell && layer.captions.get(cell.join())) ?? null;
  }

  words(name, point, view) {
    const cell = point && this.cell(name, point);
    return (cell && this.layers.get(name).words.get(wordKey(view))?.get(cell.join())) ?? null;
  }

  // Whether something about a point has not been asked yet.
  lacks(point, view) {
    return this.names.some((name) => {
      if (!this.cell(name, point)) return false;
      return !this.caption(name, point) || !this.words(name, point, view);
    });
  }

  map(name, query, view) {
    return this.maps.get(mapKey(view))?.get(query)?.get(name) ?? null;
  }

  // Queries whose maps have not been asked for.
  unmapped(view) {
    const known = this.maps.get(mapKey(view));
    const missing = view.words.filter((query) => !known?.has(query));
    return missing.length && view.calibration === "contrast" ? view.words : missing;
  }
}

function entry(map, key) {
  if (!map.has(key)) map.set(key, new Map());
  return map.get(key);
}

function fill(cells, rows) {
  rows?.forEach((row, i) => row.forEach((value, j) => value && cells.set(`${i},${j}`, value)));
}
