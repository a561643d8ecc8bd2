// Throughput and latency over the last hour or day, as the workers reported them.
import { useState } from "preact/hooks";
import { get } from "../api";
import { figure, seconds } from "../format";
import { columnsOf, hour } from "../state/history";
import { useLoaded } from "../state/loading";
import type { History } from "../types";
import { Card, Empty, PageHead, ProblemBox } from "../ui/basics";
import { Plot, type Line } from "../ui/plot";

interface Chart { title: string; note: string; series: string[]; lines: Line[]; unit: (value: number) => string; least: number }

const CHARTS: Chart[] = [
  {
    title: "Tokens per second", note: "Of generations that ended then: the coordinator isn't on the tokens' path.",
    series: ["tokens_out_per_s", "tokens_in_per_s"], unit: figure, least: 1,
    lines: [{ label: "answers", colour: "plot-1", isFilled: true }, { label: "prompts", colour: "plot-2" }],
  },
  {
    title: "Generations", note: "Those that run, and requests that wait for a route.",
    series: ["n_generations", "n_waiting"], unit: figure, least: 1,
    lines: [{ label: "running", colour: "plot-1", isFilled: true }, { label: "waiting", colour: "plot-3" }],
  },
  {
    title: "Time to the first token", note: "From the client's coming to the last worker, which measures it.",
    series: ["first_token_p50_s", "first_token_p95_s"], unit: seconds, least: 0.001,
    lines: [{ label: "middle", colour: "plot-1" }, { label: "slowest 5 %", colour: "plot-3" }],
  },
  {
    title: "Time of a token", note: "Of the tokens after the first. Workers before 1.2 don't say: theirs are with prompt and waiting.",
    series: ["token_p50_s", "token_p95_s"], unit: seconds, least: 0.001,
    lines: [{ label: "middle", colour: "plot-1" }, { label: "slowest 5 %", colour: "plot-3" }],
  },
  {
    title: "Time of a whole generation", note: "From its route to its end.",
    series: ["generation_p50_s", "generation_p95_s"], unit: seconds, least: 0.001,
    lines: [{ label: "middle", colour: "plot-1" }, { label: "slowest 5 %", colour: "plot-3" }],
  },
  {
    title: "Time of a token in one worker", note: "From its coming to its being handed on.",
    series: ["hop_p50_s", "hop_p99_s"], unit: seconds, least: 0.001,
    lines: [{ label: "middle", colour: "plot-1" }, { label: "slowest worker's slowest 1 %", colour: "plot-3" }],
  },
  {
    title: "Ended per minute", note: "All, and those that failed.",
    series: ["ended_per_min", "failed_per_min"], unit: figure, least: 1,
    lines: [{ label: "ended", colour: "plot-2" }, { label: "failed", colour: "plot-4" }],
  },
  {
    title: "Workers ready", note: "", series: ["n_workers_ready"], unit: figure, least: 1,
    lines: [{ label: "ready", colour: "plot-2", isFilled: true }],
  },
];

function ChartCard({ chart, history }: { chart: Chart; history: History }) {
  const columns = columnsOf(history, chart.series);
  const isEmpty = columns.slice(1).every((values) => values.every((value) => value === null));
  return (
    <Card title={chart.title} label={chart.title}>
      {isEmpty
        ? <Empty title="Nothing to measure yet." />
        : <Plot label={`${chart.title} over time`} columns={columns} lines={chart.lines} unit={chart.unit} least={chart.least} />}
      {chart.note && <p class="muted small">{chart.note}</p>}
    </Card>
  );
}

export function PlotsPage() {
  const [span, setSpan] = useState<"hour" | "day">("hour");
  const day = useLoaded(span, async () => (span === "day" ? get<History>("/dashboard/history", { span }) : null));
  const shown = span === "hour" ? hour.value : day.answer;
  return (
    <>
      <PageHead title="Throughput and latency">
        <div class="segments" role="group" aria-label="How far back">
          {(["hour", "day"] as const).map((one) => (
            <button key={one} aria-pressed={span === one} onClick={() => setSpan(one)}>Last {one}</button>
          ))}
        </div>
      </PageHead>
      {span === "day" && day.problem && <ProblemBox problem={day.problem} retry={day.reload} />}
      {shown && <div class="columns">{CHARTS.map((chart) => <ChartCard key={`${span}-${chart.title}`} chart={chart} history={shown} />)}</div>}
    </>
  );
}
