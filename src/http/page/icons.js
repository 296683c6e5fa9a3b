// A sign for each state, so that colour is never the only difference. Drawn in a box of 16 by 16.

import { svg } from "./dom.js";

const CIRCLE = "M8 1.5a6.5 6.5 0 1 1 0 13a6.5 6.5 0 1 1 0-13z";

/** The shape and the mark on the shape. */
const SIGNS = {
  streaming: [CIRCLE, ""],
  paused: [CIRCLE, "M6 5v6M10 5v6"],
  standby: [CIRCLE, "M5 8h6"],
  halted: ["M2 2h12v12h-12z", "M5 5l6 6M11 5l-6 6"],
  backoff: ["M8 1l7.5 13.5h-15z", "M8 6v4M8 12.2v.2"],
  connecting: [CIRCLE, "M4.7 8v.01M8 8v.01M11.3 8v.01"],
  initial_sync: [CIRCLE, "M8 4v7.5M5 8.7l3 3l3-3"],
  reconciling: [CIRCLE, "M4.5 6.2h7M4.5 9.8h7"],
  catching_up: [CIRCLE, "M4.5 5l3 3l-3 3M8.5 5l3 3l-3 3"],
};

/** The parts of a state's sign, for use inside another drawing. */
export function drawSign(state) {
  const [shape, mark] = SIGNS[state] ?? SIGNS.connecting;
  return [svg("path", { class: "shape", d: shape }), svg("path", { class: "mark", d: mark })];
}

export function changeSign([shape, mark], state) {
  const [shapeNow, markNow] = SIGNS[state] ?? SIGNS.connecting;
  shape.setAttribute("d", shapeNow);
  mark.setAttribute("d", markNow);
}

/** A separate sign, hidden from screen readers because the state's name follows as text. */
export function makeIcon(state, tone) {
  return svg("svg", { class: "icon", viewBox: "0 0 16 16", "aria-hidden": "true", "data-tone": tone }, ...drawSign(state));
}
