// Details of one spoke: both links, dead letters, logs, and the operator's commands.

import { act } from "./api.js";
import { ACTION_NAMES, confirmAction, labelOf } from "./confirm.js";
import { byId, el, setAttributes, setText } from "./dom.js";
import { makeLetters } from "./letters.js";
import { makeLink } from "./link.js";
import { describeState } from "./model.js";
import { closeByRoute, toHash } from "./route.js";
import { showState } from "./table.js";
import { describeVerification } from "./verification.js";

const dialog = byId("details");
let parts = null;

/** Calls `refresh` after each command. */
export function prepareDetails(refresh) {
  closeByRoute(dialog, { spoke: null });
  dialog.addEventListener("click", ({ target }) => {
    const action = target.closest("[data-action]")?.dataset.action;
    if (action) perform(action, refresh);
  });
}

export const openZone = () => (dialog.open ? parts.zone : null);

export function openDetails(zone) {
  if (openZone() === zone) return;
  if (parts?.zone !== zone) build(zone);
  setText(parts.result, "");
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

export function closeDetails() {
  if (dialog.open) dialog.close();
}

function build(zone) {
  const state = el("span");
  const watch = el("p", { class: "muted" });
  const result = el("p", { id: "result", role: "status" });
  const buttons = ACTION_NAMES.map((action) => el("button", { type: "button", "data-action": action }, labelOf(action)));
  const logs = ["spoke", "reader", "writer"].map((name) => {
    const actor = `${zone}/${name}`;
    return el("a", { href: toHash({ spoke: zone, log: actor }), "data-log": actor }, actor);
  });
  const links = { uplink: makeLink("uplink", `${zone} → hub`), downlink: makeLink("downlink", `hub → ${zone}`) };
  const letters = makeLetters();
  const verification = el("p");
  const body = el("div", { class: "columns" }, links.uplink.node, links.downlink.node);
  const more = el("div", {}, letters.node,
    el("section", {}, el("h3", {}, "Last verification ", el("span", { class: "muted" }, "of all spokes")), verification));
  const bar = el("div", { class: "row actions" }, ...buttons, el("span", { class: "logs" }, el("span", { class: "muted" }, "log of "), ...logs));
  const gone = el("p", { class: "notice", "data-tone": "warn", hidden: "" }, `There is no spoke ${zone}.`);
  const content = el("div", { class: "live" }, bar, result, body, more);
  dialog.replaceChildren(el("div", { class: "sheet" },
    el("header", { class: "row" }, el("h2", { id: "details-title" }, zone), state, watch,
      el("button", { type: "button", "data-close": "", "aria-label": "Close" }, "✕")),
    el("p", { class: "notice stale-too", "data-tone": "bad", hidden: "" }), gone, content));
  parts = { zone, state, watch, result, buttons, links, letters, verification, gone, content };
}

export function showDetails(status, history, clock) {
  if (!dialog.open) return;
  const spoke = status.spokes.find(({ zone }) => zone === parts.zone);
  parts.gone.hidden = Boolean(spoke);
  parts.content.hidden = !spoke;
  if (!spoke) return;
  showState(parts.state, spoke.state, describeState(spoke));
  setText(parts.watch, spoke.watch.length ? `watches ${spoke.watch.join(", ")}` : "watches no other zone");
  const isPaused = spoke.state === "paused" || spoke.uplink.state === "paused";
  for (const button of parts.buttons) {
    const { action } = button.dataset;
    button.hidden = (action === "pause" && isPaused) || (action === "resume" && !isPaused);
  }
  for (const [way, link] of Object.entries(parts.links)) {
    link.show(spoke[way], spoke.queue, history?.spokes?.[spoke.zone]?.[way], history?.interval_seconds, clock);
  }
  parts.letters.count(spoke.dead_letters);
  setText(parts.verification, describeVerification(status.verification, clock));
}

/** Takes the dead letters of all spokes, and shows those of the open spoke. */
export function showLetters(letters, clock) {
  if (dialog.open) parts.letters.show(letters.filter(({ zone }) => zone === parts.zone), clock);
}

async function perform(action, refresh) {
  const { zone, result, buttons } = parts;
  if (!(await confirmAction(action, zone))) return;
  const say = (text, tone) => setAttributes(setText(result, text), { "data-tone": tone });
  say(`${action}: sending…`, "idle");
  for (const button of buttons) button.disabled = true;
  try {
    say(`${action}: ${await act(zone, action)}`, "good");
  } catch (error) {
    say(`${action}: ${error.status ? error.message : `no answer (${error.message})`}`, "bad");
  }
  for (const button of buttons) button.disabled = false;
  buttons.find((button) => button.dataset.action === action && !button.hidden)?.focus();
  refresh();
}
