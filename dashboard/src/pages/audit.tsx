// Who did what, newest first.
import { useState } from "preact/hooks";
import { get } from "../api";
import { stamp } from "../format";
import { workerNames } from "../state/live";
import { useLoaded } from "../state/loading";
import type { AuditEntry, Page } from "../types";
import { Card, Empty, Field, PageHead, ProblemBox, Table } from "../ui/basics";

const N_LINES = 50;
const NO_FILTERS = { who: "", action: "", subject: "", since: "", until: "" };

function Changes({ entry }: { entry: AuditEntry }) {
  if (entry.before === null) return <>{entry.details}</>;
  const before = entry.before;
  const names = [...new Set([...Object.keys(before), ...Object.keys(entry.after ?? {})])];
  const shown = (value: unknown) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const changed = names.filter((name) => shown(before[name]) !== shown(entry.after?.[name]));
  return (
    <>
      {entry.details}
      {changed.map((name) => (
        <div key={name} class="change"><b>{name}</b> <del>{shown(before[name])}</del> → <ins>{shown(entry.after?.[name])}</ins></div>
      ))}
    </>
  );
}

/** A worker's name where it is known: its id is long. */
function Named({ id }: { id: string }) {
  const name = workerNames.value.get(id.replace(/^worker:/, ""));
  return name === undefined ? <code class="id" title={id}>{id.length > 20 ? `${id.slice(0, 16)}…` : id}</code> : <span title={id}>{name}</span>;
}

function utc(local: string): string {
  return local === "" ? "" : new Date(local).toISOString();
}

export function AuditPage() {
  const [filters, setFilters] = useState(NO_FILTERS);
  const [sent, setSent] = useState(NO_FILTERS);
  const [cursors, setCursors] = useState<string[]>([""]);
  const cursor = cursors[cursors.length - 1] ?? "";
  const { answer, problem, isLoading, reload } = useLoaded(JSON.stringify([sent, cursor]), () =>
    get<Page<"entries", AuditEntry>>("/admin/v1/audit", {
      ...sent, since: utc(sent.since), until: utc(sent.until), limit: N_LINES, cursor,
    }));
  const search = (event: Event) => {
    event.preventDefault();
    setSent({ ...filters });
    setCursors([""]);
    reload();
  };
  const field = (name: keyof typeof NO_FILTERS, label: string, more: object = {}) => (
    <Field label={label}>
      <input value={filters[name]} onInput={(event) => setFilters({ ...filters, [name]: event.currentTarget.value })} {...more} />
    </Field>
  );
  return (
    <>
      <PageHead title="Audit log" />
      <Card label="Audit log">
        <form class="inline-form" onSubmit={search}>
          {field("who", "Who", { placeholder: "key:ID, worker:ID, coordinator" })}
          {field("action", "Action")}
          {field("subject", "On what")}
          {field("since", "Since", { type: "datetime-local" })}
          {field("until", "Until", { type: "datetime-local" })}
          <button class="primary">Show</button>
        </form>
        {problem && <ProblemBox problem={problem} retry={reload} />}
        {answer && (answer.entries.length === 0
          ? <Empty title="Nothing like that was done.">Leave filters empty to see everything.</Empty>
          : <Table label="Audit log" rows={answer.entries} rowKey={(entry) => String(entry.entry_id)} columns={[
              { name: "When", cell: (entry) => <time dateTime={entry.at}>{stamp(entry.at)}</time> },
              { name: "Who", cell: (entry) => <Named id={entry.who} /> },
              { name: "Action", cell: (entry) => <b>{entry.action}</b> },
              { name: "On what", cell: (entry) => <Named id={entry.subject} /> },
              { name: "How", cell: (entry) => <Changes entry={entry} /> },
            ]} />)}
        <div class="pager">
          <button class="quiet" disabled={cursors.length === 1 || isLoading} onClick={() => setCursors(cursors.slice(0, -1))}>Newer</button>
          <span class="muted small">page {cursors.length}</span>
          <button class="quiet" disabled={!answer?.next_cursor || isLoading}
            onClick={() => answer?.next_cursor && setCursors([...cursors, answer.next_cursor])}>Older</button>
        </div>
      </Card>
    </>
  );
}
