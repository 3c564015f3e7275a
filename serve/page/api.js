// What the page asks of the service: one function for each route, and what to do when it says no.

const MOST_TRIES = 8;
const LONGEST_WAIT = 60;
const KEY = "devil-key";

// A refusal: the service's problem document, or that it could not be reached.
export class Problem extends Error {
  constructor(status, { title, detail, field } = {}) {
    super(detail || title || `The service answered with status ${status}.`);
    this.status = status;
    this.field = field ?? null;
  }
}

// Seconds to wait, as Retry-After says it: a number, or a date.
function patience(header) {
  const seconds = /^\d+$/.test(header ?? "") ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Math.min(Math.max(Number.isFinite(seconds) ? seconds : 2, 0.2), LONGEST_WAIT);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

async function problemOf(response) {
  const text = await response.text();
  try {
    return new Problem(response.status, JSON.parse(text));
  } catch {
    return new Problem(response.status);
  }
}

export class Api {
  // `busy(seconds)` is told of every wait, and null when it is over; `askForKey(why)` promises a key.
  constructor({ busy, askForKey }) {
    this.busy = busy;
    this.askForKey = askForKey;
  }

  async models(signal) {
    return (await (await this.send("v1/models", { signal })).json()).models;
  }

  // Ask about a picture; `route` is explain, caption or saliency.
  async ask(route, blob, options, signal) {
    const form = new FormData();
    form.append("image", blob, "picture");
    for (const [name, value] of Object.entries(options)) {
      for (const one of Array.isArray(value) ? value : [value]) form.append(name, one);
    }
    const response = await this.send(`v1/${route}`, { method: "POST", body: form, signal });
    const place = response.headers.get("Content-Location");
    return { id: place && place.split("/").pop(), explanation: await response.json() };
  }

  async kept(id, signal) {
    return (await this.send(`v1/explanations/${encodeURIComponent(id)}`, { signal })).json();
  }

  async keptPicture(id, signal) {
    return (await this.send(`v1/explanations/${encodeURIComponent(id)}/picture`, { signal })).blob();
  }

  async file(name, signal) {
    return (await this.send(`page/${name}`, { signal })).blob();
  }

  async send(path, { signal, ...init }) {
    for (let tries = 1; ; tries++) {
      const key = sessionStorage.getItem(KEY);
      const headers = key ? { Authorization: `Bearer ${key}` } : {};
      const response = await reach(path, { ...init, headers, signal });
      if (response.ok) return response;
      if (response.status === 401) {
        sessionStorage.removeItem(KEY);
        sessionStorage.setItem(KEY, await this.askForKey((await problemOf(response)).message));
      } else if (response.status === 429 && tries < MOST_TRIES) {
        await response.body?.cancel();
        await this.wait(patience(response.headers.get("Retry-After")), signal);
      } else {
        throw await problemOf(response);
      }
    }
  }

  async wait(seconds, signal) {
    this.busy(seconds);
    try {
      await pause(seconds, signal);
    } finally {
      this.busy(null);
    }
  }
}

async function reach(path, init) {
  try {
    return await fetch(path, init);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The service cannot be reached. Is it still running?" });
  }
}
