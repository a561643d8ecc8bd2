// One worker: its state and what comes next, trust and load over time, its links, and what an operator can do.
import { ask, get } from "../api";
import { bytes, count, seconds } from "../format";
import { link } from "../router";
import { columnsOf } from "../state/history";
import { workerNames, workers } from "../state/live";
import { useLoaded, type Loaded } from "../state/loading";
import type { History, LiveWorker, TrustHistory } from "../types";
import { Card, Chip, Empty, Facts, Meter, Notice, PageHead, ProblemBox, Table } from "../ui/basics";
import { Plot } from "../ui/plot";
import { WorkerActs } from "../ui/worker_acts";

const BASE = "/admin/v1/workers/";
/** So much of the time before the first event is shown, so that one sees what it changed. */
const BEFORE_S = 120;

function Spans({ worker }: { worker: LiveWorker }) {
  if (worker.spans.length === 0) {
    return <Empty title="It holds no blocks."><a href={link("plan")}>The plan</a> says why, and what would change that.</Empty>;
  }
  return (
    <ul class="spans">
      {worker.spans.map((span) => (
        <li key={`${span.model}-${span.blocks.start}-${span.state}`}>
          <span><b>{span.model}</b> blocks {span.blocks.start}–{span.blocks.end - 1}{span.quantization ? `, ${span.quantization}` : ""}</span>
          <Chip state={span.state} />
          {span.state !== "ready" && <Meter share={span.progress} label={`${span.state} of ${span.model}`} state={span.state} />}
          {(span.reason || span.note) && <small class="muted">{[span.reason, span.note].filter(Boolean).join("; ")}</small>}
        </li>
      ))}
    </ul>
  );
}

function Links({ worker }: { worker: LiveWorker }) {
  const rows = Object.entries(worker.round_trips_s);
  if (rows.length === 0) return <p class="muted small">No connections to other workers now.</p>;
  return (
    <Table label="Links to other workers" rows={rows} rowKey={([id]) => id} columns={[
      { name: "To", cell: ([id]) => <a href={link("workers", id)}>{workerNames.value.get(id) ?? id.slice(0, 8)}</a> },
      { name: "Round trip", isNumber: true, cell: ([, s]) => seconds(s) },
      { name: "Lets through", isNumber: true, cell: ([id]) => {
        const rate = worker.links[id]?.bytes_per_s ?? 0;
        return rate > 0 ? `${bytes(rate)}/s` : "not measured";
      } },
    ]} />
  );
}

/** Its score as events changed it; while there are none, as it was over the last hour. */
function trustColumns(found: TrustHistory, hour: History | null): (number | null)[][] {
  if (found.events.length === 0 && hour !== null) return columnsOf(hour, ["trust"]);
  const events = [...found.events].reverse();
  const times = events.map((event) => Date.parse(event.at) / 1000);
  const first = events[0];
  const before = first === undefined ? [] : [(times[0] ?? 0) - BEFORE_S];
  return [
    [...before, ...times, Date.now() / 1000],
    [...(first === undefined ? [] : [first.score_before]), ...events.map((event) => event.score_after), found.trust.score],
  ];
}

function Trust({ id, found }: { id: string; found: Loaded<TrustHistory> }) {
  const { answer, problem, reload } = found;
  const hour = useLoaded(`trust-hour-${id}`, () => get<History>(`/dashboard/history/workers/${encodeURIComponent(id)}`, { span: "hour" }));
  if (problem) return <ProblemBox problem={problem} retry={reload} />;
  if (answer === null) return null;
  return (
    <>
      {answer.trust.reason && <p>{answer.trust.reason}</p>}
      <Plot label="Trust over time" columns={trustColumns(answer, hour.answer)} least={1} height={150}
        unit={(value) => value.toFixed(2)} lines={[{ label: "trust", colour: "plot-1", isStepped: true }]} />
      <ul class="events">
        {answer.events.slice(0, 8).map((event) => (
          <li key={`${event.at}-${event.kind}`}>
            <time dateTime={event.at}>{new Date(event.at).toLocaleString()}</time>
            <span><b>{event.kind}</b> {event.reason} <small class="muted">{event.score_before.toFixed(2)} → {event.score_after.toFixed(2)}, by {event.reporter}</small></span>
          </li>
        ))}
      </ul>
    </>
  );
}

function Load({ id }: { id: string }) {
  const { answer, problem, reload } = useLoaded(`load-${id}`, () => get<History>(`/dashboard/history/workers/${encodeURIComponent(id)}`, { span: "hour" }));
  if (problem?.code === "not_found") return <Empty title="Nothing was measured of it in the last day." />;
  if (problem) return <ProblemBox problem={problem} retry={reload} />;
  if (answer === null) return null;
  return (
    <>
      <Plot label="Sessions over the last hour" least={4} height={150} unit={(value) => String(Math.round(value * 10) / 10)}
        columns={columnsOf(answer, ["n_sessions", "n_queued"])}
        lines={[{ label: "sessions", colour: "plot-1", isFilled: true }, { label: "waiting", colour: "plot-3" }]} />
      <Plot label="Time of a token here over the last hour" least={0.001} height={150} unit={seconds}
        columns={columnsOf(answer, ["hop_p50_s"])} lines={[{ label: "a token here", colour: "plot-2" }]} />
    </>
  );
}

export function WorkerPage({ id }: { id: string }) {
  const worker = workers.value.get(id);
  const trust = useLoaded(`trust-${id}-${worker?.trust}-${worker?.trust_level}`, () => get<TrustHistory>(`${BASE}${encodeURIComponent(id)}/trust`));
  const act = (method: string, path: string, body?: unknown) =>
    ask(method, `${BASE}${encodeURIComponent(id)}${path}`, body).then(trust.reload);
  if (worker === undefined) {
    return (
      <>
        <PageHead title="Worker" back={link("workers")} />
        <section class="card"><Empty title="There is no such worker any more.">It was removed, or forgotten after it had been away for long.</Empty></section>
      </>
    );
  }
  const name = workerNames.value.get(id) ?? id;
  return (
    <>
      <PageHead title={name} back={link("workers")}><Chip state={worker.state} /></PageHead>
      {worker.reason && <Notice tone={worker.state === "ready" ? "calm" : "warn"}>{worker.reason}</Notice>}
      <WorkerActs worker={worker} name={name} isPinned={trust.answer?.trust.pinned != null} ask={act} />
      <div class="stacks">
        <div>
          <Card title="What it holds"><Spans worker={worker} /></Card>
          <Card title={<>Trust {worker.trust.toFixed(2)} <Chip state={worker.trust_level} /></>} label="Trust"><Trust id={id} found={trust} /></Card>
          <Card title="Links"><Links worker={worker} /></Card>
        </div>
        <div>
          <Card title="About it">
            <Facts facts={[
              ["Id", <code class="id">{id}</code>],
              ["Address", worker.url || "–"],
              ["Device", `${worker.device || "–"}, ${worker.precision || "–"}`],
              ["Memory for weights and caches", bytes(worker.memory_bytes)],
              ["Free for caches", bytes(worker.free_kv_bytes)],
              ["Sessions", `${count(worker.n_sessions)}, ${count(worker.n_queued)} waiting`],
              ["One token in one block", worker.decode_s_per_block > 0 ? seconds(worker.decode_s_per_block) : "not measured yet"],
              ["One token here", worker.hop_p50_s > 0 ? `${seconds(worker.hop_p50_s)} in the middle, ${seconds(worker.hop_p99_s)} at worst` : "not measured yet"],
              ["Pinned", worker.pinned || "no"],
              ["Version", worker.version || "–"],
            ]} />
          </Card>
          <Card title="Load of the last hour"><Load id={id} /></Card>
        </div>
      </div>
    </>
  );
}
