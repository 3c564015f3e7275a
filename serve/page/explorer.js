// The explorer: which picture and models are looked at, and in which view. It hears the reader and
// the service; the panels ask and show.

import { Api } from "./api.js";
import { KeyForm, Notices } from "./notices.js";
import { Panel } from "./panel.js";
import { listenForPictures, openPicture } from "./picture.js";
import { Questions } from "./questions.js";
import { Sharing } from "./sharing.js";
import { readView, writeView } from "./view.js";

const REST = 80; // milliseconds without a change before the address is written: browsers limit that

const find = (id) => document.getElementById(id);

class Explorer {
  constructor() {
    this.view = readView(location.hash);
    this.notices = new Notices(find("problem"), find("busy"));
    const key = new KeyForm(find("key"));
    this.api = new Api({ busy: (seconds) => this.notices.busy(seconds), askForKey: (why) => key.ask(why) });
    this.questions = new Questions(find("questions"), (change) => this.set(change));
    this.sharing = new Sharing(find("share"));
    this.panels = [];
    this.hovered = null;
    this.listen();
  }

  listen() {
    listenForPictures(find("file"), (blob, name) => this.take(blob, name));
    for (const button of document.querySelectorAll("[data-sample]")) {
      button.addEventListener("click", () => this.takeSample(button.dataset.sample));
    }
    for (const name of ["model", "beside"]) {
      find(name).addEventListener("change", (event) => this.chooseModel({ [name]: event.target.value }));
    }
    addEventListener("hashchange", () => this.restore(readView(location.hash)));
  }

  async begin() {
    await this.guard(async () => {
      this.models = await this.api.models();
      this.offerModels();
      await this.restore(this.view);
    });
  }

  // Errors of what a reader did are told, none is swallowed.
  async guard(action) {
    try {
      this.notices.problem(null);
      await action();
    } catch (error) {
      this.notices.problem(error.message);
    }
  }

  // Models

  offerModels() {
    const names = this.models.map(({ id }) => id);
    fillSelect(find("model"), names.map((id) => [id, id]));
    fillSelect(find("beside"), [["", "no other"], ...names.map((id) => [id, id])]);
    find("models").hidden = names.length < 2;
  }

  // The models of the view, those that the service does not have left out, and said so.
  chosenModels() {
    const known = new Map(this.models.map((model) => [model.id, model]));
    const fallback = this.models.find((model) => model.default) ?? this.models[0];
    const { model, beside } = this.view;
    const gone = [model, beside].filter((id) => id && !known.has(id));
    if (gone.length) this.notices.problem(`The service has no model ${gone.join(", ")}.`);
    const first = known.get(model) ?? fallback;
    const second = beside && beside !== first.id ? known.get(beside) : null;
    return second ? [first, second] : [first];
  }

  chooseModel(change) {
    this.view = { ...this.view, ...change, layer: "", layerBeside: "" };
    if (this.view.beside === (this.view.model || this.models[0].id)) this.view.beside = "";
    this.buildPanels();
    this.startPanels();
  }

  buildPanels() {
    const chosen = this.chosenModels();
    const old = this.panels;
    this.panels = chosen.map((model, index) => old.find((panel) => panel.model === model && panel.index === index) ?? this.newPanel(model, index));
    for (const panel of old) if (!this.panels.includes(panel)) panel.stop();
    find("panels").replaceChildren(...this.panels.map((panel) => panel.root));
    find("panels").classList.toggle("two", chosen.length > 1);
    find("model").value = chosen[0].id;
    find("beside").value = chosen[1]?.id ?? "";
    document.body.classList.toggle("several", this.models.length > 1);
  }

  newPanel(model, index) {
    const name = index ? "layerBeside" : "layer";
    const panel = new Panel(this.api, model, {
      hover: (point) => this.hover(point),
      pin: (at) => this.set({ at }),
      choose: (layer, map) => this.set(map === undefined ? { [name]: layer } : { [name]: layer, map }),
      changed: () => this.show(),
    });
    return Object.assign(panel, { index });
  }

  // Pictures

  async take(blob, name) {
    await this.guard(async () => {
      const picture = await openPicture(blob, name);
      this.view = { ...this.view, sample: "", kept: "", keptPrompt: "", at: null };
      this.setPicture(picture);
    });
  }

  async takeSample(sample) {
    await this.guard(async () => {
      const button = document.querySelector(`[data-sample="${CSS.escape(sample)}"]`);
      if (!button) throw new Error(`There is no sample ${sample}.`);
      const picture = await openPicture(await this.api.file(`samples/${sample}.png`), button.title);
      this.view = { ...this.view, sample, kept: "", keptPrompt: "", at: this.view.sample === sample ? this.view.at : null };
      this.questions.suggest(button.dataset.words);
      this.setPicture(picture);
    });
  }

  setPicture(picture, kept) {
    this.picture?.close();
    this.picture = picture;
    document.body.classList.add("looking");
    find("about-picture").textContent = [picture.name, `${picture.width} \u00d7 ${picture.height}`, picture.sent].filter(Boolean).join(", ");
    this.buildPanels();
    this.startPanels(kept);
  }

  startPanels(kept) {
    if (!this.picture) return this.show();
    for (const panel of this.panels) {
      const own = kept && panel.index === 0 && isOf(kept, panel.model) ? kept : null;
      if (!own && panel.picture === this.picture) continue;
      const keep = !this.view.sample && !this.view.kept && panel.index === 0;
      panel.start(this.picture, this.view, { keep, kept: own });
    }
    this.show();
  }

  // Bring back the view of a link.
  async restore(view) {
    if (this.picture && writeView(view) === writeView(this.view)) return;
    const same = this.picture && view.sample === this.view.sample && view.kept === this.view.kept;
    this.view = view;
    this.buildPanels();
    if (same) return this.startPanels();
    if (view.sample) return this.takeSample(view.sample);
    if (view.kept) return this.guard(() => this.takeKept(view.kept));
    this.show();
  }

  async takeKept(id) {
    const [kept, blob] = await Promise.all([this.api.kept(id), this.api.keptPicture(id)]).catch((error) => {
      if (error.status !== 404) throw error;
      throw new Error("The picture of this link is gone: the service keeps only the latest ones. Give the picture again to see it in this view.");
    });
    const picture = await openPicture(blob, kept.source ?? "the picture of this link");
    this.setPicture(picture, kept);
    const now = this.panels[0].model;
    if (now.id === kept.model && now.version !== kept.version) {
      this.notices.problem(`The captions are of version ${kept.version.slice(0, 8)}; ${now.id} is now version ${now.version.slice(0, 8)}.`);
    }
  }

  // The view

  set(change) {
    this.view = { ...this.view, ...change };
    if (!this.view.words.includes(this.view.map)) this.view.map = "";
    this.show();
  }

  hover(point) {
    if (String(point) === String(this.hovered)) return;
    this.hovered = point;
    this.show();
  }

  show() {
    const [first, second] = this.panels;
    if (!first) return;
    const { asking } = first;
    if (asking.id && !this.view.sample) this.view = { ...this.view, kept: asking.id, keptPrompt: asking.keptPrompt };
    document.documentElement.style.setProperty("--opacity", this.view.opacity / 100);
    this.questions.show(this.view);
    if (this.picture) {
      first.show(this.view, this.hovered, this.view.layer);
      second?.show(this.view, this.hovered, this.view.layerBeside || this.view.layer);
    }
    clearTimeout(this.writing);
    this.writing = setTimeout(() => this.write(asking.busy), REST);
  }

  write(busy) {
    const hash = writeView(this.view);
    if (hash !== (location.hash || "#")) history.replaceState(null, "", hash === "#" ? location.pathname : hash);
    this.sharing.show({ picture: this.picture, view: this.view, busy });
  }
}

// Whether a model has said this: the same weights, or an earlier version of the same name.
function isOf(explanation, { id, version }) {
  return explanation.version === version || explanation.model === id;
}

function fillSelect(select, options) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

new Explorer().begin();
