// What is looked at, and how: a plain object that the address of the page holds after its `#`, where
// no server sees it. Only what differs from the start is written.

export const CALIBRATIONS = ["pmi", "none", "mean", "contrast"];
export const MOST_WORDS = 12;

export const START = {
  model: "", // id; the service's first one if empty
  beside: "", // a second model's id
  layer: "", // the layer whose grid lies over the picture; the last one if empty
  layerBeside: "",
  words: [], // queries
  map: "", // the query that colours the picture
  calibration: "pmi",
  prompt: "",
  at: null, // [x, y], fractions of the picture
  opacity: 65, // per cent
  sample: "",
  kept: "", // id of a kept explanation
  keptPrompt: "", // the prompt under which its words were found
};

const LISTS = ["words"];

// The view of an address's hash; what is not understood counts as the start.
export function readView(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const view = { ...START };
  for (const name of Object.keys(START)) {
    if (!given.has(name)) continue;
    view[name] = LISTS.includes(name) ? given.getAll(name) : given.get(name);
  }
  view.words = tidyWords(view.words);
  view.at = readPoint(view.at);
  view.opacity = readPercent(view.opacity);
  if (!CALIBRATIONS.includes(view.calibration)) view.calibration = START.calibration;
  if (!view.words.includes(view.map)) view.map = "";
  return view;
}

// The hash that `readView` reads.
export function writeView(view) {
  const written = new URLSearchParams();
  for (const [name, value] of Object.entries(view)) {
    if (value === null || value === START[name]) continue;
    if (name === "at") written.append(name, value.map((share) => share.toFixed(4)).join(","));
    else for (const one of [value].flat()) written.append(name, one);
  }
  return `#${written}`.replaceAll("%2C", ",");
}

// Queries as people write them: separated by commas or lines, each once.
export function splitWords(text) {
  return tidyWords(text.split(/[,;\n]/));
}

function tidyWords(words) {
  const tidy = words.map((word) => word.trim().replace(/\s+/g, " ").slice(0, 1000));
  return [...new Set(tidy.filter(Boolean))].slice(0, MOST_WORDS);
}

function readPoint(text) {
  const point = (text ?? "").split(",").map(Number);
  return text && point.length === 2 && point.every((share) => share >= 0 && share <= 1) ? point : null;
}

function readPercent(text) {
  const percent = Math.round(Number(text));
  return percent >= 0 && percent <= 100 ? percent : START.opacity;
}
