// The hub's panel: numbers, charts, and the last verification.

import { makeChart } from "./chart.js";
import { byId, el, showText } from "./dom.js";
import { makeFacts } from "./facts.js";
import { formatAgo, formatNumber, formatRate, formatSpan } from "./format.js";
import { describeVerification } from "./verification.js";
import { showState } from "./table.js";

const FACTS = ["state", "lag", "rate", "changes in total", "open streams", "restarts", "processes", "verification"];
const facts = makeFacts(FACTS);
const error = el("p", { class: "error", hidden: "" });
const [rate, lag] = [makeChart("rate", (value) => `${formatRate(value)}/s`), makeChart("lag", formatSpan, 2)];

byId("hub").append(facts.node, error, el("div", { class: "charts" }, rate.node, lag.node));

export function showHubPanel({ hub, cluster, verification }, clock) {
  showState(facts.of("state"), hub.state);
  facts.show("lag", formatSpan(hub.lag_seconds));
  facts.show("changes in total", formatNumber(hub.events_total));
  facts.show("open streams", formatNumber(hub.open_streams));
  facts.show("restarts", formatNumber(hub.restarts));
  facts.show("processes", describeMembers(cluster));
  facts.show("verification", describeVerification(verification, clock));
  showText(error, hub.last_error && `${formatAgo(hub.last_error_at, clock)}: ${hub.last_error}`);
}

/** The processes that share the spokes, with the number of spokes of each. */
function describeMembers({ members, last_error: error }) {
  if (error) return `unknown: ${error}`;
  const names = members.map((member) => {
    const notes = [`${formatNumber(member.spokes)} spokes`, member.is_this && "this one", member.is_leaving && "leaving",
      !member.has_same_configuration && "another configuration"].filter(Boolean);
    return `${member.host} process ${member.pid} (${notes.join(", ")})`;
  });
  return names.join("; ") || "–";
}

export function showHubCharts(history) {
  rate.show(history.hub.rate, history.interval_seconds);
  facts.show("rate", `${formatRate(history.hub.rate.at(-1))}/s`);
  lag.show(history.hub.lag, history.interval_seconds);
}
