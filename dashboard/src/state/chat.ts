// A conversation with a model over the gateway. The user's key and all that is said live in this page's memory only.
import { signal } from "@preact/signals";
import { readEvents } from "./sse";

export interface Said { role: "user" | "assistant" | "system"; content: string }

/** What the gateway needs of whoever asks. */
export interface Gateway { url: string; key: string }

export const key = signal("");
export const said = signal<Said[]>([]);
export const system = signal("");
export const isAnswering = signal(false);
export const trouble = signal("");
export const pace = signal("");

let stopping: AbortController | null = null;

interface Chunk {
  choices?: { delta?: { content?: string | null }; finish_reason?: string | null }[];
  usage?: { prompt_tokens: number; completion_tokens: number } | null;
  error?: { message: string };
}

async function refusalOf(answer: Response): Promise<string> {
  try {
    return (JSON.parse(await answer.text()) as Chunk).error?.message ?? `the gateway answered ${answer.status}`;
  } catch {
    return `the gateway answered ${answer.status}`;
  }
}

function extend(text: string): void {
  const known = said.value;
  const last = known[known.length - 1];
  if (last?.role === "assistant") said.value = [...known.slice(0, -1), { ...last, content: last.content + text }];
}

function showPace(n_tokens: number, firstMs: number, lastMs: number): void {
  const rate = n_tokens > 1 && lastMs > firstMs ? `, ${(((n_tokens - 1) * 1000) / (lastMs - firstMs)).toFixed(1)} tokens/s` : "";
  pace.value = `${n_tokens} tokens${rate}`;
}

async function answer(gateway: Gateway, model: string, stop: AbortSignal): Promise<void> {
  const messages = [...(system.value ? [{ role: "system", content: system.value }] : []), ...said.value.slice(0, -1)];
  const response = await fetch(`${gateway.url}/v1/chat/completions`, {
    method: "POST",
    signal: stop,
    credentials: "omit",
    headers: { "Content-Type": "application/json", Authorization: `Bearer ${gateway.key}` },
    body: JSON.stringify({ model, messages, stream: true, stream_options: { include_usage: true } }),
  });
  if (!response.ok || response.body === null) throw new Error(await refusalOf(response));
  let n_tokens = 0, firstMs = 0, lastMs = 0;
  for await (const event of readEvents(response.body)) {
    if (event === "[DONE]") return;
    const chunk = JSON.parse(event) as Chunk;
    if (chunk.error) throw new Error(chunk.error.message);
    const text = chunk.choices?.[0]?.delta?.content;
    if (text) {
      lastMs = performance.now();
      firstMs ||= lastMs;
      n_tokens += 1;
      extend(text);
      showPace(n_tokens, firstMs, lastMs);
    }
    if (chunk.usage) showPace(chunk.usage.completion_tokens, firstMs, lastMs);
  }
}

/** Say something; false: nothing came back, and it wasn't said. */
export async function send(gateway: Gateway, model: string, text: string): Promise<boolean> {
  said.value = [...said.value, { role: "user", content: text }, { role: "assistant", content: "" }];
  trouble.value = "";
  pace.value = "";
  isAnswering.value = true;
  stopping = new AbortController();
  try {
    await answer(gateway, model, stopping.signal);
  } catch (error) {
    const isUnreachable = error instanceof TypeError;
    if (isUnreachable) {
      trouble.value = `The gateway at ${gateway.url} can't be reached: check that it runs, that it was started with `
        + `--allow-origin ${location.origin}, and that this browser trusts its certificate.`;
    } else if (!stopping.signal.aborted) {
      trouble.value = error instanceof Error ? error.message : String(error);
    }
  } finally {
    isAnswering.value = false;
    stopping = null;
  }
  const isAnswered = said.value[said.value.length - 1]?.content !== "";
  if (!isAnswered) said.value = said.value.slice(0, -2);
  return isAnswered;
}

export function stop(): void {
  stopping?.abort();
}

export function forget(): void {
  stop();
  said.value = [];
  trouble.value = "";
  pace.value = "";
}
