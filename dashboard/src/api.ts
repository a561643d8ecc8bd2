// Requests to the coordinator: with the session's CSRF token, and errors as sentences for people.
import { signal } from "@preact/signals";
import type { Page, Session } from "./types";

const DEADLINE_MS = 20_000;
/** Who touched nothing for so long isn't there, and what the page asks then keeps no session alive. */
const THERE_MS = 60_000;

let touchedMs = performance.now();
for (const kind of ["pointerdown", "keydown", "wheel"]) {
  addEventListener(kind, () => { touchedMs = performance.now(); }, { passive: true, capture: true });
}

/** null: signed out; undefined: not known yet. */
export const session = signal<Session | null | undefined>(undefined);
/** Why one is signed out, if one was signed in. */
export const signedOutBecause = signal("");

export interface Problem { code: string; message: string }

export class ApiError extends Error {
  constructor(readonly status: number, readonly problem: Problem) {
    super(problem.message);
  }
}

export function problemOf(error: unknown): Problem {
  if (error instanceof ApiError) return error.problem;
  if (error instanceof DOMException && error.name === "TimeoutError") {
    return { code: "deadline", message: `The coordinator didn't answer within ${DEADLINE_MS / 1000} s. Try again.` };
  }
  if (error instanceof TypeError) {
    return {
      code: "unreachable",
      message: "The coordinator can't be reached. Check that it runs and that this machine has a network.",
    };
  }
  return { code: "internal", message: `Something went wrong in this page: ${String(error)}. Reload it.` };
}

export function signOutHere(because: string): void {
  if (session.value) signedOutBecause.value = because;
  session.value = null;
}

async function errorOf(answer: Response): Promise<ApiError> {
  const text = await answer.text();
  try {
    return new ApiError(answer.status, JSON.parse(text).error as Problem);
  } catch {
    return new ApiError(answer.status, {
      code: "internal", message: `The coordinator answered ${answer.status} without a reason. Its log has the details.`,
    });
  }
}

/** One request. A POST carries a key of its own, so that none is carried out twice. */
export async function ask<Answer>(method: string, url: string, body?: unknown): Promise<Answer> {
  const headers: Record<string, string> = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET" && session.value) headers["Brigade-CSRF"] = session.value.csrf_token;
  if (performance.now() - touchedMs > THERE_MS) headers["Brigade-Unattended"] = "1";
  if (method === "POST" && url.startsWith("/admin/")) headers["Idempotency-Key"] = crypto.randomUUID();
  const answer = await fetch(url, {
    method, headers, credentials: "same-origin", signal: AbortSignal.timeout(DEADLINE_MS),
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  if (!answer.ok) {
    const error = await errorOf(answer);
    if (answer.status === 401) signOutHere("Your session is over. Sign in again.");
    throw error;
  }
  return (answer.status === 204 ? undefined : await answer.json()) as Answer;
}

export function get<Answer>(url: string, parameters: Record<string, string | number | null | undefined> = {}): Promise<Answer> {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined && value !== "") query.set(name, String(value));
  }
  return ask<Answer>("GET", query.size > 0 ? `${url}?${query}` : url);
}

/** The whole of a list, however many pages it has. */
export async function getAll<Name extends string, Entry>(
  name: Name, url: string, parameters: Record<string, string | number> = {},
): Promise<Entry[]> {
  const found: Entry[] = [];
  let cursor: string | null = "";
  while (cursor !== null) {
    const page: Page<Name, Entry> = await get<Page<Name, Entry>>(url, { ...parameters, cursor });
    found.push(...page[name]);
    cursor = page.next_cursor;
  }
  return found;
}

/** Ask who is signed in; throws where nobody answers. */
export async function findSession(): Promise<void> {
  try {
    session.value = await get<Session>("/dashboard/session");
  } catch (error) {
    if (!(error instanceof ApiError && error.status === 401)) throw error;
    session.value = null;
  }
}

export async function signIn(key: string): Promise<void> {
  session.value = await ask<Session>("POST", "/dashboard/session", { key });
  signedOutBecause.value = "";
}

export async function signOut(): Promise<void> {
  await ask("DELETE", "/dashboard/session");
  session.value = null;
  signedOutBecause.value = "";
}
