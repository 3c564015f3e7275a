// The form of what is asked: words, the text before them, calibration, and how strong colours are.

import { MEASURES } from "./drawing.js";
import { MOST_WORDS, splitWords } from "./view.js";

export class Questions {
  // `change(part of the view)` is told of what the reader sets.
  constructor(form, change) {
    this.form = form;
    this.fields = form.elements;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      change(this.asked());
    });
    this.fields.words.addEventListener("change", () => change(this.asked()));
    this.fields.prompt.addEventListener("change", () => change(this.asked()));
    this.fields.opacity.addEventListener("input", () => change({ opacity: Number(this.fields.opacity.value) }));
    for (const radio of this.fields.calibration) {
      radio.addEventListener("change", () => change({ calibration: radio.value }));
      radio.parentElement.title = MEASURES[radio.value];
    }
  }

  asked() {
    const words = splitWords(this.fields.words.value);
    const map = words.find((word) => !this.view.words.includes(word)) ?? this.view.map;
    return { words, map: map || words[0] || "", prompt: this.fields.prompt.value.trim() };
  }

  // Words that fit a sample.
  suggest(words) {
    this.fields.words.placeholder = words;
  }

  show(view) {
    this.view = view;
    const { words, prompt } = this.fields; // what is being typed is left alone
    const differs = splitWords(words.value).join("\n") !== view.words.join("\n");
    if (differs && document.activeElement !== words) words.value = view.words.join(", ");
    if (document.activeElement !== prompt) prompt.value = view.prompt;
    this.fields.calibration.value = view.calibration;
    this.fields.opacity.value = view.opacity;
    document.getElementById("most").hidden = view.words.length < MOST_WORDS;
  }
}
