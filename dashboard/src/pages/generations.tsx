// What runs now, over which workers, and what was over lately. Never what was said.
import { useEffect, useState } from "preact/hooks";
import { ask, get } from "../api";
import { ago, count, stamp } from "../format";
import { cluster, generations } from "../state/live";
import { useLoaded } from "../state/loading";
import type { Generation, Page } from "../types";
import { Card, Chip, Empty, PageHead, ProblemBox, Table } from "../ui/basics";
import { FormDialog } from "../ui/dialog";
import { Chain } from "../ui/ring";

const N_FINISHED = 50;

function tokens(one: Generation): string {
  const answer = one.n_completion_tokens === null ? `at most ${count(one.max_tokens)}` : count(one.n_completion_tokens);
  return `${count(one.n_prompt_tokens)} + ${answer}`;
}

function Cancel({ one }: { one: Generation }) {
  const [isAsked, setAsked] = useState(false);
  return (
    <>
      <button class="danger-quiet" onClick={() => setAsked(true)} aria-label={`Cancel ${one.session_id}`}>Cancel</button>
      {isAsked && (
        <FormDialog title="Cancel this generation" verb="Cancel it" isDanger close={() => setAsked(false)}
          act={() => ask("DELETE", `/admin/v1/generations/${one.session_id}`)}>
          <p>{one.key_name} gets no more of its answer, and is told that it was cancelled.</p>
        </FormDialog>
      )}
    </>
  );
}

function Running() {
  const running = [...generations.value.values()].sort((a, b) => b.started_at.localeCompare(a.started_at));
  const [, setNow] = useState(0);
  useEffect(() => {
    const clock = setInterval(() => setNow((turn) => turn + 1), 1000);
    return () => clearInterval(clock);
  }, []);
  if (running.length === 0) {
    return <Empty title="Nothing runs now.">Generations appear here as soon as a client asks for one.</Empty>;
  }
  const rest = (cluster.value?.n_generations ?? 0) - running.length;
  return (
    <>
      <Table label="Running generations" rows={running} rowKey={(one) => one.session_id} columns={[
        { name: "Model", cell: (one) => one.model },
        { name: "Key", cell: (one) => one.key_name },
        { name: "Since", cell: (one) => ago(one.started_at) },
        { name: "Tokens", isNumber: true, cell: tokens },
        { name: "Hops", cell: (one) => <Chain stages={one.hops} /> },
        { name: "", cell: (one) => <Cancel one={one} /> },
      ]} />
      {rest > 0 && <p class="muted small">and {count(rest)} older ones</p>}
    </>
  );
}

function Finished() {
  const { answer, problem, reload } = useLoaded("finished", () =>
    get<Page<"generations", Generation>>("/admin/v1/generations", { state: "finished", limit: N_FINISHED }));
  return (
    <Card title="Over lately" actions={<button class="quiet" onClick={reload}>Refresh</button>}>
      {problem && <ProblemBox problem={problem} retry={reload} />}
      {answer && (answer.generations.length === 0
        ? <Empty title="Nothing was generated yet." />
        : <Table label="Finished generations" rows={answer.generations} rowKey={(one) => one.session_id} columns={[
            { name: "Ended", cell: (one) => (one.finished_at ? stamp(one.finished_at) : "–") },
            { name: "Outcome", cell: (one) => <Chip state={one.outcome ?? "–"} /> },
            { name: "Model", cell: (one) => one.model },
            { name: "Key", cell: (one) => one.key_name },
            { name: "Tokens", isNumber: true, cell: tokens },
            { name: "Hops", isNumber: true, cell: (one) => one.hops.length },
          ]} />)}
      {answer?.next_cursor && <p class="muted small">the newest {count(N_FINISHED)}; `coord generation list` shows more</p>}
    </Card>
  );
}

export function GenerationsPage() {
  return (
    <>
      <PageHead title="Generations" />
      <Card title="Running now" label="Running now"><Running /></Card>
      <Finished />
    </>
  );
}
