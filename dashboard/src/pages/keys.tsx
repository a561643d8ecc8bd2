// API keys: who holds one, what it may use and uses, and making, changing and revoking them.
import { useState } from "preact/hooks";
import { ask, getAll } from "../api";
import { count, stamp } from "../format";
import { useLoaded } from "../state/loading";
import type { KeyInfo, KeyLimits, QuotaInfo, UsageDay } from "../types";
import { ActButton, Card, Chip, Empty, Field, Meter, PageHead, ProblemBox, Table } from "../ui/basics";
import { Dialog, FormDialog } from "../ui/dialog";
import { changeOf, LimitFields, limitsGiven, limitsWords, wordsOfLimits, type LimitWords } from "../ui/limits";

const KEYS = "/admin/v1/keys";

function ShownOnce({ secret, close }: { secret: string; close: () => void }) {
  const [isCopied, setCopied] = useState(false);
  const copy = () => navigator.clipboard.writeText(secret).then(() => setCopied(true));
  return (
    <Dialog title="Copy the key now" close={close}>
      <p>This is the only time that it is shown. The coordinator keeps nothing that it could be made from.</p>
      <code class="secret" tabIndex={0} aria-label="The new key">{secret}</code>
      <footer class="dialog-foot">
        <ActButton act={copy}>{isCopied ? "Copied" : "Copy"}</ActButton>
        <button class="primary" onClick={close}>I have it</button>
      </footer>
    </Dialog>
  );
}

function CreateKey({ close, made }: { close: () => void; made: (secret: string) => void }) {
  const [name, setName] = useState("");
  const [kind, setKind] = useState<"client" | "admin">("client");
  const [words, setWords] = useState<LimitWords>(wordsOfLimits({}));
  const create = async () => {
    const body = { name, kind, ...(kind === "client" ? { limits: limitsGiven(words) } : {}) };
    made((await ask<{ key: string }>("POST", KEYS, body)).key);
  };
  return (
    <FormDialog title="New key" verb="Create key" close={close} act={create}>
      <Field label="Name" hint="Says who holds it">
        <input required maxLength={100} value={name} onInput={(event) => setName(event.currentTarget.value)} />
      </Field>
      <Field label="Kind" hint={kind === "admin" ? "Whoever holds it may do all that you may do here." : "For whoever generates text."}>
        <select value={kind} onChange={(event) => setKind(event.currentTarget.value as "client" | "admin")}>
          <option value="client">client</option>
          <option value="admin">admin</option>
        </select>
      </Field>
      {kind === "client" && <LimitFields words={words} change={setWords} />}
    </FormDialog>
  );
}

function Limits({ one, close, done }: { one: KeyInfo; close: () => void; done: () => void }) {
  const [words, setWords] = useState<LimitWords>(wordsOfLimits(one.limits));
  const change = async () => {
    await ask("PATCH", `${KEYS}/${one.key_id}/limits`, changeOf(words));
    done();
  };
  return (
    <FormDialog title={`Limits of ${one.name}`} verb="Save limits" close={close} act={change}>
      <LimitFields words={words} change={setWords} />
    </FormDialog>
  );
}

type Question = "limits" | "rotate" | "revoke";

function KeyActs({ one, done, made }: { one: KeyInfo; done: () => void; made: (secret: string) => void }) {
  const [asked, setAsked] = useState<Question | null>(null);
  const close = () => setAsked(null);
  const rotate = async () => {
    made((await ask<{ key: string }>("POST", `${KEYS}/${one.key_id}/rotate`, { grace_s: 3600 })).key);
    done();
  };
  const revoke = () => ask("DELETE", `${KEYS}/${one.key_id}`).then(done);
  if (one.revoked_at !== null) return null;
  return (
    <span class="row-acts">
      {one.kind === "client" && <button class="quiet" aria-label={`Limits of ${one.name}`} onClick={() => setAsked("limits")}>Limits</button>}
      <button class="quiet" aria-label={`Rotate ${one.name}`} onClick={() => setAsked("rotate")}>Rotate</button>
      <button class="danger-quiet" aria-label={`Revoke ${one.name}`} onClick={() => setAsked("revoke")}>Revoke</button>
      {asked === "limits" && <Limits one={one} close={close} done={done} />}
      {asked === "rotate" && (
        <FormDialog title={`Rotate ${one.name}`} verb="Rotate" close={close} act={rotate}>
          <p>You get a new secret to hand on; the old one is good for one hour more.</p>
        </FormDialog>
      )}
      {asked === "revoke" && (
        <FormDialog title={`Revoke ${one.name}`} verb="Revoke" isDanger close={close} act={revoke}>
          <p>It is refused from now on, and what it generates ends at once. This can't be taken back.</p>
        </FormDialog>
      )}
    </span>
  );
}

function Used({ quota }: { quota: QuotaInfo | undefined }) {
  if (quota === undefined) return <span class="muted">not limited</span>;
  return (
    <div class="used">
      {quota.rates.map((rate) => (
        <div key={rate.limit_name}>
          <small>{rate.limit_name}: {count(rate.used)} of {count(rate.limit)}</small>
          <Meter share={rate.used / rate.limit} label={`${rate.limit_name} used`} state={rate.used >= rate.limit ? "failed" : "ready"} />
        </div>
      ))}
      {quota.n_running > 0 && <small>{count(quota.n_running)} running</small>}
    </div>
  );
}

function KeyTable({ made }: { made: (secret: string) => void }) {
  const [isAll, setAll] = useState(false);
  const { answer, problem, reload } = useLoaded(`keys-${isAll}`, async () => {
    const [keys, quotas] = await Promise.all([
      getAll<"keys", KeyInfo>("keys", KEYS, isAll ? {} : { is_revoked: "false" }),
      getAll<"quotas", QuotaInfo>("quotas", "/admin/v1/quotas"),
    ]);
    return { keys, quotas: new Map(quotas.map((quota) => [quota.key_id, quota])) };
  });
  return (
    <Card title="Keys" label="Keys" actions={
      <label class="check"><input type="checkbox" checked={isAll} onChange={() => setAll(!isAll)} /> revoked ones too</label>
    }>
      {problem && <ProblemBox problem={problem} retry={reload} />}
      {answer && <Table label="API keys" rows={answer.keys} rowKey={(one) => one.key_id} columns={[
        { name: "Name", cell: (one) => <><b>{one.name}</b><br /><code class="id">{one.key_id}</code></> },
        { name: "Kind", cell: (one) => (one.revoked_at ? <Chip state="revoked" /> : one.kind) },
        { name: "Since", cell: (one) => stamp(one.created_at) },
        { name: "Limits", cell: (one) => limitsWords(one.limits as KeyLimits) },
        { name: "Used now", cell: (one) => (one.kind === "client" ? <Used quota={answer.quotas.get(one.key_id)} /> : "–") },
        { name: "", cell: (one) => <KeyActs one={one} done={reload} made={(secret) => { made(secret); reload(); }} /> },
      ]} />}
    </Card>
  );
}

function Usage() {
  const { answer, problem, reload } = useLoaded("usage", () => getAll<"usage", UsageDay>("usage", "/admin/v1/usage", { days: 7 }));
  return (
    <Card title="Usage of the last seven days" label="Usage">
      {problem && <ProblemBox problem={problem} retry={reload} />}
      {answer && (answer.length === 0
        ? <Empty title="Nothing was used yet." />
        : <Table label="Usage by key and day" rows={answer} rowKey={(one) => `${one.key_id}-${one.day}`} columns={[
            { name: "Day", cell: (one) => one.day },
            { name: "Key", cell: (one) => one.name },
            { name: "Generations", isNumber: true, cell: (one) => count(one.n_generations) },
            { name: "Prompt tokens", isNumber: true, cell: (one) => count(one.n_prompt_tokens) },
            { name: "Answer tokens", isNumber: true, cell: (one) => count(one.n_completion_tokens) },
          ]} />)}
    </Card>
  );
}

export function KeysPage() {
  const [isCreating, setCreating] = useState(false);
  const [secret, setSecret] = useState("");
  const [turn, setTurn] = useState(0);
  return (
    <>
      <PageHead title="Keys and quotas"><button class="primary" onClick={() => setCreating(true)}>New key</button></PageHead>
      <KeyTable key={turn} made={setSecret} />
      <Usage />
      {isCreating && <CreateKey close={() => setCreating(false)} made={setSecret} />}
      {secret && <ShownOnce secret={secret} close={() => { setSecret(""); setTurn(turn + 1); }} />}
    </>
  );
}
