// The small things every page is made of.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { problemOf, type Problem } from "../api";
import { count } from "../format";

const ROWS_AT_ONCE = 100;

type Tone = "good" | "busy" | "calm" | "warn" | "bad";

/** One scale of colours for everything that has a state. */
const TONES: Record<string, Tone> = {
  ready: "good", trusted: "good", stop: "good", length: "good",
  downloading: "busy", loading: "busy", waiting: "busy", enrolling: "busy", running: "busy",
  idle: "calm", probation: "calm", gone: "calm", revoked: "calm", cancelled: "calm",
  draining: "warn", suspect: "warn", weak: "warn", incomplete: "bad",
  lost: "bad", failed: "bad", quarantined: "bad", banned: "bad", deadline: "bad",
};

export function toneOf(state: string): Tone {
  return TONES[state] ?? "calm";
}

export function Chip({ state, title }: { state: string; title?: string }) {
  return <span class={`chip tone-${toneOf(state)}`} title={title}>{state}</span>;
}

export function Card(
  { title, actions, children, label }:
  { title?: ComponentChildren; actions?: ComponentChildren; children: ComponentChildren; label?: string },
) {
  return (
    <section class="card" aria-label={label}>
      {(title || actions) && (
        <header class="card-head">
          <h2>{title}</h2>
          {actions && <div class="actions">{actions}</div>}
        </header>
      )}
      {children}
    </section>
  );
}

export function PageHead({ title, children, back }: { title: string; children?: ComponentChildren; back?: string }) {
  return (
    <div class="page-head">
      {back && <a class="back" href={back} aria-label="Back">‹</a>}
      <h1>{title}</h1>
      <div class="actions">{children}</div>
    </div>
  );
}

export function Tile({ label, value, note }: { label: string; value: ComponentChildren; note?: ComponentChildren }) {
  return (
    <div class="tile">
      <div class="tile-label">{label}</div>
      <div class="tile-value">{value}</div>
      {note && <div class="tile-note">{note}</div>}
    </div>
  );
}

/** Where there is nothing yet: what to do next. */
export function Empty({ title, children }: { title: string; children?: ComponentChildren }) {
  return (
    <div class="empty">
      <p class="empty-title">{title}</p>
      {children && <div class="empty-next">{children}</div>}
    </div>
  );
}

export function Command({ children }: { children: string }) {
  return <code class="command">{children}</code>;
}

export function ProblemBox({ problem, retry }: { problem: Problem; retry?: () => void }) {
  return (
    <div class="notice notice-bad" role="alert">
      <span>{problem.message}</span>
      {retry && <button class="quiet" onClick={retry}>Try again</button>}
    </div>
  );
}

export function Notice({ tone = "busy", children }: { tone?: Tone; children: ComponentChildren }) {
  return <div class={`notice notice-${tone}`}>{children}</div>;
}

/** A button that does something which takes a moment and can fail; what went wrong stands beside it. */
export function ActButton(
  { act, children, kind = "quiet", label, disabled }:
  { act: () => Promise<unknown>; children: ComponentChildren; kind?: string; label?: string; disabled?: boolean },
) {
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const press = async () => {
    setBusy(true);
    setProblem(null);
    try {
      await act();
    } catch (error) {
      setProblem(problemOf(error));
    } finally {
      setBusy(false);
    }
  };
  return (
    <>
      <button class={kind} disabled={isBusy || disabled === true} aria-busy={isBusy} aria-label={label} onClick={press}>
        {children}
      </button>
      {problem && <span class="beside-problem" role="alert">{problem.message}</span>}
    </>
  );
}

export function Meter({ share, label, state }: { share: number; label: string; state?: string }) {
  const width = `${Math.min(100, Math.max(0, share * 100))}%`;
  return (
    <div class="meter" role="meter" aria-label={label} aria-valuemin={0} aria-valuemax={100}
      aria-valuenow={Math.round(share * 100)}>
      <div class={`meter-fill tone-${toneOf(state ?? "downloading")}`} style={{ width }} />
    </div>
  );
}

export function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd>{value}</dd>
        </div>
      ))}
    </dl>
  );
}

export function Field(
  { label, hint, children }: { label: string; hint?: string; children: ComponentChildren },
) {
  return (
    <label class="field">
      <span class="field-label">{label}</span>
      {children}
      {hint && <span class="field-hint">{hint}</span>}
    </label>
  );
}

/** Of a list that may be long: the first of them, and a button that shows more. A thousand rows at once stop the page. */
export function useFirst<Row>(rows: readonly Row[]): [readonly Row[], ComponentChildren] {
  const [n, setN] = useState(ROWS_AT_ONCE);
  const rest = rows.length - n;
  const more = rest > 0 && (
    <button class="quiet" onClick={() => setN(n + ROWS_AT_ONCE)}>Show {count(Math.min(rest, ROWS_AT_ONCE))} more of {count(rest)}</button>
  );
  return [rest > 0 ? rows.slice(0, n) : rows, more];
}

/** Columns with names; on a phone each row becomes a small card of named values. */
export function Table<Row>(
  { columns, rows, rowKey, label }:
  {
    columns: { name: string; cell: (row: Row) => ComponentChildren; isNumber?: boolean }[];
    rows: readonly Row[]; rowKey: (row: Row) => string; label: string;
  },
) {
  const [shown, more] = useFirst(rows);
  return (
    <div class="table-frame">
      <table aria-label={label}>
        <thead>
          <tr>{columns.map(({ name, isNumber }) => <th key={name} scope="col" class={isNumber ? "number" : ""}>{name}</th>)}</tr>
        </thead>
        <tbody>
          {shown.map((row) => (
            <tr key={rowKey(row)}>
              {columns.map(({ name, cell, isNumber }) => (
                <td key={name} data-name={name} class={isNumber ? "number" : ""}>{cell(row)}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      {more}
    </div>
  );
}
