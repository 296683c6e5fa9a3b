// Numbers and times as text. An unknown value is a dash.

const NONE = "–";
const grouped = new Intl.NumberFormat("en");

export const formatNumber = (value) => (value == null ? NONE : grouped.format(Math.round(value)));

/** Changes per second as a whole number, so that digits align in columns. */
export function formatRate(rate) {
  return rate > 0 && rate < 0.5 ? "<1" : formatNumber(rate);
}

/** A short span in one unit, for columns. */
export function formatSpan(seconds) {
  if (seconds == null) return NONE;
  if (seconds < 59.95) return `${seconds.toFixed(1)} s`;
  if (seconds < 5970) return `${Math.round(seconds / 60)} min`;
  if (seconds < 171000) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86400).toFixed(1)} d`;
}

/** A span in two units, for sentences. */
export function formatDuration(seconds) {
  if (seconds == null) return NONE;
  const whole = Math.round(seconds);
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => whole >= size);
  if (first < 0) return "0 s";
  const parts = units.slice(first, first + 2).map(([unit, size], index) => {
    const number = index === 0 ? Math.floor(whole / size) : Math.floor((whole % units[first][1]) / size);
    return number > 0 ? `${number} ${unit}` : "";
  });
  return parts.filter(Boolean).join(" ");
}

export function formatBytes(bytes) {
  if (bytes == null) return NONE;
  const units = ["B", "kB", "MB", "GB"];
  const at = Math.min(units.length - 1, bytes < 1 ? 0 : Math.floor(Math.log10(bytes) / 3));
  const value = bytes / 1000 ** at;
  return `${value < 10 && at > 0 ? value.toFixed(1) : Math.round(value)} ${units[at]}`;
}

/** A time in the browser's time zone, with the date unless the date is today. */
export function formatMoment(moment) {
  const date = new Date(moment ?? NaN);
  if (Number.isNaN(date.getTime())) return NONE;
  const pad = (number) => String(number).padStart(2, "0");
  const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} `;
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()].map(pad).join(":");
  return (date.toDateString() === new Date().toDateString() ? "" : day) + time;
}

/** A time, and the span since then. */
export function formatAgo(moment, clock) {
  const seconds = (clock - Date.parse(moment)) / 1000;
  return Number.isNaN(seconds) ? NONE : `${formatMoment(moment)}, ${formatDuration(Math.max(0, seconds))} ago`;
}

/** The progress of a copy in words. */
export function formatCopying({ documents, documents_estimated, documents_per_second, seconds_remaining }) {
  const of = documents_estimated == null ? "" : ` of about ${formatNumber(documents_estimated)}`;
  const left = seconds_remaining == null ? "" : `, ${formatDuration(seconds_remaining)} left`;
  return `${formatNumber(documents)}${of} documents, ${formatNumber(documents_per_second)} per second${left}`;
}
