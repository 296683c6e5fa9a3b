// Does something again and again while the page is seen, and at once when it is seen again.

/** Returns a function that does it at once. */
export function repeat(seconds, task) {
  let timer = null;
  let running = false;
  const run = async () => {
    if (running) return;
    clearTimeout(timer);
    running = true;
    await task();
    running = false;
    if (!document.hidden) timer = setTimeout(run, seconds * 1000);
  };
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : run()));
  run();
  return run;
}
