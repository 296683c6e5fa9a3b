// The table of spokes, the most urgent first. Each spoke keeps its row element.

import { arrange, byId, el, setAttributes, setText } from "./dom.js";
import { formatDuration, formatNumber, formatRate, formatSpan } from "./format.js";
import { makeIcon } from "./icons.js";
import { countStates, describeState, lastRate, nearestLoss, sortByTrouble, toneOfLag, toneOfState } from "./model.js";
import { go, toHash } from "./route.js";

const COLUMNS = ["zone", "state", "up rate", "up lag", "down rate", "down lag", "time to loss", "dead letters", "restarts"];
const table = byId("spokes");
const rows = new Map();

table.tHead.append(el("tr", { role: "row" }, ...COLUMNS.map((name) => el("th", { scope: "col", role: "columnheader" }, name))));

export function showTable(status, history, clock) {
  const sorted = sortByTrouble(status.spokes, clock);
  for (const zone of rows.keys()) if (!sorted.some((spoke) => spoke.zone === zone)) rows.delete(zone);
  const nodes = sorted.map((spoke) => {
    if (!rows.has(spoke.zone)) rows.set(spoke.zone, makeRow(spoke.zone));
    const row = rows.get(spoke.zone);
    showRow(row, spoke, history?.spokes?.[spoke.zone], clock);
    return row;
  });
  arrange(table.tBodies[0], nodes);
  byId("empty").hidden = sorted.length > 0;
  showCounts(status.spokes);
}

function makeRow(zone) {
  const link = el("a", { href: toHash({ spoke: zone }), title: zone }, zone);
  const cells = COLUMNS.slice(1).map((name) => el("td", { role: "cell", "data-label": name }));
  const row = el("tr", { role: "row", "data-zone": zone }, el("th", { scope: "row", role: "rowheader" }, link), ...cells);
  row.addEventListener("click", (event) => event.target.closest("a") ?? go({ spoke: zone }));
  return row;
}

function showRow(row, spoke, history, clock) {
  const loss = nearestLoss(spoke, clock);
  const restarts = spoke.uplink.restarts + spoke.downlink.restarts;
  setAttributes(row, { "data-state": spoke.state });
  showState(row.cells[1], spoke.state, describeState(spoke));
  const values = [
    [formatRate(lastRate(history?.uplink))], [formatSpan(spoke.uplink.lag_seconds), toneOfLag(spoke.uplink.lag_seconds)],
    [formatRate(lastRate(history?.downlink))], [formatSpan(spoke.downlink.lag_seconds), toneOfLag(spoke.downlink.lag_seconds)],
    [formatSpan(loss?.seconds), loss?.tone, loss && `${formatDuration(loss.seconds)} until the checkpoint leaves the oplog`],
    [formatNumber(spoke.dead_letters), spoke.dead_letters > 0 ? "warn" : null], [formatNumber(restarts)],
  ];
  values.forEach(([text, tone, title], index) => {
    const isLoud = tone === "warn" || tone === "bad";
    setAttributes(setText(row.cells[index + 2], text), { "data-tone": isLoud ? tone : null, title });
  });
}

/** Shows a state with its sign in any element. */
export function showState(node, state, text = state) {
  if (node.dataset.shown === text) return;
  node.dataset.shown = text;
  const tone = toneOfState(state);
  node.replaceChildren(el("span", { class: "state", "data-tone": tone }, makeIcon(state, tone), text));
}

function showCounts(spokes) {
  const counts = countStates(spokes);
  const key = JSON.stringify(counts);
  if (byId("counts").dataset.shown === key) return;
  byId("counts").dataset.shown = key;
  byId("counts").replaceChildren(...counts.map(([state, number]) => el("li", { class: "state", "data-tone": toneOfState(state) },
    makeIcon(state, toneOfState(state)), `${number} ${state}`)));
}
