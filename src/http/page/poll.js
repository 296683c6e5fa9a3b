// Repeats a task while the page is visible, and runs the task immediately when the page becomes visible again.

/** Returns a function that runs the task immediately. */
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
