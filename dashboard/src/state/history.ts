// Figures of the last hour, which go on with every sample of the event stream; and of the last day, when asked for.
import { effect, signal } from "@preact/signals";
import { get } from "../api";
import type { History } from "../types";
import { connection, lastSample } from "./live";

const MINUTE_S = 60;
/** Of a plot at least. */
const MIN_POINTS = 60;

export const hour = signal<History | null>(null);

/** After each connection: what came while there was none is in the coordinator's history. */
effect(() => {
  if (connection.value === "live") {
    get<History>("/dashboard/history", { span: "hour" }).then(
      (found) => {
        hour.value = found;
      },
      () => undefined, // plots say that there is nothing; the next connection asks again
    );
  }
});

effect(() => {
  const sample = lastSample.value;
  const known = hour.peek();
  if (sample === null || known === null || sample.at_s <= known.end_s) return;
  const series = Object.fromEntries(
    Object.entries(known.series).map(([name, values]) => [name, [...values.slice(1), sample.values[name] ?? null]]),
  );
  hour.value = { ...known, end_s: sample.at_s, series };
});

/** The mean of the last minute's figures; null if there are none. */
export function lastMinute(history: History | null, name: string): number | null {
  if (history === null) return null;
  const values = (history.series[name] ?? []).slice(-Math.ceil(MINUTE_S / history.step_s));
  const known = values.filter((value): value is number => value !== null);
  return known.length === 0 ? null : known.reduce((sum, value) => sum + value, 0) / known.length;
}

/** As a plot takes it: times, then each series. The time before anything was known is left out. */
export function columnsOf(history: History, names: string[]): (number | null)[][] {
  const n = Math.max(0, ...names.map((name) => history.series[name]?.length ?? 0));
  const columns = names.map((name) => history.series[name] ?? new Array<null>(n).fill(null));
  const known = columns.map((values) => values.findIndex((value) => value !== null)).filter((index) => index >= 0);
  const first = Math.max(0, Math.min(n - MIN_POINTS, ...known));
  const times = Array.from({ length: n }, (_, index) => history.end_s - (n - 1 - index) * history.step_s);
  return [times, ...columns].map((values) => values.slice(first));
}
