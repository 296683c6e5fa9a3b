// One link in a spoke's details: numbers, progress of a copy, last error, charts.

import { makeChart } from "./chart.js";
import { el, setAttributes, setText, showText } from "./dom.js";
import { makeFacts } from "./facts.js";
import { formatAgo, formatBytes, formatCopying, formatDuration, formatMoment, formatNumber, formatRate, formatSpan } from "./format.js";
import { toneOfLag, toneOfLoss } from "./model.js";
import { showState } from "./table.js";

const COMMON = ["state", "lag", "applied total", "checkpoint", "checkpoint age", "time to loss"];
const OWN = { uplink: ["foreign writes refused"], downlink: ["queue"] };

export function makeLink(way, route) {
  const facts = makeFacts([...COMMON, ...OWN[way], "restarts"]);
  const bar = el("progress", { "aria-label": `${way} copy` });
  const [what, progress] = [el("b"), el("span")];
  const copying = el("div", { class: "copying", hidden: "" }, what, bar, progress);
  const error = el("p", { class: "error", hidden: "" });
  const [rate, lag] = [makeChart("rate", (value) => `${formatRate(value)}/s`), makeChart("lag", formatSpan, 2)];
  const title = el("h3", {}, way, " ", el("span", { class: "muted" }, route));
  const node = el("section", { "data-link": way }, title, copying, facts.node, error, rate.node, lag.node);
  const show = (link, queue, history, interval, clock) => {
    showFacts(facts, way, link, queue, clock);
    showCopying(copying, what, bar, progress, link.copying);
    showText(error, link.last_error && `${formatAgo(link.last_error_at, clock)}: ${link.last_error}`);
    rate.show(history?.rate, interval);
    lag.show(history?.lag, interval);
  };
  return { node, show };
}

function showFacts(facts, way, link, queue, clock) {
  const loud = (tone) => (tone === "warn" || tone === "bad" ? tone : null);
  const cluster = link.checkpoint?.cluster_time;
  showState(facts.of("state"), link.state);
  facts.show("lag", formatSpan(link.lag_seconds));
  setAttributes(facts.of("lag"), { "data-tone": loud(toneOfLag(link.lag_seconds)) });
  facts.show("applied total", formatNumber(link.applied_total));
  facts.show("checkpoint", cluster ? `${cluster} (${formatMoment(Number.parseInt(cluster, 10) * 1000)})` : "none");
  facts.show("checkpoint age", formatSpan(link.checkpoint?.age_seconds));
  facts.show("time to loss", formatDuration(link.time_to_loss_seconds));
  setAttributes(facts.of("time to loss"), { "data-tone": loud(toneOfLoss(link, clock)) });
  facts.show("restarts", formatNumber(link.restarts));
  if (way === "uplink") facts.show("foreign writes refused", formatNumber(link.foreign_total));
  else facts.show("queue", describeQueue(queue));
}

function describeQueue(queue) {
  if (!queue) return "–";
  const events = `${formatNumber(queue.events)} of ${formatNumber(queue.events_capacity)} changes`;
  return `${events}, ${formatBytes(queue.bytes)} of ${formatBytes(queue.bytes_capacity)}`;
}

function showCopying(node, what, bar, progress, copying) {
  node.hidden = !copying;
  if (!copying) return;
  const estimated = copying.documents_estimated;
  setText(what, `copying ${copying.zone} of ${copying.ns}`);
  // A bar without a value shows that the total is unknown.
  setAttributes(bar, { max: estimated || 1, value: estimated ? Math.min(copying.documents, estimated) : null });
  setText(progress, formatCopying(copying));
}
