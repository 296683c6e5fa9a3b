// A small line chart of the last minutes, with the newest and the largest value as text.

import { el, setAttributes, setText, svg } from "./dom.js";
import { formatSpan } from "./format.js";

const POINTS = 120;
const HEIGHT = 32;

/** Makes a chart with `show(values, intervalSeconds)`. Values below `floor` do not fill the height, so noise looks small. */
export function makeChart(name, format, floor = 1) {
  const line = svg("path", { class: "line" });
  const area = svg("path", { class: "area" });
  const drawing = svg("svg", { viewBox: `0 0 ${POINTS - 1} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" }, area, line);
  const [now, most] = [el("b"), el("span", { class: "muted" })];
  const caption = el("figcaption", {}, el("span", {}, name), now, most);
  const show = (values = [], interval = 5) => {
    const known = values.filter((value) => value != null);
    const top = Math.max(floor, ...known);
    const span = formatSpan(values.length * interval).replace(".0", "");
    const summary = known.length ? `most ${format(Math.max(...known))} in ${span}` : "no history yet";
    setText(now, format(values.at(-1)));
    setText(most, summary);
    const runs = splitRuns(values);
    setAttributes(line, { d: runs.map((run) => drawRun(run, top)).join("") });
    setAttributes(area, { d: runs.map((run) => closeRun(run, drawRun(run, top))).join("") });
    setAttributes(drawing, { "aria-label": `${name}: now ${format(values.at(-1))}, ${summary}` });
  };
  return { node: el("figure", { class: "chart" }, caption, drawing), show };
}

/** Splits the values into runs without gaps: an unknown value is a gap in the line. The newest value is at the right edge. */
function splitRuns(values) {
  const runs = [];
  values.forEach((value, index) => {
    if (value == null) return;
    const point = [POINTS - values.length + index, value];
    if (values[index - 1] == null) runs.push([point]);
    else runs.at(-1).push(point);
  });
  return runs;
}

function drawRun(run, top) {
  const points = run.map(([x, value]) => `${x} ${(HEIGHT - 1.5 - (value / top) * (HEIGHT - 3)).toFixed(1)}`);
  return `M${points.join("L")}${run.length === 1 ? "h-.5" : ""}`;
}

const closeRun = (run, path) => `${path}L${run.at(-1)[0]} ${HEIGHT}L${run[0][0]} ${HEIGHT}z`;
