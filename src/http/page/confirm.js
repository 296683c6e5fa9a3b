// Asks before something is done, and says in a sentence what will happen.

import { byId, setText } from "./dom.js";

const ACTIONS = {
  pause: ["Pause", (zone) => `Both links of ${zone} stop until you resume them. Changes wait in the oplogs, and the time to loss `
    + "goes down meanwhile. A pause does not outlive the process."],
  resume: ["Resume", (zone) => `Both links of ${zone} go on from their checkpoints.`],
  restart: ["Restart", (zone) => `Both links of ${zone} begin anew from their checkpoints at once, whatever failed before.`],
  resync: ["Resync", (zone) => `Everything that ${zone} holds is compared with the hub, and what differs is brought, while the `
    + "rest goes on. This reads all of its documents and may take long."],
};

export const ACTION_NAMES = Object.keys(ACTIONS);
export const labelOf = (action) => ACTIONS[action][0];

/** Resolves to true if the operator wants it. */
export function confirmAction(action, zone) {
  const dialog = byId("confirm");
  const [verb, sentence] = ACTIONS[action];
  setText(byId("confirm-title"), `${verb} ${zone}?`);
  setText(byId("confirm-text"), sentence(zone));
  setText(dialog.querySelector("[data-answer=yes]"), `${verb} ${zone}`);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

byId("confirm").addEventListener("click", ({ target, currentTarget }) => {
  if (target === currentTarget) currentTarget.close("no");
  else if (target.dataset.answer) currentTarget.close(target.dataset.answer);
});
