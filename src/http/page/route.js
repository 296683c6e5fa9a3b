// What is open stands in the address: `#spoke=DFW`, `#log=DFW/reader`, or both.

export function readRoute() {
  const parts = new URLSearchParams(location.hash.slice(1));
  return { spoke: parts.get("spoke"), log: parts.get("log") };
}

/** The address's end for what is to be open. */
export function toHash({ spoke, log }) {
  const encode = (text) => encodeURIComponent(text).replaceAll("%2F", "/");
  const parts = [spoke && `spoke=${encode(spoke)}`, log && `log=${encode(log)}`];
  return `#${parts.filter(Boolean).join("&")}`;
}

/** Opens or closes something; what is not named stays as it is. */
export function go(change) {
  const wanted = toHash({ ...readRoute(), ...change });
  if (wanted === (location.hash || "#")) return;
  // Not by setting the hash: an empty one would scroll to the top.
  history.pushState(null, "", wanted === "#" ? location.pathname + location.search : wanted);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/** Closes a dialog by way of the address: with Esc, its button, a click beside it. */
export function closeByRoute(dialog, change) {
  const close = () => go(change);
  dialog.addEventListener("keydown", (event) => {
    // Left to the browser, one Esc may close several dialogs that were opened without a click.
    if (event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    close();
  });
  dialog.addEventListener("cancel", (event) => {
    event.preventDefault();
    close();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("[data-close]")) close();
  });
}
