// Which way generations take through a model: as one that runs does, else as the ready spans allow.
import type { BlockRange, Generation, LiveWorker, ModelInfo } from "../types";

export interface Stage { worker_id: string; blocks: BlockRange }

export interface Way { stages: Stage[]; isRunning: boolean }

/** From each block on, the ready span that reaches furthest; null if a block is held by nobody. */
function waySoFar(model: ModelInfo, workers: Iterable<LiveWorker>): Stage[] | null {
  const spans: Stage[] = [];
  for (const worker of workers) {
    if (worker.state !== "ready" && worker.state !== "draining") continue;
    for (const span of worker.spans) {
      if (span.model === model.name && span.state === "ready") {
        spans.push({ worker_id: worker.worker_id, blocks: span.blocks });
      }
    }
  }
  const stages: Stage[] = [];
  let at = 0;
  while (at < model.n_blocks) {
    let best: Stage | null = null;
    for (const span of spans) {
      const isOn = span.blocks.start <= at && span.blocks.end > at;
      if (isOn && (best === null || span.blocks.end > best.blocks.end)) best = span;
    }
    if (best === null) return null;
    stages.push({ worker_id: best.worker_id, blocks: { start: at, end: best.blocks.end } });
    at = best.blocks.end;
  }
  return stages;
}

export function wayThrough(
  model: ModelInfo, workers: Iterable<LiveWorker>, generations: Iterable<Generation>,
): Way | null {
  let newest: Generation | null = null;
  for (const one of generations) {
    if (one.model === model.name && (newest === null || one.started_at > newest.started_at)) newest = one;
  }
  if (newest !== null) return { stages: newest.hops, isRunning: true };
  const stages = waySoFar(model, workers);
  return stages === null ? null : { stages, isRunning: false };
}

/** As either of the two measured it last; null if they have no connection. */
export function roundTrip(workers: ReadonlyMap<string, LiveWorker>, from: string, to: string): number | null {
  return workers.get(from)?.round_trips_s[to] ?? workers.get(to)?.round_trips_s[from] ?? null;
}
