// Asks one model about one picture, as little as can be: the whole picture once, every location at
// once if there are not too many, and after that only what the answers still lack.

import { Answers } from "./answers.js";

const MOST_LOCATIONS = 1600; // of all layers together; beyond, locations are asked when pointed at
const MOST_LIKELY = 8;
const REST = 120; // milliseconds that a pointer rests before its location is asked for

export class Asking {
  // `changed()` is called when there is something new to show.
  constructor(api, model, changed) {
    this.api = api;
    this.model = model;
    this.changed = changed;
    this.answers = new Answers();
    this.jobs = new Map(); // name -> {key, stop}
    this.failed = new Set();
    this.problem = null;
    this.id = "";
  }

  get busy() {
    return this.jobs.size > 0;
  }

  get locations() {
    return this.model.layers.reduce((sum, { grid }) => sum + grid[0] * grid[1], 0);
  }

  // Begin with a picture. `keep` asks the service to keep what it says; `kept` is what it kept.
  start(picture, view, { keep, kept }) {
    this.stop();
    this.picture = picture;
    this.keptPrompt = view.prompt;
    const everywhere = this.locations <= MOST_LOCATIONS;
    if (kept) {
      this.id = view.kept;
      this.keptPrompt = view.keptPrompt;
      const under = { ...view, words: kept.queries, calibration: kept.calibration, prompt: view.keptPrompt };
      this.answers.add(kept, under);
    }
    const first = { dense: false, keep: keep && !everywhere };
    const rest = { dense: true, words: MOST_LIKELY, keep };
    const whole = kept ? Promise.resolve(true) : this.job("whole", "", "explain", first, view);
    whole.then((answered) => {
      if (answered && everywhere && !this.spoken) this.job("everywhere", "", "explain", rest, view);
    });
  }

  // Whether captions of locations have come.
  get spoken() {
    return [...this.answers.layers.values()].some((layer) => layer.captions.size > 0);
  }

  stop() {
    for (const { stop } of this.jobs.values()) stop.abort();
    this.jobs.clear();
    clearTimeout(this.resting);
  }

  // Ask for what a view, and a point of it, still lack.
  update(view, point) {
    clearTimeout(this.resting);
    if (!this.answers.region) return;
    const queries = this.answers.unmapped(view);
    if (queries.length) {
      this.job("maps", JSON.stringify([queries, view.calibration, view.prompt]), "saliency", { queries }, view);
    }
    if (!point || this.jobs.has("everywhere") || !this.answers.lacks(point, view)) return;
    this.resting = setTimeout(() => this.askAt(point, view), REST);
  }

  askAt(point, view) {
    const options = { points: [point.join()], words: MOST_LIKELY };
    this.job("point", JSON.stringify([point, view.calibration, view.prompt]), "explain", options, view);
  }

  // Run a request, in place of an earlier one of the same name; true if it was answered.
  async job(name, key, route, options, view) {
    if (this.jobs.get(name)?.key === key || this.failed.has(name + key)) return false;
    this.jobs.get(name)?.stop.abort();
    const job = { key, stop: new AbortController() };
    this.jobs.set(name, job);
    this.changed();
    // Without queries the calibration is that of words, which know two alone.
    const calibration = options.queries || view.calibration === "pmi" ? view.calibration : "none";
    const asked = { model: this.model.id, calibration, prompt: view.prompt, keep: false, ...options };
    try {
      const { id, explanation } = await this.api.ask(route, this.picture.blob, asked, job.stop.signal);
      if (asked.keep && id) this.id = id;
      this.problem = null;
      this.answers.add(explanation, view);
      return true;
    } catch (error) {
      if (job.stop.signal.aborted) return false;
      this.failed.add(name + key);
      this.problem = error;
      return false;
    } finally {
      if (this.jobs.get(name) === job) this.jobs.delete(name);
      if (!job.stop.signal.aborted) this.changed();
    }
  }
}
