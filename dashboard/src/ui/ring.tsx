// The ring of one model: stages in order, tokens back from the last to the first, and the round trips between them.
import { signal } from "@preact/signals";
import { range, seconds } from "../format";
import { link } from "../router";
import { workerNames, workers } from "../state/live";
import { roundTrip, type Stage, type Way } from "../state/routes";

interface Size { width: number; height: number; radiusX: number; radiusY: number; mostHops: number }

/** More hops than these are a list: names would lie on each other. */
const WIDE: Size = { width: 640, height: 300, radiusX: 215, radiusY: 105, mostHops: 6 };
const NARROW: Size = { width: 380, height: 300, radiusX: 120, radiusY: 115, mostHops: 4 };
const narrow = matchMedia("(max-width: 800px)");
const size = signal(narrow.matches ? NARROW : WIDE);
narrow.addEventListener("change", () => {
  size.value = narrow.matches ? NARROW : WIDE;
});

function place(index: number, n: number): { x: number; y: number } {
  const { width, height, radiusX, radiusY } = size.value;
  const angle = -Math.PI / 2 + (2 * Math.PI * index) / n;
  return { x: width / 2 + radiusX * Math.cos(angle), y: height / 2 + radiusY * Math.sin(angle) };
}

function nameOf(stage: Stage): string {
  return workerNames.value.get(stage.worker_id) ?? stage.worker_id.slice(0, 8);
}

function tripWords(from: Stage, to: Stage): string {
  const trip = roundTrip(workers.value, from.worker_id, to.worker_id);
  return trip === null ? "not measured" : seconds(trip);
}

function Edge({ stages, index }: { stages: Stage[]; index: number }) {
  const n = stages.length;
  const from = stages[index] as Stage;
  const to = stages[(index + 1) % n] as Stage;
  const start = place(index, n);
  const end = place(index + 1, n);
  const middle = place(index + 0.5, n);
  // the curve's control point, so that it goes through the middle, where its words are
  const bend = { x: 2 * middle.x - (start.x + end.x) / 2, y: 2 * middle.y - (start.y + end.y) / 2 };
  return (
    <g class={index === n - 1 ? "ring-edge ring-back" : "ring-edge"}>
      <path d={`M${start.x} ${start.y} Q${bend.x} ${bend.y} ${end.x} ${end.y}`} />
      <text x={middle.x} y={middle.y + 4} text-anchor="middle">{tripWords(from, to)}</text>
    </g>
  );
}

function Node({ stage, index, n }: { stage: Stage; index: number; n: number }) {
  const { x, y } = place(index, n);
  const state = workers.value.get(stage.worker_id)?.state ?? "gone";
  const name = nameOf(stage);
  return (
    <a href={link("workers", stage.worker_id)} aria-label={`${name}, ${range(stage.blocks)}, ${state}`}>
      <g class={`ring-node state-${state}`} transform={`translate(${x} ${y})`}>
        <rect x="-62" y="-21" width="124" height="42" rx="10" />
        <text class="ring-name" y="-2" text-anchor="middle">{name.length > 17 ? `${name.slice(0, 16)}…` : name}</text>
        <text class="ring-blocks" y="13" text-anchor="middle">{range(stage.blocks)}</text>
      </g>
    </a>
  );
}

export function Chain({ stages }: { stages: Stage[] }) {
  return (
    <ol class="chain">
      {stages.map((stage, index) => {
        const next = stages[index + 1];
        return (
          <li key={`${stage.worker_id}-${stage.blocks.start}`}>
            <a href={link("workers", stage.worker_id)} title={range(stage.blocks)}>
              {nameOf(stage)} <small>{stage.blocks.start}–{stage.blocks.end - 1}</small>
            </a>
            {next && <span class="chain-arrow" title="round trip"> → <small>{
              roundTrip(workers.value, stage.worker_id, next.worker_id) === null ? "" : tripWords(stage, next)
            }</small></span>}
          </li>
        );
      })}
    </ol>
  );
}

export function Ring({ way, model }: { way: Way; model: string }) {
  const { stages } = way;
  const words = way.isRunning ? "as a generation runs now" : "as ready workers allow";
  if (stages.length > size.value.mostHops) {
    return (
      <div class="ring">
        <p class="muted small">{stages.length} hops, {words}</p>
        <Chain stages={stages} />
      </div>
    );
  }
  return (
    <div class="ring">
      <p class="muted small">
        {stages.length === 1 ? "One worker runs all of it" : `The ring of ${stages.length} hops`}, {words}
        {stages.length > 1 && "; with round trips between workers"}
      </p>
      <svg viewBox={`0 0 ${size.value.width} ${stages.length === 1 ? 60 : size.value.height}`} role="group" aria-label={`Ring of ${model}`}>
        {stages.length > 1 && stages.map((_, index) => <Edge key={index} stages={stages} index={index} />)}
        {stages.length === 1
          ? <g transform={`translate(0 ${30 - place(0, 1).y})`}><Node stage={stages[0] as Stage} index={0} n={1} /></g>
          : stages.map((stage, index) => (
            <Node key={stage.worker_id + stage.blocks.start} stage={stage} index={index} n={stages.length} />
          ))}
      </svg>
    </div>
  );
}
