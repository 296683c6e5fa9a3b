// The last verification in words.

import { formatAgo, formatCopying, formatNumber } from "./format.js";

export function describeVerification(verification, clock) {
  if (!verification) return "none yet";
  const { state, started_at, finished_at, documents, differences, error } = verification;
  const found = `${formatNumber(differences)} ${differences === 1 ? "difference" : "differences"}`;
  if (state === "running") return `running: ${formatCopying(verification)}; ${found}`;
  if (state === "failed") return `failed (${formatAgo(finished_at ?? started_at, clock)}): ${error ?? "no reason given"}`;
  return `${found} in ${formatNumber(documents)} documents (${formatAgo(finished_at, clock)})`;
}
