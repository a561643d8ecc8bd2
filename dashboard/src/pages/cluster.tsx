// The whole cluster on one page: what it can do now, and which worker holds what.
import { bytes, count, figure, plural } from "../format";
import { link } from "../router";
import { hour, lastMinute } from "../state/history";
import { cluster, generations, models, workerList, workers } from "../state/live";
import { wayThrough } from "../state/routes";
import type { ModelInfo } from "../types";
import { Bands } from "../ui/bands";
import { Card, Chip, Command, Empty, Notice, PageHead, Tile } from "../ui/basics";
import { Fleet } from "../ui/fleet";
import { Ring } from "../ui/ring";
import { Sparkline } from "../ui/sparkline";

const SPARK_POINTS = 120;

function Totals() {
  const now = cluster.value;
  if (now === null) return null;
  const rate = lastMinute(hour.value, "tokens_out_per_s");
  const spark = hour.value?.series.tokens_out_per_s?.slice(-SPARK_POINTS) ?? [];
  return (
    <div class="tiles">
      <Tile label="Workers ready" value={<>{count(now.n_workers_ready)}<small> of {count(now.n_workers)}</small></>} />
      <Tile label="Models ready" value={<>{now.n_models_ready}<small> of {models.value.size}</small></>} />
      <Tile label="Running generations" value={count(now.n_generations)}
        note={now.n_waiting > 0 ? `${plural(now.n_waiting, "request")} waiting for a route` : "nobody waits"} />
      <Tile label="Tokens per second" value={rate === null ? "–" : figure(rate)}
        note={spark.length > 1 ? <Sparkline values={spark} label="Tokens per second of the last minutes" /> : "answers of the last minute"} />
    </div>
  );
}

function Notices() {
  const now = cluster.value;
  if (now === null) return null;
  return (
    <>
      {now.database_problem && <Notice tone="bad">{now.database_problem}</Notice>}
      {now.moving && <Notice>{now.moving}</Notice>}
      {now.audits && <Notice tone="warn">{now.audits}</Notice>}
    </>
  );
}

function ModelCard({ model }: { model: ModelInfo }) {
  const way = wayThrough(model, workerList.value, generations.value.values());
  return (
    <Card label={`Model ${model.name}`} title={<a href={link("models")}>{model.name}</a>} actions={<Chip state={model.state} />}>
      <p class="muted small">
        {model.architecture} · {plural(model.n_blocks, "block")} · {bytes(model.size_bytes)} ·
        context {count(model.context_length)} · {plural(model.n_replicas, "replica")} wanted
      </p>
      {model.reason && <Notice tone={model.state === "ready" ? "warn" : model.state === "waiting" ? "busy" : "bad"}>{model.reason}</Notice>}
      <Bands model={model} workers={workerList.value} />
      {way === null
        ? <p class="muted small">No way through all blocks yet: there is no ring to show.</p>
        : <Ring way={way} model={model.name} />}
    </Card>
  );
}

export function ClusterPage() {
  const all = workerList.value;
  return (
    <>
      <PageHead title="Cluster" />
      <Notices />
      <Totals />
      {workers.value.size === 0 && (
        <Card>
          <Empty title="No worker has joined yet.">
            On each machine that is to help, run <Command>{`worker join ${cluster.value?.url ?? "URL"} --secret-file FILE`}</Command>.
            The join secret lies in the coordinator's state folder.
          </Empty>
        </Card>
      )}
      {models.value.size === 0 && (
        <Card>
          <Empty title="There is no model yet.">
            Add one on the coordinator's machine: <Command>coord model add NAME SOURCE</Command>
          </Empty>
        </Card>
      )}
      {[...models.value.values()].map((model) => <ModelCard key={model.name} model={model} />)}
      {all.length > 24 && <Card title="All workers" label="All workers"><Fleet workers={all} /></Card>}
    </>
  );
}
