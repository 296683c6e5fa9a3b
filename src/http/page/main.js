// Polls status and history of the process and shows both, or a notice without an answer. Opens the panels that the
// address names.

import { getJson, Refusal } from "./api.js";
import { closeDetails, openDetails, openZone, prepareDetails, showDetails, showLetters } from "./details.js";
import { byId, setAttributes, setText, showText } from "./dom.js";
import { formatDuration } from "./format.js";
import { showHubCharts, showHubPanel } from "./hub.js";
import { closeLog, openLog, prepareLog } from "./log.js";
import { describeReadiness } from "./model.js";
import { repeat } from "./poll.js";
import { readRoute } from "./route.js";
import { showTable } from "./table.js";
import { showLegend, showWheel } from "./wheel.js";

let status = null;
let history = null;
let clock = Date.now();
let silentSince = null;
let refusal = null;

async function readStatus() {
  const asked = Date.now();
  try {
    ({ value: status, clock } = await getJson("status"));
    silentSince = refusal = null;
  } catch (error) {
    silentSince ??= asked;
    refusal = error instanceof Refusal ? error.message : null;
  }
  showSilence();
  if (silentSince === null) showStatus();
}

async function readHistory() {
  const answer = await getJson("history").catch(() => null);
  if (!answer) return;
  history = answer.value;
  showHubCharts(history);
  if (status) showStatus();
  await readLetters();
}

/** Reads dead letters only while a spoke's details are open. */
async function readLetters() {
  const spoke = status?.spokes.find(({ zone }) => zone === openZone());
  if (!spoke?.dead_letters) return;
  const answer = await getJson("dead-letters").catch(() => null);
  if (answer) showLetters(answer.value, answer.clock);
}

function showStatus() {
  const readiness = describeReadiness(status);
  setAttributes(setText(byId("ready"), readiness.text), {
    "data-tone": readiness.isReady ? "good" : "warn", title: readiness.all.join("\n") || null,
  });
  setText(byId("process"), `${status.version}, up ${formatDuration(status.uptime_seconds)}`);
  showText(byId("banner"), status.configuration_error && `The configuration file is invalid: ${status.configuration_error}`);
  showWheel(status, history, clock);
  showTable(status, history, clock);
  showHubPanel(status, clock);
  showDetails(status, history, clock);
}

function showSilence() {
  document.body.toggleAttribute("data-stale", silentSince !== null);
  const since = formatDuration((Date.now() - silentSince) / 1000);
  const text = silentSince && (refusal ? `refused for ${since}: ${refusal}` : `no answer for ${since}`);
  for (const node of [byId("stale"), ...document.querySelectorAll(".stale-too")]) showText(node, text);
}

function openRoute() {
  const { spoke, log } = readRoute();
  const isOther = spoke && spoke !== openZone();
  // The log lies above the details, so the details open first.
  if (!log || isOther) closeLog();
  if (!spoke) closeDetails();
  if (isOther) {
    openDetails(spoke);
    if (status) showStatus();
    readLetters();
  }
  if (log) openLog(log);
}

const refresh = repeat(2, readStatus);
prepareDetails(refresh);
prepareLog();
showLegend();
repeat(5, readHistory);
setInterval(showSilence, 1000);
addEventListener("hashchange", openRoute);
openRoute();
