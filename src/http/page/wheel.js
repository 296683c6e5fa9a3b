// The wheel: the hub in the middle, one ray per spoke, each with a line up to the hub and a line down from the hub.
// Thickness shows the rate; colour and dashes show state and lag. The layout uses real pixels, so that text keeps its
// size.

import { byId, el, setAttributes, setText, svg } from "./dom.js";
import { formatDuration, formatRate, formatSpan } from "./format.js";
import { changeSign, drawSign } from "./icons.js";
import { layOut, placeLabel, thickness } from "./geometry.js";
import { describeState, lastRate, nearestLoss, toneOfLink, toneOfSpoke, toneOfState } from "./model.js";
import { go } from "./route.js";

const host = byId("wheel");
let drawn = null;
let shown = null;

new ResizeObserver(() => shown && showWheel(...shown)).observe(host);

export function showWheel(status, history, clock) {
  shown = [status, history, clock];
  const zones = status.spokes.map((spoke) => spoke.zone);
  const layout = layOut(zones, host.clientWidth);
  const key = JSON.stringify([zones, layout.size]);
  if (drawn?.key !== key) draw(key, layout);
  showHub(status.hub, history);
  const bySpoke = Object.fromEntries(status.spokes.map((spoke) => [spoke.zone, spoke]));
  for (const ray of drawn.rays) showRay(ray, layout, bySpoke[ray.zone], history?.spokes?.[ray.zone], clock);
}

function draw(key, layout) {
  const hadFocus = drawn && host.contains(document.activeElement) ? document.activeElement.dataset.zone : null;
  const rays = layout.spokes.map((spoke) => drawRay(spoke, layout));
  const hub = drawHub(layout);
  const { size, top, bottom } = layout;
  const height = top + bottom;
  const picture = svg("svg", { width: size, height, viewBox: `${-size / 2} ${-top} ${size} ${height}`, role: "group",
    "aria-label": "Spokes around the hub. Arrow keys move, Enter opens." }, ...rays.map((ray) => ray.node), hub.node);
  host.replaceChildren(picture);
  drawn = { key, rays, hub };
  makeReachable(rays.find((ray) => ray.zone === hadFocus) ?? rays[0]);
  if (hadFocus) rays.find((ray) => ray.zone === hadFocus)?.node.focus();
}

function drawHub({ hubRadius }) {
  const size = Math.max(10, Math.min(13, hubRadius / 4.6));
  const text = (step, name) => svg("text", { y: step * size * 1.3, "font-size": size, class: name, dy: ".35em" });
  const lines = [text(-1.5, "name"), text(-0.5, "state"), text(0.5, ""), text(1.5, "")];
  setText(lines[0], "hub");
  const circle = svg("circle", { r: hubRadius });
  return { node: svg("g", { class: "hub" }, circle, ...lines), circle, lines };
}

function showHub(hub, history) {
  const { node, lines } = drawn.hub;
  setAttributes(node, { "data-tone": hub.state === "streaming" ? toneOfLink(hub) : toneOfState(hub.state) });
  setText(lines[1], hub.state);
  setText(lines[2], `${formatRate(lastRate(history?.hub))}/s`);
  setText(lines[3], `lag ${formatSpan(hub.lag_seconds)}`);
}

function drawRay(spoke, layout) {
  const { ringRadius, nodeRadius, lane, hubRadius } = layout;
  const title = svg("title");
  const lanes = ["uplink", "downlink"].map((way) => {
    const y = way === "uplink" ? -lane : lane;
    const line = svg("line", { class: "lane", y1: y, y2: y });
    return { way, y, line, arrow: svg("path", { class: "arrow" }) };
  });
  const scale = nodeRadius / 8;
  const sign = drawSign("connecting");
  const ring = svg("circle", { class: "ring", r: nodeRadius + 2.5, pathLength: 100, transform: "rotate(-90)" });
  const node = svg("g", { transform: `translate(${ringRadius} 0) rotate(${-spoke.degrees})` }, ring,
    svg("g", { transform: `scale(${scale}) translate(-8 -8)` }, ...sign));
  const place = placeLabel(spoke, layout);
  const label = svg("text", { class: "label", "font-size": layout.font, ...place.attributes });
  const numbers = layout.hasNumbers ? place.lines.map((attributes) => svg("text", { class: "numbers", ...attributes })) : [];
  const hit = svg("path", { class: "hit", d: drawWedge(spoke, layout) });
  const band = layout.isRadial ? ringRadius * spoke.pitch : 2 * nodeRadius + 6;
  const end = layout.isRadial ? layout.size / 2 - 2 : ringRadius + nodeRadius + 3;
  const area = svg("rect", { class: "area", x: hubRadius + 2, y: -band / 2, width: end - hubRadius - 2, height: band, rx: 6 });
  const group = svg("g", { class: "ray", "data-zone": spoke.zone, role: "button", tabindex: -1,
    transform: `rotate(${spoke.degrees})` }, title, hit, area,
    ...lanes.flatMap(({ line, arrow }) => [line, arrow]), node, label, ...numbers);
  group.addEventListener("click", () => go({ spoke: spoke.zone }));
  group.addEventListener("keydown", onKey);
  const [from, to] = [hubRadius + 3, ringRadius - nodeRadius - 3];
  return { ...spoke, node: group, title, lanes, sign, ring, label, numbers, from, to };
}

/** The clickable area: the whole ray. */
function drawWedge({ pitch }, { hubRadius, size }) {
  const half = Math.min(pitch, 0.6) / 2;
  const at = (radius, angle) => `${(radius * Math.cos(angle)).toFixed(1)} ${(radius * Math.sin(angle)).toFixed(1)}`;
  return `M${at(hubRadius, -half)}L${at(size / 2, -half)}L${at(size / 2, half)}L${at(hubRadius, half)}z`;
}

function showRay(ray, layout, spoke, history, clock) {
  const tone = toneOfSpoke(spoke);
  const state = describeState(spoke);
  setAttributes(ray.node, { "data-tone": tone, "data-state": spoke.state });
  changeSign(ray.sign, spoke.state);
  for (const lane of ray.lanes) showLane(ray, layout, lane, spoke[lane.way], lastRate(history?.[lane.way]));
  const copying = spoke.uplink.copying ?? spoke.downlink.copying;
  const done = copying?.documents_estimated ? Math.min(100, (100 * copying.documents) / copying.documents_estimated) : 0;
  setAttributes(ray.ring, { "stroke-dasharray": `${done} 100`, visibility: done > 0 ? "visible" : "hidden" });
  const loss = nearestLoss(spoke, clock);
  const isLossNear = loss?.tone === "bad";
  setText(ray.label, isLossNear || spoke.dead_letters > 0 ? `${ray.text} !` : ray.text);
  const ways = [["up", "uplink"], ["down", "downlink"]].map(([word, way]) => `${word} ${formatRate(lastRate(history?.[way]))}/s, lag `
    + formatSpan(spoke[way].lag_seconds));
  const warnings = [isLossNear && `history is lost in ${formatDuration(loss.seconds)}`,
    spoke.dead_letters > 0 && `${spoke.dead_letters} dead letters`].filter(Boolean);
  const text = [`${spoke.zone}: ${state}`, ...ways, ...warnings].join("; ");
  setText(ray.title, text);
  setAttributes(ray.node, { "aria-label": text });
  ray.numbers.forEach((line, index) => setText(line, index === 2 ? state : ways[index].replace(", lag", " ·")));
}

function showLane({ from, to }, { widest }, { way, y, line, arrow }, link, rate) {
  const width = thickness(rate, widest);
  const head = Math.min(widest + 3, width + 3);
  const tone = toneOfLink(link);
  const isUp = way === "uplink";
  const [tip, back] = isUp ? [from, from + head] : [to, to - head];
  setAttributes(line, { "data-tone": tone, "data-state": link.state, "stroke-width": width.toFixed(1),
    x1: isUp ? from + head - 1 : from, x2: isUp ? to : to - head + 1 });
  setAttributes(arrow, { "data-tone": tone, d: `M${tip} ${y}L${back} ${y - head / 2}v${head}z` });
}

/** Makes one ray reachable with Tab; arrow keys lead from there to the others. */
function makeReachable(ray) {
  for (const { node } of drawn.rays) setAttributes(node, { tabindex: node === ray?.node ? 0 : -1 });
}

function onKey(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const at = drawn.rays.findIndex(({ node }) => node === event.currentTarget);
  const last = drawn.rays.length - 1;
  let next = at;
  if (event.key === "Enter" || event.key === " ") go({ spoke: event.currentTarget.dataset.zone });
  else if (event.key in steps) next = (at + steps[event.key] + last + 1) % (last + 1);
  else if (event.key === "Home" || event.key === "End") next = event.key === "Home" ? 0 : last;
  else return;
  event.preventDefault();
  makeReachable(drawn.rays[next]);
  if (next !== at) drawn.rays[next].node.focus();
}

export function showLegend() {
  const sample = (state) => svg("svg", { viewBox: "0 0 26 8", class: "sample", "aria-hidden": "true" },
    svg("line", { class: "lane", "data-state": state, x1: 1, x2: 25, y1: 4, y2: 4, "stroke-width": 2.5, "data-tone": "idle" }));
  const tone = (name, text) => el("span", {}, el("i", { class: "dot", "data-tone": name }), text);
  byId("legend").replaceChildren(
    el("span", {}, "arrow in: up, arrow out: down"), el("span", {}, "thickness: rate"),
    tone("good", "lag below 2 s"), tone("warn", "from 2 s"), tone("bad", "from 1 min"), tone("busy", "copying, catching up"),
    ...["paused", "halted", "backoff", "initial_sync"].map((state) => el("span", {}, sample(state), state)),
  );
}
