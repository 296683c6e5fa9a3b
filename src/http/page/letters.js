// The dead letters of one spoke: document, reason and time.

import { el, setText } from "./dom.js";
import { formatAgo, formatNumber } from "./format.js";

const SHOWN = 100;

export function makeLetters() {
  const title = el("h3");
  const list = el("ul", { class: "letters" });
  let shown = "";
  return {
    node: el("section", { "data-part": "letters" }, title, list),
    count: (number) => {
      setText(title, number > 0 ? `Dead letters: ${formatNumber(number)}` : "No dead letters");
      list.hidden = number === 0;
    },
    show: (letters, clock) => {
      const key = JSON.stringify(letters);
      if (key === shown) return;
      shown = key;
      const rest = letters.length - SHOWN;
      list.replaceChildren(...letters.slice(0, SHOWN).map((letter) => drawLetter(letter, clock)),
        ...(rest > 0 ? [el("li", {}, `and ${formatNumber(rest)} more`)] : []));
    },
  };
}

function drawLetter({ link, ns, id, code, reason, parked_at, later_changes }, clock) {
  const waiting = later_changes > 0 ? `, later changes waiting: ${formatNumber(later_changes)}` : "";
  return el("li", {},
    el("div", {}, el("code", {}, `${ns} ${JSON.stringify(id)}`)),
    el("div", {}, `${reason} (${code})`),
    el("div", { class: "muted" }, `${link}, ${formatAgo(parked_at, clock)}${waiting}`));
}
