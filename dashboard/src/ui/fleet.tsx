// All workers at a glance, one square each: drawn on a canvas, since a thousand elements would be slow.
import { useLayoutEffect, useRef } from "preact/hooks";
import { plural } from "../format";
import { go } from "../router";
import { shownTheme } from "../state/theme";
import type { LiveWorker } from "../types";
import { toneOf } from "./basics";

const SQUARE = 13;
const GAP = 3;
const STEP = SQUARE + GAP;

function draw(canvas: HTMLCanvasElement, workers: LiveWorker[], width: number): void {
  const n_columns = Math.max(1, Math.floor((width + GAP) / STEP));
  const height = Math.max(1, Math.ceil(workers.length / n_columns) * STEP - GAP);
  const scale = devicePixelRatio;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
  }
  const brush = canvas.getContext("2d");
  if (brush === null) return;
  const page = getComputedStyle(document.documentElement);
  const colours = new Map<string, string>();
  brush.setTransform(scale, 0, 0, scale, 0, 0);
  brush.clearRect(0, 0, width, height);
  workers.forEach((worker, index) => {
    const tone = toneOf(worker.state);
    const colour = colours.get(tone) ?? page.getPropertyValue(`--${tone}`).trim();
    colours.set(tone, colour);
    brush.fillStyle = colour;
    brush.beginPath();
    brush.roundRect((index % n_columns) * STEP, Math.floor(index / n_columns) * STEP, SQUARE, SQUARE, 3);
    brush.fill();
  });
}

function summary(workers: LiveWorker[]): string {
  const n_of = new Map<string, number>();
  for (const { state } of workers) n_of.set(state, (n_of.get(state) ?? 0) + 1);
  return [...n_of].map(([state, n]) => `${n} ${state}`).join(", ");
}

export function Fleet({ workers }: { workers: LiveWorker[] }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const shown = useRef(workers);
  shown.current = workers;
  const theme = shownTheme.value;
  const words = summary(workers);
  const tones = workers.map((worker) => toneOf(worker.state)).join();
  useLayoutEffect(() => {
    const element = canvas.current;
    if (element !== null) draw(element, workers, element.clientWidth);
  }, [tones, theme]); // most changes are of numbers, which no square shows
  useLayoutEffect(() => {
    const element = canvas.current;
    if (element === null) return undefined;
    const watch = new ResizeObserver(() => draw(element, shown.current, element.clientWidth));
    watch.observe(element);
    return () => watch.disconnect();
  }, []);
  const under = (event: MouseEvent): LiveWorker | undefined => {
    const n_columns = Math.max(1, Math.floor(((canvas.current?.clientWidth ?? 0) + GAP) / STEP));
    return workers[Math.floor(event.offsetY / STEP) * n_columns + Math.floor(event.offsetX / STEP)];
  };
  return (
    <figure class="fleet">
      <canvas ref={canvas} role="img" aria-label={`${plural(workers.length, "worker")}: ${words}`}
        onClick={(event) => {
          const worker = under(event);
          if (worker) go("workers", worker.worker_id);
        }}
        onMouseMove={(event) => {
          const worker = under(event);
          if (canvas.current) canvas.current.title = worker ? `${worker.hostname}: ${worker.state}` : "";
        }} />
      <figcaption class="muted small">{words}</figcaption>
    </figure>
  );
}
