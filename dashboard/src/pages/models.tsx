// The models: whether they can be used, why not, and how far the workers have come with their files.
import { useState } from "preact/hooks";
import { ask } from "../api";
import { bytes, count, percent, plural, range } from "../format";
import { link } from "../router";
import { models, workerList, workerNames } from "../state/live";
import type { ModelInfo } from "../types";
import { holdersOf } from "../ui/bands";
import { Card, Chip, Command, Empty, Facts, Field, Meter, Notice, PageHead, useFirst } from "../ui/basics";
import { FormDialog } from "../ui/dialog";

function Downloads({ model }: { model: ModelInfo }) {
  const busy = holdersOf(model, workerList.value).flatMap(({ worker, spans }) =>
    spans.filter((span) => span.state !== "ready").map((span) => ({ worker, span })));
  const [shown, more] = useFirst(busy);
  if (busy.length === 0) return null;
  return (
    <ul class="spans" aria-label={`Under way for ${model.name}`}>
      {shown.map(({ worker, span }) => (
        <li key={`${worker.worker_id}-${span.blocks.start}`}>
          <span><a href={link("workers", worker.worker_id)}>{workerNames.value.get(worker.worker_id)}</a> {range(span.blocks)}</span>
          <Chip state={span.state} />
          <Meter share={span.progress} label={`${span.state} on ${worker.hostname}`} state={span.state} />
          <small class="muted">{percent(span.progress)}{span.reason ? `, ${span.reason}` : ""}</small>
        </li>
      ))}
      {more && <li>{more}</li>}
    </ul>
  );
}

function Replicas({ model, close }: { model: ModelInfo; close: () => void }) {
  const [n, setN] = useState(model.n_replicas);
  return (
    <FormDialog title={`Replicas of ${model.name}`} verb="Save" close={close}
      act={() => ask("PATCH", `/admin/v1/models/${model.name}`, { n_replicas: n })}>
      <Field label="Workers that are to hold each block" hint="More of them serve more people at once, and one may be lost.">
        <input type="number" min="1" max="1000" required value={n} onInput={(event) => setN(event.currentTarget.valueAsNumber)} />
      </Field>
    </FormDialog>
  );
}

function signedWords(model: ModelInfo): string {
  if (model.signed === null) return "no";
  return model.signed.author ? `by ${model.signed.author}, who is trusted` : `by ${model.signed.signer}, whom nobody here trusts`;
}

function ModelCard({ model }: { model: ModelInfo }) {
  const [asked, setAsked] = useState<"replicas" | "remove" | null>(null);
  const close = () => setAsked(null);
  return (
    <Card label={`Model ${model.name}`} title={<>{model.name} <Chip state={model.state} /></>} actions={<>
      <button class="quiet" onClick={() => setAsked("replicas")}>Replicas</button>
      <button class="danger-quiet" onClick={() => setAsked("remove")}>Remove</button>
    </>}>
      {model.reason && <Notice tone={model.state === "ready" ? "warn" : model.state === "waiting" ? "busy" : "bad"}>{model.reason}</Notice>}
      <Downloads model={model} />
      <Facts facts={[
        ["Architecture", model.architecture],
        ["Blocks", count(model.n_blocks)],
        ["Size", bytes(model.size_bytes)],
        ["Context", plural(model.context_length, "token")],
        ["Wanted", `${plural(model.n_replicas, "worker")} for each block`],
        ["Chat template", model.is_chat ? "yes" : "no"],
        ["Signed", signedWords(model)],
        ["Revision", <code class="id">{model.revision.slice(0, 16)}</code>],
      ]} />
      {asked === "replicas" && <Replicas model={model} close={close} />}
      {asked === "remove" && (
        <FormDialog title={`Remove ${model.name}`} verb="Remove" isDanger close={close}
          act={() => ask("DELETE", `/admin/v1/models/${model.name}`)}>
          <p>It is served no more, and workers drop its blocks. Its files stay in the coordinator's store.</p>
        </FormDialog>
      )}
    </Card>
  );
}

export function ModelsPage() {
  const all = [...models.value.values()];
  return (
    <>
      <PageHead title="Models" />
      {all.length === 0 && (
        <Card><Empty title="There is no model yet.">
          Add one on the coordinator's machine: <Command>coord model add NAME SOURCE</Command>
          SOURCE is a folder of safetensors, a GGUF file, or a name on the Hub.
        </Empty></Card>
      )}
      {all.map((model) => <ModelCard key={model.name} model={model} />)}
    </>
  );
}
