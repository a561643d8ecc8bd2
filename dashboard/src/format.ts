// Numbers, times and names as people read them.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];

export function bytes(n: number): string {
  let value = n, unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(n: number): string {
  return WHOLE.format(n);
}

/** Three digits that matter: 0.042, 3.14, 128. */
export function figure(n: number): string {
  if (n === 0) return "0";
  return Math.abs(n) >= 100 ? WHOLE.format(n) : String(Number(n.toPrecision(3)));
}

export function plural(n: number, one: string, many = `${one}s`): string {
  return `${count(n)} ${n === 1 ? one : many}`;
}

/** A span of time; a worker's 0.0 means that it wasn't measured yet. */
export function seconds(s: number): string {
  if (s <= 0) return "–";
  if (s < 0.001) return `${figure(s * 1e6)} µs`;
  if (s < 1) return `${figure(s * 1e3)} ms`;
  if (s < 100) return `${figure(s)} s`;
  return s < 7200 ? `${Math.round(s / 60)} min` : s < 172_800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86_400)} days`;
}

export function ago(iso: string | null, now = Date.now()): string {
  if (iso === null) return "–";
  const s = (now - Date.parse(iso)) / 1000;
  return s < 2 ? "just now" : `${seconds(s < 60 ? Math.round(s) : s)} ago`;
}

const STAMP = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
});

export function stamp(iso: string): string {
  return STAMP.format(new Date(iso));
}

export function percent(share: number): string {
  return `${Math.round(share * 100)} %`;
}

export function shortId(id: string): string {
  return id.slice(0, 8);
}

export function range(blocks: { start: number; end: number }): string {
  return blocks.end - blocks.start === 1 ? `block ${blocks.start}` : `blocks ${blocks.start}–${blocks.end - 1}`;
}
