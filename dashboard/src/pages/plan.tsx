// What the planner would choose, why it leaves workers out, and what would follow from pinning one by hand.
import { useState } from "preact/hooks";
import { ask, get, problemOf, type Problem } from "../api";
import { bytes, figure, range, seconds } from "../format";
import { link } from "../router";
import { models, workerList, workerNames } from "../state/live";
import { useLoaded } from "../state/loading";
import type { AssignmentPreview, ModelledSpeed, PlanInfo } from "../types";
import { Card, Empty, Field, Notice, PageHead, ProblemBox, Table } from "../ui/basics";
import { FormDialog } from "../ui/dialog";

const PLAN = "/admin/v1/plan";
const PLACEMENTS = ["balance", "one-stream", "many-streams", "spread"];

function speedWords(speed: ModelledSpeed | null): string {
  if (speed === null) return "not all blocks are held";
  return `${figure(speed.one_stream_tokens_per_s)} tokens/s for one, ${figure(speed.many_streams_tokens_per_s)} for many`;
}

function Planned({ plan }: { plan: PlanInfo }) {
  return (
    <>
      {plan.models.map((one) => (
        <Card key={one.model} title={one.model} label={`Plan of ${one.model}`}>
          <p class="small">Planned: {speedWords(one.planned)}. Now: {speedWords(one.now)}.</p>
          {one.note && <Notice>{one.note}</Notice>}
          {one.spans.length === 0
            ? <Empty title="Nobody would hold it.">The workers have too little memory for it; below is why each is left out.</Empty>
            : <Table label={`Who would hold ${one.model}`} rows={one.spans} rowKey={(span) => `${span.worker_id}-${span.blocks.start}`} columns={[
                { name: "Worker", cell: (span) => <a href={link("workers", span.worker_id)}>{workerNames.value.get(span.worker_id) ?? span.hostname}</a> },
                { name: "Blocks", cell: (span) => range(span.blocks) },
                { name: "One token", isNumber: true, cell: (span) => seconds(span.stage_s) },
                { name: "", cell: (span) => [span.is_pinned && "pinned", span.quantization].filter(Boolean).join(", ") },
              ]} />}
        </Card>
      ))}
    </>
  );
}

function WhyNot({ plan }: { plan: PlanInfo }) {
  return (
    <Card title="Left out, and why" label="Left out">
      {plan.left_out.length === 0
        ? <p class="muted">Every worker has something to do.</p>
        : <Table label="Workers left out" rows={plan.left_out} rowKey={(one) => one.worker_id} columns={[
            { name: "Worker", cell: (one) => <a href={link("workers", one.worker_id)}>{workerNames.value.get(one.worker_id) ?? one.hostname}</a> },
            { name: "Why", cell: (one) => one.reason },
          ]} />}
    </Card>
  );
}

function Consequences({ found }: { found: AssignmentPreview }) {
  const held = (spans: { model: string; blocks: { start: number; end: number } }[]) =>
    spans.map((span) => `${span.model} ${range(span.blocks)}`).join(", ") || "nothing";
  return (
    <div aria-live="polite">
      {found.refusal && <Notice tone="bad">It can't be done: {found.refusal}</Notice>}
      {found.loses && <Notice tone="warn">{found.loses}</Notice>}
      <p class="small">It needs {bytes(found.needed_bytes)}; the worker has {bytes(found.capacity_bytes)} for blocks.</p>
      {found.models.map((one) => <p class="small" key={one.model}>{one.model} now: {speedWords(one.now)}. Then: {speedWords(one.then)}.</p>)}
      {found.changes.length > 0 && <Table label="What would change" rows={found.changes} rowKey={(one) => one.worker_id} columns={[
        { name: "Worker", cell: (one) => workerNames.value.get(one.worker_id) ?? one.hostname },
        { name: "Holds", cell: (one) => held(one.now) },
        { name: "Would hold", cell: (one) => held(one.then) },
      ]} />}
    </div>
  );
}

function Preview() {
  const [worker, setWorker] = useState("");
  const [model, setModel] = useState("");
  const [blocks, setBlocks] = useState("");
  const [found, setFound] = useState<AssignmentPreview | null>(null);
  const [problem, setProblem] = useState<Problem | null>(null);
  const names = [...models.value.keys()];
  const look = async (event: Event) => {
    event.preventDefault();
    setProblem(null);
    try {
      setFound(await ask("POST", "/admin/v1/assignments/preview", {
        worker: worker || workerList.value[0]?.worker_id, model: model || names[0], blocks,
      }));
    } catch (error) {
      setFound(null);
      setProblem(problemOf(error));
    }
  };
  if (names.length === 0 || workerList.value.length === 0) return null;
  return (
    <Card title="What if one worker were pinned to blocks?" label="Preview of a pin">
      <form class="inline-form" onSubmit={look}>
        <Field label="Worker">
          <select value={worker || workerList.value[0]?.worker_id} onChange={(event) => setWorker(event.currentTarget.value)}>
            {workerList.value.map((one) => <option key={one.worker_id} value={one.worker_id}>{workerNames.value.get(one.worker_id)}</option>)}
          </select>
        </Field>
        <Field label="Model">
          <select value={model || names[0]} onChange={(event) => setModel(event.currentTarget.value)}>
            {names.map((name) => <option key={name}>{name}</option>)}
          </select>
        </Field>
        <Field label="Blocks">
          <input required placeholder="0:10" pattern="\d+:\d+" title="start:end, half-open, such as 0:10" value={blocks}
            onInput={(event) => setBlocks(event.currentTarget.value)} />
        </Field>
        <button class="primary">Preview</button>
      </form>
      {problem && <ProblemBox problem={problem} />}
      {found && <Consequences found={found} />}
    </Card>
  );
}

export function PlanPage() {
  const [placement, setPlacement] = useState("");
  const [isAsked, setAsked] = useState(false);
  const { answer, problem, reload } = useLoaded(`plan-${placement}`, () => get<PlanInfo>(PLAN, { placement }));
  return (
    <>
      <PageHead title="Placement">
        <select aria-label="Placed for" value={placement} onChange={(event) => setPlacement(event.currentTarget.value)}>
          <option value="">as the coordinator has it</option>
          {PLACEMENTS.map((one) => <option key={one}>{one}</option>)}
        </select>
        <button class="quiet" onClick={reload}>Refresh</button>
        {placement === "" && <button class="primary" onClick={() => setAsked(true)}>Move to this</button>}
      </PageHead>
      {problem && <ProblemBox problem={problem} retry={reload} />}
      {answer?.outlook && <Notice>{answer.outlook}</Notice>}
      {answer && answer.models.length === 0 && <Card><Empty title="There is no model to place."><a href={link("models")}>Add one first.</a></Empty></Card>}
      {answer && <Planned plan={answer} />}
      {answer && <WhyNot plan={answer} />}
      <Preview />
      {isAsked && (
        <FormDialog title="Move to the plan" verb="Move" close={() => setAsked(false)} act={() => ask("POST", PLAN).then(reload)}>
          <p>Workers get their new blocks first and drop the old ones then: what runs goes on.</p>
        </FormDialog>
      )}
    </>
  );
}
