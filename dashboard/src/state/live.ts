// The cluster as it is now: what the coordinator's event stream says, as signals that pages read.
import { computed, signal } from "@preact/signals";
import { findSession, session, signOutHere } from "../api";
import type { Generation, HistoryPoint, LiveCluster, LiveDelta, LiveState, LiveWorker, ModelInfo } from "../types";
import { replaced } from "./merging";

/** Nothing for so long means that the connection is lost: a sample comes every 5 s. */
const SILENCE_MS = 15_000;
const MAX_RETRY_MS = 15_000;

export const cluster = signal<LiveCluster | null>(null);
export const models = signal<ReadonlyMap<string, ModelInfo>>(new Map());
export const workers = signal<ReadonlyMap<string, LiveWorker>>(new Map());
export const generations = signal<ReadonlyMap<string, Generation>>(new Map());
export const lastSample = signal<HistoryPoint | null>(null);
export const connection = signal<"connecting" | "live" | "lost">("connecting");

const COLLATOR = new Intl.Collator();
let hostnamesBefore: ReadonlyMap<string, string> = new Map();

/** Hostnames by id, in order; the same map until a worker comes, goes or is renamed: sorting a thousand takes long. */
const hostnames = computed(() => {
  const now = workers.value;
  const isSame = now.size === hostnamesBefore.size
    && [...now.values()].every(({ worker_id, hostname }) => hostnamesBefore.get(worker_id) === hostname);
  if (!isSame) {
    const sorted = [...now.values()].sort(
      (a, b) => COLLATOR.compare(a.hostname, b.hostname) || COLLATOR.compare(a.worker_id, b.worker_id),
    );
    hostnamesBefore = new Map(sorted.map(({ worker_id, hostname }) => [worker_id, hostname]));
  }
  return hostnamesBefore;
});

/** By name. */
export const workerList = computed(() => [...hostnames.value.keys()].map((id) => workers.value.get(id) as LiveWorker));

/** A worker as people call it; several on one machine are told apart by their ids. */
export const workerNames = computed(() => {
  const n_of = new Map<string, number>();
  for (const hostname of hostnames.value.values()) n_of.set(hostname, (n_of.get(hostname) ?? 0) + 1);
  return new Map([...hostnames.value].map(([worker_id, hostname]) => [
    worker_id, (n_of.get(hostname) ?? 0) > 1 ? `${hostname} · ${worker_id.slice(0, 6)}` : hostname,
  ]));
});

let isFollowing = false;
let source: EventSource | null = null;
let silence = 0;
let retry = 0;
let nFailures = 0;

function heard(): void {
  clearTimeout(silence);
  silence = window.setTimeout(() => again(), SILENCE_MS);
}

function takeSnapshot(said: LiveState): void {
  if (cluster.value !== null && cluster.value.version !== said.cluster.version) {
    location.reload(); // the coordinator was replaced by another version, which brings its own page
    return;
  }
  cluster.value = said.cluster;
  models.value = new Map(Object.entries(said.models));
  workers.value = new Map(Object.entries(said.workers));
  generations.value = new Map(Object.entries(said.generations));
  connection.value = "live";
  nFailures = 0;
}

function takeDelta(said: LiveDelta): void {
  if (said.cluster && cluster.value) cluster.value = { ...cluster.value, ...said.cluster };
  if (said.models) models.value = replaced(models.value, said.models);
  if (said.workers) workers.value = replaced(workers.value, said.workers);
  if (said.generations) generations.value = replaced(generations.value, said.generations);
}

/** The stream is lost: ask whether one is still signed in, and if so try again, more and more seldom. */
function again(): void {
  close();
  connection.value = "lost";
  const pause = Math.min(MAX_RETRY_MS, 500 * 2 ** nFailures) * (0.5 + Math.random() / 2);
  nFailures += 1;
  retry = window.setTimeout(async () => {
    try {
      await findSession();
    } catch {
      if (isFollowing) again();
      return;
    }
    if (isFollowing && session.value) open();
  }, pause);
}

/** While somebody can see the page: a browser has six connections to a host, for all of its tabs. */
function open(): void {
  close();
  if (document.hidden) return;
  const opened = new EventSource("/dashboard/events");
  source = opened;
  heard();
  const on = <Said>(name: string, take: (said: Said) => void) =>
    opened.addEventListener(name, (event) => {
      heard();
      take(JSON.parse((event as MessageEvent<string>).data) as Said);
    });
  on<LiveState>("snapshot", takeSnapshot);
  on<LiveDelta>("delta", takeDelta);
  on<HistoryPoint>("sample", (said) => {
    lastSample.value = said;
  });
  on<{ reason: string; message: string }>("end", ({ reason, message }) => {
    if (reason === "stopping") again();
    else {
      disconnect();
      signOutHere(message);
    }
  });
  opened.onerror = again;
}

document.addEventListener("visibilitychange", () => {
  if (!isFollowing) return;
  connection.value = "connecting";
  open();
});

export function connect(): void {
  isFollowing = true;
  open();
}

export function disconnect(): void {
  isFollowing = false;
  close();
}

function close(): void {
  clearTimeout(silence);
  clearTimeout(retry);
  source?.close();
  source = null;
}
