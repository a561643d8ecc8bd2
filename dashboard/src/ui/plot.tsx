// One plot over time, in the page's colours, as wide as its place.
import { useLayoutEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import { shownTheme } from "../state/theme";

export interface Line {
  label: string;
  /** A custom property of the page, without its dashes: `plot-1`. */
  colour: string;
  isFilled?: boolean;
  isStepped?: boolean;
}

function colourOf(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const DAY_S = 86_400;
const CLOCK = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hour12: false });
const DATE = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const BOTH = new Intl.DateTimeFormat(undefined, {
  month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false,
});

function timeWords(ticks: number[]): string[] {
  const isLong = (ticks[ticks.length - 1] ?? 0) - (ticks[0] ?? 0) > 1.5 * DAY_S;
  return ticks.map((tick) => (isLong ? DATE : CLOCK).format(tick * 1000));
}

/** Only points that no line reaches: between two times of which nothing is known. */
function lonePoints(plot: uPlot, series: number): number[] {
  const values = plot.data[series] ?? [];
  const isKnown = (index: number) => typeof values[index] === "number";
  return Array.from(values.keys()).filter((index) => isKnown(index) && !isKnown(index - 1) && !isKnown(index + 1));
}

function options(
  width: number, height: number, lines: Line[], unit: (value: number) => string, least: number,
): uPlot.Options {
  const axis = {
    stroke: colourOf("muted"),
    font: "11px system-ui, sans-serif",
    grid: { stroke: colourOf("line"), width: 1 },
    ticks: { show: false },
  };
  return {
    width,
    height,
    cursor: { y: false, points: { size: 6 } },
    legend: { live: true },
    scales: { y: { range: (_plot, _least, highest) => [0, highest > least ? highest * 1.1 : least] } },
    axes: [{ ...axis, values: (_plot, ticks) => timeWords(ticks) }, { ...axis, size: 64, values: (_plot, ticks) => ticks.map(unit) }],
    series: [
      { value: (_plot: uPlot, value: number | null) => (value === null ? "–" : BOTH.format(value * 1000)) },
      ...lines.map((line) => ({
        label: line.label,
        stroke: colourOf(line.colour),
        width: 1.75,
        fill: line.isFilled ? `${colourOf(line.colour)}22` : undefined,
        points: { show: true, size: 4, filter: lonePoints },
        paths: line.isStepped ? uPlot.paths.stepped?.({ align: 1 }) : undefined,
        value: (_plot: uPlot, value: number | null) => (value === null ? "–" : unit(value)),
      })),
    ],
  };
}

/** `columns`: times (seconds since 1970), then one column a line; null where nothing is known. `least`: the smallest
 * scale, so that a flat line lies at the bottom. */
export function Plot(
  { columns, lines, unit, height = 200, least, label }:
  {
    columns: (number | null)[][]; lines: Line[]; unit: (value: number) => string;
    height?: number; least: number; label: string;
  },
) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const data = columns as uPlot.AlignedData;
  const theme = shownTheme.value;
  useLayoutEffect(() => {
    const element = place.current;
    if (element === null) return undefined;
    const made = new uPlot(options(element.clientWidth, height, lines, unit, least), data, element);
    plot.current = made;
    const watch = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height }));
    watch.observe(element);
    return () => {
      watch.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [theme, lines.map((line) => line.label).join()]);
  useLayoutEffect(() => plot.current?.setData(data), [columns]);
  return <div class="plot" ref={place} role="img" aria-label={label} />;
}
