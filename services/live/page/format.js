const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const whole = (value) => (value == null ? "–" : WHOLE.format(value));
export const fixed = (value, digits) => (value == null ? "–" : value.toFixed(digits));
export const percent = (value, digits = 0) => (value == null ? "–" : `${(100 * value).toFixed(digits)} %`);
export const speed = (value) => (value == null ? "–" : value >= 100 ? whole(value) : value.toFixed(1));

export const clock = (seconds) =>
  new Date(1000 * seconds).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

// How long ago, for an axis: 90 is "1m 30s".
export function ago(seconds) {
  if (seconds < 0.5) return "now";
  const minutes = Math.floor(seconds / 60);
  const rest = Math.round(seconds % 60);
  if (!minutes) return `−${rest}s`;
  return rest ? `−${minutes}m ${rest}s` : `−${minutes}m`;
}

export const short = (name) => (name.length > 10 ? name.slice(0, 8) : name);
