// Elements, maps and grids on a page, out of the numbers of geometry.js. Shared by reports and by the
// explorer page of the service, which serves both files as one module.

const SVG = "http://www.w3.org/2000/svg";
const MAP_SIDE = 160;

// The colour table of devil/report/heatmap.py, from its hexadecimal form.
function colourTable(hex) {
  return Array.from({ length: 256 }, (_, i) =>
    [0, 2, 4].map((at) => parseInt(hex.slice(6 * i + at, 6 * i + at + 2), 16)),
  );
}

// A CSS image that runs through a colour table.
function gradientOf(colours) {
  return `linear-gradient(to right, ${Array.from({ length: 18 }, (_, i) => `rgb(${colours[15 * i]})`)})`;
}

// An element with attributes and children; text only ever becomes a text node.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function layerTitle(layer) {
  return layer.layer === "all" ? "all layers" : layer.layer;
}

// Draw a map into a canvas of the region's shape; returns its scale.
function paint(canvas, map, aspect, colours) {
  const scale = normaliseMap(map);
  const width = Math.max(1, Math.round(aspect >= 1 ? MAP_SIDE : MAP_SIDE * aspect));
  const height = Math.max(1, Math.round(aspect >= 1 ? MAP_SIDE / aspect : MAP_SIDE));
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  upsampleMap(scale.unit, width, height).forEach((value, i) => {
    const [red, green, blue] = colours[Math.round(value * 255)];
    pixels.data.set([red, green, blue, 255], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  return scale;
}

function gridLines([rows, columns]) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  let lines = "";
  for (let i = 1; i < rows; i++) lines += `M0 ${i}H${columns}`;
  for (let j = 1; j < columns; j++) lines += `M${j} 0V${rows}`;
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", lines);
  svg.append(path);
  return svg;
}
