// Pictures, and the ways in which one comes to the page: dropped, chosen, pasted, or a sample.

import { Problem } from "./api.js";

const LARGEST_SIDE = 2048;
const LARGEST_FILE = 4_000_000;

// A picture as it is asked about. Upright, as the service turns it, too.
export class Picture {
  constructor(blob, { width, height }, name, sent) {
    this.blob = blob;
    this.width = width;
    this.height = height;
    this.name = name;
    this.sent = sent; // what was done to it, in words; empty if nothing was
    this.url = URL.createObjectURL(blob);
  }

  close() {
    URL.revokeObjectURL(this.url);
  }
}

// Decode a file. One that is needlessly large is made smaller, for it is sent more than once.
export async function openPicture(blob, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw new Problem(422, { detail: `${name} is not a picture that this browser can show.` });
  }
  const share = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (share === 1 || blob.size <= LARGEST_FILE) return new Picture(blob, bitmap, name, "");
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(share * bitmap.width);
  canvas.height = Math.round(share * bitmap.height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const smaller = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.95));
  return new Picture(smaller, canvas, name, `sent at ${canvas.width} \u00d7 ${canvas.height} pixels`);
}

// Tell `take(blob, name)` of every picture that is dropped anywhere, pasted, or chosen in `input`.
export function listenForPictures(input, take) {
  input.addEventListener("change", () => {
    if (input.files.length) take(input.files[0], input.files[0].name);
    input.value = "";
  });
  document.addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (file) take(file, file.name || "pasted picture");
  });
  listenForDrops((file) => take(file, file.name));
}

function listenForDrops(take) {
  const marked = (on) => document.body.classList.toggle("dropping", on);
  document.addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
    marked(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) marked(false);
  });
  document.addEventListener("drop", (event) => {
    marked(false);
    const [file] = event.dataTransfer.files;
    if (!file) return;
    event.preventDefault();
    take(file);
  });
}
