// One model's view of the picture: the stage, what its layers say, and its heat maps.

import { Asking } from "./asking.js";
import { make } from "./drawing.js";
import { HeatMaps } from "./heatmaps.js";
import { Legend } from "./legend.js";
import { Readings } from "./readings.js";
import { Stage } from "./stage.js";

const LISTENING_PAUSE = 500; // milliseconds of rest before a place is read out

export class Panel {
  // `events`: hover(point), pin(point), choose(layer, query or undefined), changed().
  constructor(api, model, events) {
    this.model = model;
    this.asking = new Asking(api, model, events.changed);
    this.stage = new Stage(events);
    this.legend = new Legend(() => events.choose(this.layer, ""));
    this.readings = new Readings(`layer-${model.id}`, (layer) => events.choose(layer));
    this.readings.back.addEventListener("click", () => events.pin(null));
    this.maps = new HeatMaps((layer, query) => this.pick(events, layer, query));
    this.spoken = make("p", { class: "unseen", "aria-live": "polite" });
    this.problem = make("p", { role: "alert" });
    const again = make("button", { type: "button", class: "plain" }, "Try again");
    again.addEventListener("click", () => this.start(this.picture, this.view, this.options));
    this.trouble = make("div", { class: "problem", hidden: "" }, this.problem, again);
    this.build();
  }

  build() {
    const { id, version, backbone } = this.model;
    const about = make("p", { class: "about" }, make("b", {}, id), ` ${backbone}, `, make("code", { title: version }, version.slice(0, 8)));
    this.busy = make("span", { class: "busy", hidden: "" }, "reading");
    about.append(this.busy);
    const seeing = make("div", { class: "seeing" }, this.stage.root, this.legend.root);
    const saying = make("div", { class: "saying" }, this.trouble, this.readings.root, this.maps.root);
    this.root = make("article", { class: "panel", "aria-label": `Model ${id}` }, about, seeing, saying, this.spoken);
  }

  start(picture, view, options) {
    this.picture = picture;
    this.view = view;
    this.options = options;
    this.stage.setPicture(picture, `Places of ${picture.name}, as ${this.model.id} sees it`);
    this.asking.stop();
    this.asking = new Asking(this.asking.api, this.model, this.asking.changed);
    this.asking.start(picture, view, options);
  }

  // Show a view; `hovered` is a place that is pointed at in passing, `layer` the wish of the view.
  show(view, hovered, layer) {
    this.view = view;
    const { answers } = this.asking;
    const point = hovered ?? view.at;
    this.asking.update(view, point);
    this.showState();
    if (!answers.region) return;
    this.layer = answers.layers.has(layer) ? layer : answers.names.at(-1);
    const map = view.map ? answers.map(this.layer, view.map, view) : null;
    const shown = { answers, view, point, map, layer: this.layer, pinned: view.at, picture: this.picture };
    this.stage.show(shown);
    this.legend.show(shown);
    this.readings.show({ ...shown, waiting: this.asking.busy });
    this.maps.show(shown);
    this.speak(shown);
  }

  showState() {
    const { busy, problem, answers } = this.asking;
    this.busy.hidden = !busy;
    this.root.setAttribute("aria-busy", String(busy));
    this.readings.root.hidden = !answers.region;
    this.trouble.hidden = !problem;
    if (problem && problem.message !== this.problem.textContent) this.problem.textContent = problem.message;
  }

  speak(shown) {
    const words = this.readings.spoken(shown);
    clearTimeout(this.speaking);
    this.speaking = setTimeout(() => {
      if (words !== this.spoken.textContent) this.spoken.textContent = words;
    }, LISTENING_PAUSE);
  }

  pick(events, layer, query) {
    const again = layer === this.layer && query === this.view.map;
    events.choose(layer, again ? "" : query);
    if (!again) reveal(this.stage.root);
  }

  stop() {
    clearTimeout(this.speaking);
    this.asking.stop();
  }
}

// Bring what was just changed into sight, if none of its middle is.
function reveal(element) {
  const { top, bottom } = element.getBoundingClientRect();
  const middle = (top + bottom) / 2;
  if (middle < 0 || middle > innerHeight) element.scrollIntoView({ block: "center" });
}
