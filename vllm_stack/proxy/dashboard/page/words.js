// Numbers and times in words, with their units. `null` is what nobody knows.

export const NONE = "–";

const EXACT = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A plain number: 0, 0.4, 12, 1,234, 56.7 k. */
export function number(value) {
  if (value === null) return NONE;
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  if (value > 0 && value < 0.05) return "< 0.1";
  return value < 10 && !Number.isInteger(value) ? value.toFixed(1) : EXACT.format(value);
}

export const perSecond = (value) => (value === null ? NONE : `${number(value)} /s`);

/** A share of 1. */
export function percent(value) {
  if (value === null) return NONE;
  if (value > 0 && value < 0.001) return "< 0.1 %";
  return `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
}

/** How long something takes, from seconds: 3 ms, 1.2 s, 75 s. */
export function latency(seconds) {
  if (seconds === null) return NONE;
  if (seconds === Infinity) return "> 60 s";
  if (seconds < 0.9995) return `${number(seconds * 1000)} ms`;
  return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
}

/** How long ago, or how long still, from seconds: 12 s, 4 min, 3 h 5 min, 2 d 3 h. */
export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 120) return `${s} s`;
  const minutes = Math.floor(s / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** The time of day of a Unix time, with its date where that is not today's. */
export function clock(time) {
  const at = new Date(time * 1000);
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.toLocaleDateString("sv")} `;
  return day + at.toLocaleTimeString("sv");
}

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;
