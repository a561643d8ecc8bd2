// All workers: who they are, how they do, and what is the matter with those that aren't ready.
import { useMemo, useState } from "preact/hooks";
import { bytes, count, figure, seconds } from "../format";
import { link } from "../router";
import { cluster, workerList, workerNames } from "../state/live";
import type { LiveWorker } from "../types";
import { Chip, Command, Empty, PageHead } from "../ui/basics";
import { VirtualList } from "../ui/virtual";

const ROW_HEIGHT = 58;

export function heldWords(worker: LiveWorker): string {
  if (worker.spans.length === 0) return "no blocks";
  return worker.spans.map((span) => `${span.model} ${span.blocks.start}–${span.blocks.end - 1}`).join(", ");
}

function WorkerRow({ worker }: { worker: LiveWorker }) {
  return (
    <a class="worker-row" href={link("workers", worker.worker_id)}>
      <span class="worker-who">
        <b>{workerNames.value.get(worker.worker_id)}</b>
        <small class="muted">{worker.reason || heldWords(worker)}</small>
      </span>
      <Chip state={worker.state} />
      <span class="worker-figure" title="Trust, 0 to 1"><small>trust</small>{worker.trust.toFixed(2)}</span>
      <span class="worker-figure" title="Sessions that run, and those that wait"><small>sessions</small>
        {count(worker.n_sessions)}{worker.n_queued > 0 ? ` +${worker.n_queued}` : ""}</span>
      <span class="worker-figure wide-only" title="One token in one block"><small>a block</small>{seconds(worker.decode_s_per_block)}</span>
      <span class="worker-figure wide-only" title="For weights and caches"><small>memory</small>{bytes(worker.memory_bytes)}</span>
    </a>
  );
}

export function WorkersPage() {
  const [words, setWords] = useState("");
  const [state, setState] = useState("");
  const all = workerList.value;
  const states = useMemo(() => [...new Set(all.map((worker) => worker.state))].sort(), [all]);
  const wanted = words.trim().toLowerCase();
  const shown = all.filter((worker) =>
    (state === "" || worker.state === state)
    && (wanted === "" || `${worker.hostname} ${worker.worker_id} ${heldWords(worker)} ${worker.owner ?? ""}`.toLowerCase().includes(wanted)));
  return (
    <>
      <PageHead title="Workers">
        <input type="search" placeholder="Name, id, model, owner" aria-label="Search workers" value={words}
          onInput={(event) => setWords(event.currentTarget.value)} />
        <select aria-label="State" value={state} onChange={(event) => setState(event.currentTarget.value)}>
          <option value="">any state</option>
          {states.map((one) => <option key={one}>{one}</option>)}
        </select>
      </PageHead>
      {all.length === 0
        ? <section class="card"><Empty title="No worker has joined yet.">
            On each machine that is to help, run <Command>{`worker join ${cluster.value?.url ?? "URL"} --secret-file FILE`}</Command>
          </Empty></section>
        : shown.length === 0
          ? <section class="card"><Empty title="No worker is like that.">Search for less, or for any state.</Empty></section>
          : <section class="card flush">
              <VirtualList n={shown.length} rowHeight={ROW_HEIGHT} maxHeight={Math.max(360, innerHeight - 190)} label="Workers"
                rowKey={(index) => shown[index]?.worker_id ?? ""} row={(index) => <WorkerRow worker={shown[index] as LiveWorker} />} />
            </section>}
      <p class="muted small">{figure(shown.length)} of {figure(all.length)} shown</p>
    </>
  );
}
