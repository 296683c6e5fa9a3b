// The address names the open panels: `#spoke=DFW`, `#log=DFW/reader`, or both.

export function readRoute() {
  const parts = new URLSearchParams(location.hash.slice(1));
  return { spoke: parts.get("spoke"), log: parts.get("log") };
}

/** The fragment of the address for the given panels. */
export function toHash({ spoke, log }) {
  const encode = (text) => encodeURIComponent(text).replaceAll("%2F", "/");
  const parts = [spoke && `spoke=${encode(spoke)}`, log && `log=${encode(log)}`];
  return `#${parts.filter(Boolean).join("&")}`;
}

/** Opens or closes panels; a panel without a mention stays as it is. */
export function go(change) {
  const wanted = toHash({ ...readRoute(), ...change });
  if (wanted === (location.hash || "#")) return;
  // pushState instead of location.hash, because an empty hash would scroll to the top.
  history.pushState(null, "", wanted === "#" ? location.pathname + location.search : wanted);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/** Closes a dialog by a change of the address, on Esc, the close button, or a click outside. */
export function closeByRoute(dialog, change) {
  const close = () => go(change);
  dialog.addEventListener("keydown", (event) => {
    // In some browsers one Esc closes several dialogs that opened without a click, so the page handles Esc.
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
