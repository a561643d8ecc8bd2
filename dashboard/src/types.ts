// JSON of the admin API, as protocol/*_rest.py defines it: only what the pages show.

export type WorkerState =
  | "enrolling" | "idle" | "downloading" | "loading" | "ready"
  | "draining" | "suspect" | "lost" | "gone" | "quarantined";
export type ModelState = "ready" | "waiting" | "incomplete";
export type TrustLevel = "trusted" | "probation" | "weak" | "quarantined" | "banned";
export type Priority = "high" | "normal" | "low";

/** Half-open: [start, end). */
export interface BlockRange { start: number; end: number }

export interface SpanStatus {
  model: string;
  revision: string;
  blocks: BlockRange;
  state: "downloading" | "loading" | "ready" | "failed";
  reason: string;
  /** 0 to 1. */
  progress: number;
  note: string;
  quantization?: string | null;
}

/** `WorkerInfo` as the live events carry it. */
export interface LiveWorker {
  worker_id: string;
  hostname: string;
  url: string;
  state: WorkerState;
  reason: string;
  device: string;
  precision: string;
  memory_bytes: number;
  spans: SpanStatus[];
  n_sessions: number;
  free_kv_bytes: number;
  decode_s_per_block: number;
  version: string;
  pinned: string;
  hop_p50_s: number;
  hop_p99_s: number;
  round_trips_s: Record<string, number>;
  links: Record<string, { n_bytes_sent: number; bytes_per_s: number }>;
  trust: number;
  trust_level: TrustLevel;
  owner: string | null;
  /** Seconds since 1970; null while it is heard from. */
  silent_since_s: number | null;
  n_queued: number;
}

export interface ModelInfo {
  name: string;
  revision: string;
  state: ModelState;
  reason: string;
  architecture: string;
  n_blocks: number;
  context_length: number;
  size_bytes: number;
  is_chat: boolean;
  coverage: { blocks: BlockRange; n_workers: number }[];
  n_replicas: number;
  signed: { signer: string; author: string | null } | null;
}

export interface TrustInfo {
  worker_id: string;
  hostname: string;
  score: number;
  level: TrustLevel;
  reason: string;
  pinned: number | null;
  banned_reason: string | null;
}

export interface TrustEvent {
  at: string;
  kind: string;
  reporter: string;
  weight: number;
  score_before: number;
  score_after: number;
  reason: string;
}

export interface TrustHistory {
  trust: TrustInfo;
  opinions: { reporter: string; kind: string; weight: number }[];
  events: TrustEvent[];
}

export interface KeyLimits {
  requests_per_min?: number | null;
  tokens_per_min?: number | null;
  tokens_per_day?: number | null;
  max_concurrent?: number | null;
  max_context?: number | null;
  priority?: Priority;
  models?: string[] | null;
  min_trust?: number | null;
  pinned_ends?: boolean;
}

export interface KeyInfo {
  key_id: string;
  name: string;
  kind: "client" | "admin";
  created_at: string;
  revoked_at: string | null;
  limits: KeyLimits;
  old_until: string | null;
  owner: string;
}

export interface QuotaInfo {
  key_id: string;
  rates: { limit_name: string; limit: number; used: number }[];
  n_running: number;
}

export interface UsageDay {
  key_id: string;
  name: string;
  day: string;
  n_generations: number;
  n_prompt_tokens: number;
  n_completion_tokens: number;
}

export interface AuditEntry {
  entry_id: number;
  at: string;
  who: string;
  action: string;
  subject: string;
  details: string;
  before: Record<string, unknown> | null;
  after: Record<string, unknown> | null;
}

export type SettingValue = string | number | boolean;

export interface SettingInfo {
  name: string;
  meaning: string;
  value: SettingValue;
  source: "given" | "stored" | "default";
  where: string;
  default: SettingValue;
  allowed: string;
  stored: SettingValue | null;
}

export interface ModelledSpeed { one_stream_tokens_per_s: number; many_streams_tokens_per_s: number }

export interface PlanInfo {
  placement: string;
  models: {
    model: string;
    spans: {
      worker_id: string; hostname: string; blocks: BlockRange; stage_s: number;
      quantization: string | null; is_pinned: boolean;
    }[];
    planned: ModelledSpeed | null;
    now: ModelledSpeed | null;
    note: string;
  }[];
  left_out: { worker_id: string; hostname: string; reason: string }[];
  outlook: string;
}

export interface AssignmentPreview {
  worker_id: string;
  needed_bytes: number;
  capacity_bytes: number;
  models: { model: string; now: ModelledSpeed | null; then: ModelledSpeed | null }[];
  changes: {
    worker_id: string; hostname: string;
    now: { model: string; blocks: BlockRange }[];
    then: { model: string; blocks: BlockRange }[];
  }[];
  refusal: string;
  loses: string;
}

export type Page<Name extends string, Entry> = { [K in Name]: Entry[] } & { next_cursor: string | null };

// ------------------------------------------------------------------ of the dashboard itself (protocol/dashboard_rest.py)

export interface Session {
  key_id: string;
  key_name: string;
  csrf_token: string;
  expires_at_s: number;
  coordinator_id: string;
  version: string;
  url: string;
  gateway_url: string;
}

export interface LiveCluster {
  coordinator_id: string;
  version: string;
  url: string;
  database: string;
  database_problem: string;
  moving: string;
  audits: string;
  n_workers: number;
  n_workers_ready: number;
  n_models_ready: number;
  n_generations: number;
  n_waiting: number;
  settings: { gateway_url: string };
}

export interface Generation {
  session_id: string;
  key_id: string;
  key_name: string;
  model: string;
  revision: string;
  hops: { worker_id: string; hostname: string; blocks: BlockRange }[];
  n_prompt_tokens: number;
  max_tokens: number;
  n_completion_tokens: number | null;
  state: "running" | "finished";
  outcome: string | null;
  started_at: string;
  finished_at: string | null;
  continues: string | null;
  continued_by: string | null;
}

export interface LiveState {
  at_s: number;
  cluster: LiveCluster;
  models: Record<string, ModelInfo>;
  workers: Record<string, LiveWorker>;
  generations: Record<string, Generation>;
}

type Changes<Entry> = Record<string, Partial<Entry> | null>;

export interface LiveDelta {
  at_s?: number;
  cluster?: Partial<LiveCluster>;
  models?: Changes<ModelInfo>;
  workers?: Changes<LiveWorker>;
  generations?: Changes<Generation>;
}

export interface HistoryPoint { at_s: number; values: Record<string, number | null> }

export interface History {
  step_s: number;
  end_s: number;
  series: Record<string, (number | null)[]>;
}
