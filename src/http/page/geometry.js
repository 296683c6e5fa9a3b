// The layout of the wheel, for 1 to 60 spokes and any width. Pure functions.

const SIDEWAYS = 16;
const NUMBERED = 6;
const LETTERS = 10;
const LETTERS_WHERE_NARROW = 7;
const LINE = 1.2;
const GAP = 8;

/** Returns sizes in pixels relative to the centre. Angles start at the top and go clockwise. */
export function layOut(zones, width) {
  const size = Math.round(Math.max(260, Math.min(width, 640)));
  const count = Math.max(1, zones.length);
  const isRadial = count > SIDEWAYS;
  const font = count > 36 || size < 420 ? 10.5 : 12.5;
  const hasNumbers = count <= NUMBERED && size >= 460;
  const most = size < 420 ? LETTERS_WHERE_NARROW : LETTERS;
  const labels = zones.map((zone) => (zone.length > most ? `${zone.slice(0, most - 1)}…` : zone));
  const labelWidth = Math.max(1, ...labels.map((label) => label.length + 1)) * font * 0.72;
  const pitch = (2 * Math.PI) / count;
  const degrees = zones.map((_, index) => (360 * index) / count - 90);
  const textWidth = hasNumbers ? Math.max(labelWidth, 112) : labelWidth;
  const textHeight = font * LINE * (hasNumbers ? 4 : 1);
  const nodeRadius = clamp(((size * 0.36) * pitch) * 0.34, 4.5, size < 420 ? 12 : 15);
  const sizes = { size, font, isRadial, hasNumbers, textWidth, textHeight, nodeRadius };
  const ringRadius = fitRing(degrees, sizes);
  const hubRadius = Math.max(size < 420 ? 42 : 54, ringRadius * (isRadial ? 0.42 : 0.28));
  const lane = clamp(hubRadius * pitch * 0.24, 1.5, 7);
  const spokes = zones.map((zone, index) => ({ zone, text: labels[index], degrees: degrees[index], pitch }));
  const reach = (sign) => {
    const furthest = Math.max(...degrees.map((angle) => sign * sine(angle) * ringRadius + nodeRadius + textHeight + GAP));
    return isRadial ? size / 2 : Math.max(hubRadius + GAP, furthest);
  };
  return { ...sizes, top: reach(-1), bottom: reach(1), ringRadius, hubRadius, lane, widest: Math.min(10, 2 * lane - 0.8), spokes };
}

/** The radius of the largest ring whose labels still fit into the picture. A picture with numbers may be higher than wide. */
function fitRing(degrees, { size, isRadial, hasNumbers, textWidth, textHeight, nodeRadius }) {
  const half = size / 2 - 2;
  if (isRadial) return half - textWidth - nodeRadius - GAP;
  const high = hasNumbers ? half * 1.15 : half;
  const radii = degrees.map((angle) => {
    const [across, along] = [Math.abs(cosine(angle)), Math.abs(sine(angle))];
    if (isStacked(angle, hasNumbers)) {
      return Math.min((half - textWidth / 2) / across, (high - textHeight - nodeRadius - GAP) / Math.max(along, 0.5));
    }
    return Math.min((half - textWidth - nodeRadius - GAP) / across, (half - Math.max(nodeRadius, textHeight / 2)) / along);
  });
  return Math.min(half, ...radii);
}

/** Attributes of a spoke's label and of the number lines below the label, inside the ray's rotated group. */
export function placeLabel({ degrees }, { ringRadius, nodeRadius, font, isRadial, hasNumbers }) {
  const side = cosine(degrees) < -0.01 ? -1 : 1;
  const anchor = side < 0 ? "end" : "start";
  const beside = nodeRadius + GAP - 2;
  if (isRadial) {
    const transform = `translate(${ringRadius + beside} 0)${side < 0 ? " rotate(180)" : ""}`;
    return { attributes: { transform, "text-anchor": anchor, dy: ".35em" }, lines: [] };
  }
  const isStack = isStacked(degrees, hasNumbers);
  const height = font * LINE;
  const above = -beside - (hasNumbers ? 3.5 : 0.5) * height;
  const first = !isStack ? 0 : sine(degrees) < -0.01 ? above : beside + 0.5 * height;
  const transform = `translate(${ringRadius} 0) rotate(${-degrees})`;
  const line = (row) => ({ transform, "text-anchor": isStack ? "middle" : anchor, dy: ".35em", x: isStack ? 0 : side * beside,
    y: (first + row * height).toFixed(1), "font-size": row === 0 ? font : font - 1 });
  return { attributes: line(0), lines: [line(1), line(2), line(3)] };
}

/** Line width: grows with the logarithm of the rate; a quiet link stays visible. */
export function thickness(rate, widest) {
  const quiet = Math.min(1.2, widest);
  return quiet + (widest - quiet) * Math.min(1, Math.log10(1 + (rate ?? 0)) / 4);
}

const clamp = (value, least, most) => Math.min(most, Math.max(least, value));

/** True if a label is above or below its node instead of next to it. */
const isStacked = (degrees, hasNumbers) => hasNumbers || Math.abs(cosine(degrees)) < 0.2;
const cosine = (degrees) => Math.cos((degrees * Math.PI) / 180);
const sine = (degrees) => Math.sin((degrees * Math.PI) / 180);
