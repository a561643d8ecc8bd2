// Which worker holds which blocks of a model: one band for all of it, then a row for each worker.
import { percent, plural, range } from "../format";
import { link } from "../router";
import { workerNames } from "../state/live";
import type { LiveWorker, ModelInfo, SpanStatus } from "../types";
import { VirtualList } from "./virtual";

const ROW_HEIGHT = 30;
const MAX_TICKS = 8;

interface Holder { worker: LiveWorker; spans: SpanStatus[] }

/** By where they begin; those of one place stay in the order of `workers`. */
export function holdersOf(model: ModelInfo, workers: Iterable<LiveWorker>): Holder[] {
  const found: Holder[] = [];
  for (const worker of workers) {
    const spans = worker.spans.filter((span) => span.model === model.name);
    if (spans.length > 0) found.push({ worker, spans });
  }
  const start = (holder: Holder) => holder.spans[0]?.blocks.start ?? 0;
  return found.sort((a, b) => start(a) - start(b));
}

/** Nobody holds it, fewer than wanted do, or enough. */
function coverageTone(n_workers: number, model: ModelInfo): string {
  return n_workers === 0 ? "bad" : n_workers < model.n_replicas ? "warn" : "good";
}

function Coverage({ model }: { model: ModelInfo }) {
  const gaps = model.coverage.filter((run) => run.n_workers === 0);
  const words = gaps.length === 0
    ? `all ${plural(model.n_blocks, "block")} are served`
    : `nobody serves ${gaps.map((gap) => range(gap.blocks)).join(", ")}`;
  return (
    <div class="coverage" role="img" aria-label={`${model.name}: ${words}`}>
      {model.coverage.map(({ blocks, n_workers }) => (
        <div key={blocks.start} class={`coverage-run cover-${coverageTone(n_workers, model)}`}
          title={`${range(blocks)}: ${n_workers === 0 ? `nobody. ${model.reason}` : plural(n_workers, "worker")}`}
          style={{ left: share(blocks.start, model), width: share(blocks.end - blocks.start, model) }}>
          <span>{n_workers === 0 ? "gap" : `×${n_workers}`}</span>
        </div>
      ))}
    </div>
  );
}

function share(n_blocks: number, model: ModelInfo): string {
  return `${(100 * n_blocks) / model.n_blocks}%`;
}

function Axis({ model }: { model: ModelInfo }) {
  const step = Math.max(1, Math.ceil(model.n_blocks / MAX_TICKS));
  const ticks: number[] = [];
  for (let at = 0; at < model.n_blocks; at += step) ticks.push(at);
  return (
    <div class="band-axis" aria-hidden="true">
      {ticks.map((at) => <span key={at} style={{ left: share(at, model) }}>{at}</span>)}
    </div>
  );
}

function Bar({ span, model, worker }: { span: SpanStatus; model: ModelInfo; worker: LiveWorker }) {
  const isHeardOf = worker.state !== "lost" && worker.state !== "gone" && worker.state !== "quarantined";
  const state = isHeardOf && worker.state !== "suspect" && worker.state !== "draining" ? span.state : worker.state;
  const isUnderWay = span.state === "downloading" || span.state === "loading";
  return (
    <div class={`bar state-${state}`} title={`${range(span.blocks)}: ${span.state}${span.reason ? `. ${span.reason}` : ""}`}
      style={{ left: share(span.blocks.start, model), width: share(span.blocks.end - span.blocks.start, model) }}>
      {isUnderWay && <div class="bar-progress" style={{ width: `${100 * span.progress}%` }} />}
    </div>
  );
}

function detail({ worker, spans }: Holder): string {
  if (worker.state === "downloading" || worker.state === "loading") {
    const busy = spans.find((span) => span.state === worker.state);
    return busy ? `${busy.state} ${percent(busy.progress)}` : worker.state;
  }
  if (worker.state !== "ready") return worker.state;
  return worker.n_sessions > 0 ? plural(worker.n_sessions, "session") : "ready";
}

function HolderRow({ holder, model }: { holder: Holder; model: ModelInfo }) {
  const { worker, spans } = holder;
  const name = workerNames.value.get(worker.worker_id) ?? worker.hostname;
  const held = spans.map((span) => range(span.blocks)).join(", ");
  return (
    <a class="band-row" href={link("workers", worker.worker_id)} aria-label={`${name}: ${held}, ${worker.state}`}>
      <span class="band-name">{name}</span>
      <span class="band-lane">{spans.map((span) => <Bar key={`${span.blocks.start}-${span.state}`} span={span} model={model} worker={worker} />)}</span>
      <span class="band-detail">{detail(holder)}</span>
    </a>
  );
}

export function Bands({ model, workers }: { model: ModelInfo; workers: Iterable<LiveWorker> }) {
  const holders = holdersOf(model, workers);
  return (
    <div class="bands">
      <div class="band-row band-top">
        <span class="band-name muted">all together</span>
        <span class="band-lane"><Coverage model={model} /></span>
        <span class="band-detail muted">{plural(holders.length, "worker")}</span>
      </div>
      <VirtualList n={holders.length} rowHeight={ROW_HEIGHT} maxHeight={390} label={`Workers that hold ${model.name}`}
        rowKey={(index) => holders[index]?.worker.worker_id ?? ""}
        row={(index) => <HolderRow holder={holders[index] as Holder} model={model} />} />
      <div class="band-row band-foot" aria-hidden="true"><span /><span class="band-lane"><Axis model={model} /></span><span /></div>
    </div>
  );
}
