// A list of names and values, built once; later updates change single values.

import { el, setText } from "./dom.js";

export function makeFacts(names) {
  const values = new Map(names.map((name) => [name, el("dd", { "data-fact": name })]));
  const rows = names.map((name) => el("div", {}, el("dt", {}, name), values.get(name)));
  return {
    node: el("dl", { class: "facts" }, ...rows),
    of: (name) => values.get(name),
    show: (name, text) => setText(values.get(name), text),
  };
}
