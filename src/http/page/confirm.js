// Asks for confirmation of a command, and describes the command's effect.

import { byId, setText } from "./dom.js";

const ACTIONS = {
  pause: ["Pause", (zone) => `Both links of ${zone} stop until you resume them. Changes wait in the oplogs, and the time to loss `
    + "decreases. A pause ends with the process."],
  resume: ["Resume", (zone) => `Both links of ${zone} continue from their checkpoints.`],
  restart: ["Restart", (zone) => `Both links of ${zone} start again from their checkpoints immediately, without a delay after failures.`],
  resync: ["Resync", (zone) => `Both links of ${zone} compare all documents with the hub and apply the differences. Other spokes go on. `
    + "A resync reads all documents of the spoke and may take long."],
};

export const ACTION_NAMES = Object.keys(ACTIONS);
export const labelOf = (action) => ACTIONS[action][0];

/** Resolves to true if the operator confirms. */
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
