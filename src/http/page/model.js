// The meaning of the numbers: tone of a link, order of the spokes by urgency, readiness. Pure functions.

/** All states, the most urgent first. */
export const STATES = [
  "halted", "backoff", "connecting", "reconciling", "initial_sync", "catching_up", "paused", "standby", "streaming",
];

export const LAG_WARN = 2;
export const LAG_BAD = 60;

const TONE_OF_STATE = {
  halted: "bad", backoff: "bad", connecting: "warn",
  reconciling: "busy", initial_sync: "busy", catching_up: "busy", paused: "idle", standby: "idle",
};

export const toneOfState = (state) => TONE_OF_STATE[state] ?? "good";

/** The tone of a link: by the lag while streaming, else by the state. */
export function toneOfLink(link) {
  return link.state === "streaming" ? toneOfLag(link.lag_seconds) : toneOfState(link.state);
}

export function toneOfLag(lag) {
  if (lag == null) return "idle";
  return lag >= LAG_BAD ? "bad" : lag >= LAG_WARN ? "warn" : "good";
}

const WORST_TONE = ["bad", "warn", "busy", "idle", "good"];

export function toneOfSpoke(spoke) {
  const tones = [toneOfState(spoke.state), toneOfLink(spoke.uplink), toneOfLink(spoke.downlink)];
  return WORST_TONE.find((tone) => tones.includes(tone));
}

/** The spoke's state, with "up" or "down" if only one link has the state, or with the process that runs the spoke. */
export function describeState(spoke) {
  if (spoke.elsewhere) return `${spoke.elsewhere.state ?? "unknown"} at ${spoke.elsewhere.holder}`;
  const [up, down] = [spoke.uplink.state === spoke.state, spoke.downlink.state === spoke.state];
  return up === down ? spoke.state : `${spoke.state} ${up ? "up" : "down"}`;
}

/**
 * The tone of a link's time to loss. The oplog window is the time to loss plus the age of the checkpoint. A time to loss below a
 * quarter of the window is bad, as in the process's own warning.
 */
export function toneOfLoss(link, clock) {
  const left = link.time_to_loss_seconds;
  if (left == null) return "none";
  const behind = clock / 1000 - Number.parseInt(link.checkpoint?.cluster_time, 10);
  return behind > 3 * left ? "bad" : behind > left ? "warn" : "good";
}

/** Time to loss and tone of the link that loses its place first; null if both are unknown. */
export function nearestLoss(spoke, clock) {
  const links = [spoke.uplink, spoke.downlink].filter((link) => link.time_to_loss_seconds != null);
  if (links.length === 0) return null;
  const rank = (link) => WORST_TONE.indexOf(toneOfLoss(link, clock));
  links.sort((one, other) => rank(one) - rank(other) || one.time_to_loss_seconds - other.time_to_loss_seconds);
  return { seconds: links[0].time_to_loss_seconds, tone: toneOfLoss(links[0], clock) };
}

/** Sorts spokes by urgency. Numbers count by their order of magnitude, so that rows do not jump about. */
export function sortByTrouble(spokes, clock) {
  const keyed = spokes.map((spoke) => ({ spoke, key: troubleOf(spoke, clock) }));
  const compare = (one, other) => {
    const at = one.key.findIndex((part, index) => part !== other.key[index]);
    return at < 0 ? one.spoke.zone.localeCompare(other.spoke.zone) : one.key[at] - other.key[at];
  };
  return keyed.sort(compare).map(({ spoke }) => spoke);
}

function troubleOf(spoke, clock) {
  const rank = STATES.indexOf(spoke.state);
  const loss = nearestLoss(spoke, clock);
  const isShort = loss && loss.tone !== "good";
  const lag = Math.max(spoke.uplink.lag_seconds ?? 0, spoke.downlink.lag_seconds ?? 0);
  return [rank, isShort ? magnitude(loss.seconds) : Infinity, -spoke.dead_letters, lag < LAG_WARN ? 0 : -magnitude(lag)];
}

const magnitude = (value) => Math.floor(Math.log2(Math.max(value, 1)));

/** Describes the links that are not streaming. Paused links do not count, because an operator paused them; nor do spokes
 * that another process runs. */
export function describeReadiness(status) {
  const missing = status.hub.state === "streaming" ? [] : [`hub: ${status.hub.state}`];
  const worstFirst = [...status.spokes].sort((one, other) => STATES.indexOf(one.state) - STATES.indexOf(other.state));
  for (const spoke of worstFirst) missing.push(...missingOf(spoke));
  const paused = status.spokes.filter((spoke) => spoke.state === "paused").length;
  const elsewhere = status.spokes.filter((spoke) => spoke.state === "standby").length;
  const well = status.spokes.length - paused - elsewhere;
  const count = (number) => `${number} ${number === 1 ? "spoke" : "spokes"}`;
  const verb = well === 1 ? "streams" : "stream";
  if (missing.length > 0) return { isReady: false, text: `not streaming: ${shorten(missing, 2)}`, all: missing };
  if (status.spokes.length === 0) return { isReady: true, text: "no spokes are configured", all: [] };
  if (elsewhere > 0) {
    const more = paused > 0 ? `, ${paused} paused` : "";
    return { isReady: true, text: `${count(well)} ${verb} here${more}, ${elsewhere} elsewhere`, all: [] };
  }
  if (paused > 0) return { isReady: true, text: `${count(well)} ${verb} both ways, ${paused} paused`, all: [] };
  return { isReady: true, text: `${well === 1 ? "the one spoke streams" : `all ${count(well)} stream`} both ways`, all: [] };
}

function missingOf(spoke) {
  const ways = { uplink: spoke.uplink.state, downlink: spoke.downlink.state };
  const missing = Object.entries(ways).filter(([, state]) => !["streaming", "paused", "standby"].includes(state));
  if (missing.length === 2 && ways.uplink === ways.downlink) return [`${spoke.zone}: ${ways.uplink}`];
  return missing.map(([way, state]) => `${spoke.zone} ${way}: ${state}`);
}

function shorten(parts, most) {
  const rest = parts.length - most;
  return rest > 0 ? `${parts.slice(0, most).join(", ")} and ${rest} more` : parts.join(", ");
}

/** The number of spokes in each state, the most urgent state first. */
export function countStates(spokes) {
  const counts = STATES.map((state) => [state, spokes.filter((spoke) => spoke.state === state).length]);
  return counts.filter(([, number]) => number > 0);
}

/** The newest rate in a series of the history, or null. */
export const lastRate = (series) => series?.rate?.at(-1) ?? null;
