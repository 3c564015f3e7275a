// What the service needs from the reader, or has to tell: waiting, problems, a key.

export class Notices {
  constructor(problem, busy) {
    this.problemBox = problem;
    this.busyBox = busy;
  }

  problem(text) {
    this.problemBox.hidden = !text;
    this.problemBox.textContent = text ?? "";
  }

  // Count the seconds down until the service is asked again; null: it answered.
  busy(seconds) {
    clearInterval(this.counting);
    this.busyBox.hidden = seconds === null;
    if (seconds === null) return;
    let left = Math.ceil(seconds);
    const tell = () => {
      this.busyBox.textContent = `The service is busy. Trying again in ${left} s.`;
      left = Math.max(1, left - 1);
    };
    tell();
    this.counting = setInterval(tell, 1000);
  }
}

export class KeyForm {
  constructor(form) {
    this.form = form;
    this.input = form.querySelector("input");
    this.hint = form.querySelector("[role=alert]");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const key = this.input.value.trim();
      if (!key) return;
      form.hidden = true;
      this.input.value = "";
      this.answer(key);
      this.pending = null;
    });
  }

  // A promise of the key that the reader gives; `why` one is needed, in the service's words.
  ask(why) {
    this.form.hidden = false;
    this.hint.textContent = why;
    if (!this.pending) {
      this.pending = new Promise((resolve) => {
        this.answer = resolve;
      });
      this.input.focus();
    }
    return this.pending;
  }
}
