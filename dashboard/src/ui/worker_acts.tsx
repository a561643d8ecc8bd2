// What an operator can do about a worker; whatever costs somebody something is asked back first.
import { useState } from "preact/hooks";
import { go } from "../router";
import type { LiveWorker } from "../types";
import { ActButton, Field } from "./basics";
import { FormDialog } from "./dialog";

type Act = "drain" | "ban" | "pin" | "remove";
type Ask = (method: string, path: string, body?: unknown) => Promise<unknown>;

const WORDS: Record<Act, { title: string; verb: string; text: string; isDanger: boolean }> = {
  drain: {
    title: "Drain", verb: "Drain", isDanger: false,
    text: "It finishes what runs, others take its blocks over, and it leaves. Nothing is lost.",
  },
  ban: {
    title: "Ban", verb: "Ban", isDanger: true,
    text: "Its sessions end now, nothing is routed over it, and it may not come back until it is pardoned.",
  },
  pin: {
    title: "Pin the trust of", verb: "Pin trust", isDanger: false,
    text: "Its trust is this from now on, whatever is found out about it.",
  },
  remove: {
    title: "Remove", verb: "Remove", isDanger: true,
    text: "It is forgotten. One that is still there is told to leave first; remove it again once it has gone.",
  },
};

function sent(act: Act, ask: Ask, reason: string, score: number): Promise<unknown> {
  switch (act) {
    case "drain":
      return ask("POST", "/drain");
    case "ban":
      return ask("POST", "/trust", { action: "ban", reason });
    case "pin":
      return ask("POST", "/trust", { action: "pin", score, reason });
    case "remove":
      return ask("DELETE", "?force=true").then(() => go("workers"));
  }
}

export function WorkerActs(
  { worker, name, isPinned, ask }: { worker: LiveWorker; name: string; isPinned: boolean; ask: Ask },
) {
  const [act, setAct] = useState<Act | null>(null);
  const [reason, setReason] = useState("");
  const [score, setScore] = useState(1);
  const isBanned = worker.trust_level === "banned";
  const isLeaving = worker.state === "draining";
  const words = act === null ? null : WORDS[act];
  return (
    <div class="acts">
      {isLeaving
        ? <ActButton act={() => ask("POST", "/undrain")}>Keep it after all</ActButton>
        : worker.state !== "gone" && <button class="quiet" onClick={() => setAct("drain")}>Drain</button>}
      <button class="quiet" onClick={() => setAct("pin")}>Pin trust</button>
      {isPinned && <ActButton act={() => ask("POST", "/trust", { action: "unpin" })}>Unpin trust</ActButton>}
      {(isBanned || worker.trust_level === "quarantined") && (
        <ActButton kind="primary" act={() => ask("POST", "/trust", { action: "pardon" })}>Pardon</ActButton>
      )}
      {!isBanned && <button class="danger-quiet" onClick={() => setAct("ban")}>Ban</button>}
      <button class="danger-quiet" onClick={() => setAct("remove")}>Remove</button>
      {act !== null && words !== null && (
        <FormDialog title={`${words.title} ${name}`} verb={words.verb} isDanger={words.isDanger}
          close={() => setAct(null)} act={() => sent(act, ask, reason, score)}>
          <p>{words.text}</p>
          {act === "pin" && (
            <Field label="Trust" hint="0: not at all, 1: wholly">
              <input type="number" min="0" max="1" step="0.05" required value={score}
                onInput={(event) => setScore(event.currentTarget.valueAsNumber)} />
            </Field>
          )}
          {(act === "pin" || act === "ban") && (
            <Field label="Why" hint="Stands in the audit log">
              <input maxLength={500} value={reason} onInput={(event) => setReason(event.currentTarget.value)} />
            </Field>
          )}
        </FormDialog>
      )}
    </div>
  );
}
