// Brings the cards of the page to life, each when it first comes near the window.

const COLOURS = colourTable(JSON.parse(document.getElementById("colours").textContent));
const GRADIENT = gradientOf(COLOURS);

function mapOf(layer, query) {
  return query !== null && Object.hasOwn(layer.saliency, query) ? layer.saliency[query] : null;
}

class Card {
  constructor(root) {
    this.root = root;
    this.data = JSON.parse(root.querySelector("script.data").textContent);
    const [left, top, right, bottom] = this.data.region;
    this.aspect = (right - left) / (bottom - top);
    this.layers = this.data.layers;
    this.query = null;
    this.held = false;
    this.point = [(left + right) / 2, (top + bottom) / 2];
    this.radios = [...root.querySelectorAll(".layers input")];
    if (!this.layers.length) return;
    this.buildStage();
    this.buildControls();
    this.buildLocation();
    this.buildMaps();
    this.showLayer();
  }

  get layer() {
    return this.layers[Math.max(0, this.radios.findIndex((radio) => radio.checked))];
  }

  buildStage() {
    this.stage = this.root.querySelector(".stage");
    const [width, height] = this.data.image_size;
    const [left, top, right, bottom] = this.data.region;
    this.region = make("div", { class: "region" });
    Object.assign(this.region.style, {
      left: `${(100 * left) / width}%`,
      top: `${(100 * top) / height}%`,
      width: `${(100 * (right - left)) / width}%`,
      height: `${(100 * (bottom - top)) / height}%`,
    });
    this.overlay = make("canvas", { "aria-hidden": "true" });
    this.cursor = make("div", { class: "cursor" });
    this.stage.append(this.region);
    if (this.layers.some((layer) => layer.captions)) this.listen();
  }

  listen() {
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "application");
    this.stage.setAttribute("aria-label", "Locations of the picture; the arrow keys move");
    this.stage.classList.add("live");
    const follow = (event) => {
      const box = this.stage.getBoundingClientRect();
      const [width, height] = this.data.image_size;
      const x = ((event.clientX - box.left - this.stage.clientLeft) / this.stage.clientWidth) * width;
      const y = ((event.clientY - box.top - this.stage.clientTop) / this.stage.clientHeight) * height;
      return cellAt(this.data.region, this.layer.grid, x, y);
    };
    this.stage.addEventListener("pointermove", (event) => {
      const cell = this.held ? null : follow(event);
      if (cell) this.moveTo(...cell);
    });
    this.stage.addEventListener("click", (event) => {
      const cell = follow(event);
      if (!cell) return;
      const same = cell.join() === this.cell().join();
      this.held = !(this.held && same);
      this.moveTo(...cell);
    });
    this.stage.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Enter" || event.key === " ") {
      this.held = !this.held;
    } else if (event.key === "Escape") {
      this.held = false;
    } else if (!Object.hasOwn(steps, event.key)) {
      return;
    }
    event.preventDefault();
    const [down, along] = steps[event.key] ?? [0, 0];
    const [row, column] = this.cell();
    const [rows, columns] = this.layer.grid;
    this.moveTo(
      Math.min(Math.max(row + down, 0), rows - 1),
      Math.min(Math.max(column + along, 0), columns - 1),
    );
  }

  cell(layer = this.layer) {
    return cellAt(this.data.region, layer.grid, ...this.point);
  }

  moveTo(row, column) {
    this.point = cellCentre(this.data.region, this.layer.grid, row, column);
    this.showLocation();
  }

  buildControls() {
    const box = this.root.querySelector(".controls");
    if (!this.data.queries.length) return;
    const chips = make("fieldset", { class: "chips" }, make("legend", {}, "Heat map of"));
    this.chips = [null, ...this.data.queries].map((query, i) => {
      const input = make("input", { type: "radio", name: `query-${this.root.id}`, value: i });
      input.checked = query === null;
      input.addEventListener("change", () => this.choose(query));
      const words = query === null ? "nothing" : `\u201c${query}\u201d`;
      chips.append(make("label", query === null ? { class: "off" } : {}, input, make("span", {}, words)));
      return { query, input };
    });
    const slider = make("input", { type: "range", min: 0, max: 100, value: 65 });
    slider.addEventListener("input", () => {
      this.root.style.setProperty("--opacity", slider.value / 100);
    });
    this.legend = make("div", { class: "legend" });
    const opacity = make("label", { class: "opacity" }, "Opacity", slider);
    box.append(chips, make("div", { class: "shades" }, this.legend, opacity));
  }

  buildLocation() {
    const box = this.root.querySelector(".location");
    this.where = make("h3", {});
    this.words = make("p", { class: "words", "aria-live": "polite" });
    this.sure = make("p", { class: "sure" });
    this.others = make("dl", { class: "others" });
    const others = make("p", { class: "hint" }, "The same place in the other layers");
    box.append(this.where, make("div", { class: "said" }, this.words, this.sure));
    if (this.layers.filter((layer) => layer.captions).length > 1) box.append(others, this.others);
    if (!this.layers.some((layer) => layer.captions)) box.hidden = true;
    for (const radio of this.radios) radio.addEventListener("change", () => this.showLayer());
  }

  buildMaps() {
    const box = this.root.querySelector(".maps");
    this.tiles = [];
    if (!this.data.queries.length) {
      box.hidden = true;
      return;
    }
    const strips = make("div", { class: "strips" });
    for (const query of this.data.queries) {
      const tiles = make("div", { class: "tiles" });
      for (const [index, layer] of this.layers.entries()) {
        if (mapOf(layer, query)) tiles.append(this.tile(query, layer, index));
      }
      const heading = make("h4", {}, `\u201c${query}\u201d`);
      if (tiles.children.length) strips.append(make("div", { class: "strip" }, heading, tiles));
    }
    const bar = make("span", { class: "bar" });
    bar.style.backgroundImage = GRADIENT;
    const key = make("p", { class: "key" }, "lowest in the map", bar, "highest in the map; ranges in nats");
    box.append(make("h3", {}, "Where the words fit"), key, strips);
  }

  tile(query, layer, index) {
    const [width, height] = this.data.image_size;
    const [left, top, right, bottom] = this.data.region;
    const picture = make("img", { src: this.root.querySelector(".stage img").src, alt: "" });
    Object.assign(picture.style, {
      width: `${(100 * width) / (right - left)}%`,
      height: `${(100 * height) / (bottom - top)}%`,
      left: `${(-100 * left) / (right - left)}%`,
      top: `${(-100 * top) / (bottom - top)}%`,
    });
    const canvas = make("canvas", { "aria-hidden": "true" });
    const range = formatRange(paint(canvas, mapOf(layer, query), this.aspect, COLOURS));
    const frame = make("span", { class: "frame" }, picture, canvas);
    frame.style.aspectRatio = this.aspect;
    const button = make(
      "button",
      { type: "button", class: "tile", "aria-pressed": "false" },
      frame,
      make("span", { class: "layer-name" }, layerTitle(layer)),
      make("span", { class: "range" }, range),
    );
    button.setAttribute("aria-label", `\u201c${query}\u201d in ${layerTitle(layer)}: ${range} nats. Show on the picture`);
    button.addEventListener("click", () => {
      const again = this.layer === layer && this.query === query;
      this.radios[index].checked = true;
      this.choose(again ? null : query);
    });
    this.tiles.push({ button, query, layer });
    return button;
  }

  choose(query) {
    this.query = query;
    for (const chip of this.chips) chip.input.checked = chip.query === query;
    this.showLayer();
  }

  showLayer() {
    const layer = this.layer;
    const map = mapOf(layer, this.query);
    this.stage.classList.toggle("heated", map !== null);
    const scale = map && paint(this.overlay, map, this.aspect, COLOURS);
    this.region.replaceChildren(...(map ? [this.overlay] : []), gridLines(layer.grid), this.cursor);
    this.cursor.hidden = !layer.captions;
    for (const { button, query, layer: own } of this.tiles) {
      button.setAttribute("aria-pressed", String(own === layer && query === this.query));
    }
    this.showLegend(map, scale);
    this.showLocation();
  }

  showLegend(map, scale) {
    if (!this.legend) return;
    if (this.query === null) return this.legend.replaceChildren("Choose words to colour the picture");
    if (!map) return this.legend.replaceChildren(`No map in ${layerTitle(this.layer)}`);
    const bar = make("span", { class: "bar" });
    bar.style.backgroundImage = scale.flat ? `linear-gradient(rgb(${COLOURS[0]}), rgb(${COLOURS[0]}))` : GRADIENT;
    const ends = scale.flat ? [formatRange(scale), ""] : formatEnds(scale);
    this.legend.replaceChildren(make("span", {}, ends[0]), bar, make("span", {}, `${ends[1]} nats`));
  }

  showLocation() {
    const layer = this.layer;
    const [rows, columns] = layer.grid;
    const [row, column] = this.cell();
    Object.assign(this.cursor.style, {
      left: `${(100 * column) / columns}%`,
      top: `${(100 * row) / rows}%`,
      width: `${100 / columns}%`,
      height: `${100 / rows}%`,
    });
    this.cursor.classList.toggle("held", this.held);
    const held = this.held ? ", held" : "";
    this.where.replaceChildren(
      "At one location ",
      make("small", {}, `row ${row + 1}, column ${column + 1} of ${rows} \u00d7 ${columns} in ${layerTitle(layer)}${held}`),
    );
    const caption = layer.captions?.[row][column];
    this.words.classList.toggle("none", !caption?.text);
    this.words.textContent = caption ? caption.text || "(nothing)" : layer.captions ? "No caption was asked for here." : "This layer has no captions by location.";
    this.sure.textContent = caption
      ? `${formatPercent(Math.exp(caption.log_probability / caption.tokens))} per token; ` +
        `${formatNats(caption.log_probability)} nats over ${caption.tokens} tokens`
      : "\u00a0";
    this.showOthers();
  }

  showOthers() {
    const others = this.layers.filter((layer) => layer !== this.layer && layer.captions);
    const entries = others.flatMap((layer) => {
      const [row, column] = this.cell(layer);
      const caption = layer.captions[row][column];
      const text = caption ? caption.text || "(nothing)" : "(not asked)";
      return [make("dt", {}, layerTitle(layer)), make("dd", { title: text }, text)];
    });
    this.others.replaceChildren(...entries);
  }
}

const roots = [...document.querySelectorAll(".card")];
const waiting = new Set(roots);

function wake(root) {
  if (waiting.delete(root)) new Card(root);
}

const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      wake(entry.target);
    }
  },
  { rootMargin: "800px 0px" },
);
roots.forEach((root) => observer.observe(root));
addEventListener("beforeprint", () => [...waiting].forEach(wake));

const find = document.getElementById("find");
find?.addEventListener("input", () => {
  const sought = find.value.trim().toLowerCase();
  let count = 0;
  for (const root of roots) {
    const data = root.querySelector("script.data");
    root.searchable ??= texts(JSON.parse(data.textContent)).join("\n").toLowerCase();
    root.hidden = !root.searchable.includes(sought);
    count += root.hidden ? 0 : 1;
  }
  document.getElementById("found").textContent = sought ? `${count} of ${roots.length} pictures` : "";
});

// What a reader may look for in an explanation.
function texts(data) {
  const captions = data.layers.flatMap((layer) => [layer.caption, ...(layer.captions ?? []).flat()]);
  return [data.source, ...data.queries, ...new Set(captions.map((caption) => caption?.text))];
}
