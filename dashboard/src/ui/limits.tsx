// A key's limits as fields of a form; an empty field means no limit.
import { count } from "../format";
import type { KeyLimits, Priority } from "../types";
import { Field } from "./basics";

const NUMBERS = [
  ["requests_per_min", "Requests a minute"],
  ["tokens_per_min", "Tokens a minute"],
  ["tokens_per_day", "Tokens a day"],
  ["max_concurrent", "Generations at once"],
  ["max_context", "Longest context"],
] as const;

type NumberName = (typeof NUMBERS)[number][0];

/** What stands in the fields. */
export interface LimitWords { numbers: Record<NumberName, string>; priority: Priority; models: string; min_trust: string }

export function wordsOfLimits(limits: KeyLimits): LimitWords {
  const numbers = Object.fromEntries(NUMBERS.map(([name]) => [name, String(limits[name] ?? "")])) as LimitWords["numbers"];
  return {
    numbers, priority: limits.priority ?? "normal", models: (limits.models ?? []).join(", "),
    min_trust: String(limits.min_trust ?? ""),
  };
}

/** All fields; null takes a limit away. */
export function changeOf(words: LimitWords): Record<string, unknown> {
  const numbers = NUMBERS.map(([name]) => [name, words.numbers[name] === "" ? null : Number(words.numbers[name])]);
  const models = words.models.split(",").map((name) => name.trim()).filter(Boolean);
  return {
    ...Object.fromEntries(numbers),
    priority: words.priority,
    models: models.length === 0 ? null : models,
    min_trust: words.min_trust === "" ? null : Number(words.min_trust),
  };
}

/** Of a new key: only what is limited, so that the cluster's defaults count for the rest. */
export function limitsGiven(words: LimitWords): Record<string, unknown> {
  return Object.fromEntries(Object.entries(changeOf(words)).filter(([, value]) => value !== null));
}

export function limitsWords(limits: KeyLimits): string {
  const said = NUMBERS.flatMap(([name, label]) => {
    const value = limits[name];
    return value === null || value === undefined ? [] : [`${count(value)} ${label.toLowerCase()}`];
  });
  if (limits.priority && limits.priority !== "normal") said.push(`${limits.priority} priority`);
  if (limits.models) said.push(`only ${limits.models.join(", ")}`);
  if (limits.min_trust) said.push(`trust ${limits.min_trust} and more`);
  if (limits.pinned_ends) said.push("ends on pinned workers");
  return said.join(", ") || "none";
}

export function LimitFields({ words, change }: { words: LimitWords; change: (words: LimitWords) => void }) {
  return (
    <fieldset>
      <legend>Limits <small class="muted">empty: none of this kind</small></legend>
      <div class="field-grid">
        {NUMBERS.map(([name, label]) => (
          <Field key={name} label={label}>
            <input type="number" min="1" step="1" value={words.numbers[name]}
              onInput={(event) => change({ ...words, numbers: { ...words.numbers, [name]: event.currentTarget.value } })} />
          </Field>
        ))}
        <Field label="Least trust of workers">
          <input type="number" min="0" max="1" step="0.05" value={words.min_trust}
            onInput={(event) => change({ ...words, min_trust: event.currentTarget.value })} />
        </Field>
        <Field label="Priority">
          <select value={words.priority} onChange={(event) => change({ ...words, priority: event.currentTarget.value as Priority })}>
            {["high", "normal", "low"].map((one) => <option key={one}>{one}</option>)}
          </select>
        </Field>
        <Field label="Only these models" hint="Names, with commas between">
          <input value={words.models} onInput={(event) => change({ ...words, models: event.currentTarget.value })} />
        </Field>
      </div>
    </fieldset>
  );
}
