// An actor's live log: the newest lines, then each new line. The view follows new lines until the reader scrolls up.

import { Refusal, streamLog } from "./api.js";
import { byId, el, setText } from "./dom.js";
import { formatMoment, formatNumber } from "./format.js";
import { closeByRoute } from "./route.js";

const KEPT = 500;
const AGAIN_MS = 2000;
const LEVELS = ["error", "warn", "info", "debug", "trace"];

const dialog = byId("log");
const title = el("h2", { id: "log-title" });
const level = el("select", { "aria-label": "least level" }, ...LEVELS.map((name) => el("option", { value: name }, name)));
const state = el("span", { class: "muted", role: "status" });
const lines = el("div", { class: "lines", role: "log", "aria-live": "off", "aria-label": "lines", tabindex: 0 });
const jump = el("button", { type: "button", class: "jump", hidden: "" }, "to the newest line");

let actor = null;
let reading = null;
let newest = "";
let repeatedUntil = "";
let isFollowing = true;

export function prepareLog() {
  level.value = "info";
  dialog.append(el("div", { class: "sheet" },
    el("header", { class: "row" }, title, el("label", {}, "level ", level), state,
      el("button", { type: "button", "data-close": "", "aria-label": "Close" }, "✕")), lines, jump));
  closeByRoute(dialog, { log: null });
  level.addEventListener("change", start);
  lines.addEventListener("scroll", () => follow(lines.scrollHeight - lines.scrollTop - lines.clientHeight < 24));
  jump.addEventListener("click", () => {
    follow(true);
    lines.focus();
  });
}

export function openLog(wanted) {
  if (dialog.open && actor === wanted) return;
  actor = wanted;
  setText(title, actor);
  if (dialog.open) dialog.close();
  dialog.showModal();
  lines.focus();
  start();
}

export function closeLog() {
  reading?.abort();
  if (dialog.open) dialog.close();
}

function start() {
  reading?.abort();
  reading = new AbortController();
  lines.replaceChildren();
  newest = "";
  follow(true);
  read(reading.signal);
}

/** Reads until the signal aborts, and opens a stream that ended again. */
async function read(signal) {
  while (!signal.aborted) {
    setText(state, "connecting…");
    // After an interruption the process sends its newest lines once more.
    repeatedUntil = newest;
    try {
      for await (const batch of streamLog(actor, level.value, signal)) show(batch);
      setText(state, "the stream ended; reconnecting…");
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refusal && error.status < 500) return void setText(state, error.message);
      setText(state, "no answer; reconnecting…");
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
  }
}

function show(batch) {
  setText(state, "live");
  const fresh = batch.filter((line) => line.missed || line.time > repeatedUntil);
  newest = fresh.findLast((line) => line.time)?.time ?? newest;
  lines.append(...fresh.slice(-KEPT).map(drawLine));
  while (lines.children.length > KEPT) lines.firstChild.remove();
  if (isFollowing) lines.scrollTop = lines.scrollHeight;
}

function follow(wanted) {
  isFollowing = wanted;
  jump.hidden = wanted;
  if (wanted) lines.scrollTop = lines.scrollHeight;
}

function drawLine(line) {
  if (line.missed) return el("div", { class: "line missed" }, `${formatNumber(line.missed)} lines missed`);
  const fields = Object.entries(line.fields ?? {}).map(([name, value]) => [el("i", {}, ` ${name}=`), showValue(value)]);
  return el("div", { class: "line", "data-level": line.level },
    el("time", { datetime: line.time, title: line.time }, formatMoment(line.time)),
    el("span", { class: "level" }, line.level),
    el("span", { class: "generation", title: "generation" }, line.generation == null ? "" : `#${line.generation}`),
    el("span", { class: "message" }, line.message, ...fields.flat()));
}

const showValue = (value) => (typeof value === "string" ? value : JSON.stringify(value));
