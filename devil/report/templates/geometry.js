// Numbers to places and colours, as in devil/report/heatmap.py. Pure functions, no document.

const FLAT_TOLERANCE = 1e-6;

// The range of a map, its values in [0, 1]; a flat map is 0 everywhere.
function normaliseMap(map) {
  const values = map.map((row) => row.map(Math.fround));
  let low = Infinity;
  let high = -Infinity;
  for (const row of values) {
    for (const value of row) {
      low = Math.min(low, value);
      high = Math.max(high, value);
    }
  }
  const flat = high - low <= FLAT_TOLERANCE * Math.max(Math.abs(low), Math.abs(high));
  const unit = values.map((row) => row.map((v) => (flat ? 0 : (v - low) / (high - low))));
  return { low, high, flat, unit };
}

// Resample to width x height, row by row: cell centres hold the values, the edges repeat.
function upsampleMap(map, width, height) {
  const [rows, columns] = [map.length, map[0].length];
  const out = new Float64Array(width * height);
  for (let i = 0; i < height; i++) {
    const y = Math.min(Math.max(((i + 0.5) * rows) / height - 0.5, 0), rows - 1);
    const top = Math.floor(y);
    const bottom = Math.min(top + 1, rows - 1);
    for (let j = 0; j < width; j++) {
      const x = Math.min(Math.max(((j + 0.5) * columns) / width - 0.5, 0), columns - 1);
      const left = Math.floor(x);
      const right = Math.min(left + 1, columns - 1);
      const [down, along] = [y - top, x - left];
      const upper = map[top][left] * (1 - along) + map[top][right] * along;
      const lower = map[bottom][left] * (1 - along) + map[bottom][right] * along;
      out[i * width + j] = upper * (1 - down) + lower * down;
    }
  }
  return out;
}

// The location of a grid at a point of the picture, in its pixels; null outside the region.
function cellAt(region, grid, x, y) {
  const [left, top, right, bottom] = region;
  if (x < left || x >= right || y < top || y >= bottom) return null;
  const row = Math.floor(((y - top) / (bottom - top)) * grid[0]);
  const column = Math.floor(((x - left) / (right - left)) * grid[1]);
  return [Math.min(row, grid[0] - 1), Math.min(column, grid[1] - 1)];
}

// The centre of a location, in pixels of the picture.
function cellCentre(region, grid, row, column) {
  const [left, top, right, bottom] = region;
  return [
    left + ((column + 0.5) / grid[1]) * (right - left),
    top + ((row + 0.5) / grid[0]) * (bottom - top),
  ];
}

function formatNats(value, decimals = 2) {
  return value.toFixed(decimals).replace("-", "\u2212");
}

// The two ends of a scale, fine enough to tell them apart.
function formatEnds({ low, high }) {
  const decimals = high - low >= 0.1 ? 2 : 4;
  return [formatNats(low, decimals), formatNats(high, decimals)];
}

function formatRange(scale) {
  return scale.flat ? `flat at ${formatNats(scale.low)}` : formatEnds(scale).join(" to ");
}

function formatPercent(share) {
  const percent = 100 * Math.min(1, share);
  return `${percent.toFixed(percent >= 9.5 ? 0 : 1)} %`;
}
