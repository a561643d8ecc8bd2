// Around all pages: where one is, whether what is shown is live, and the way out.
import { useSignalEffect } from "@preact/signals";
import type { ComponentChild } from "preact";
import { useEffect, useState } from "preact/hooks";
import { findSession, problemOf, session, signOut, type Problem } from "./api";
import { AuditPage } from "./pages/audit";
import { ChatPage } from "./pages/chat";
import { ClusterPage } from "./pages/cluster";
import { GenerationsPage } from "./pages/generations";
import { KeysPage } from "./pages/keys";
import { ModelsPage } from "./pages/models";
import { PlanPage } from "./pages/plan";
import { PlotsPage } from "./pages/plots";
import { SettingsPage } from "./pages/settings";
import { SignInPage } from "./pages/sign_in";
import { WorkerPage } from "./pages/worker";
import { WorkersPage } from "./pages/workers";
import { link, path } from "./router";
import { forget, key } from "./state/chat";
import { cluster, connect, connection, disconnect } from "./state/live";
import { nextTheme, theme } from "./state/theme";
import { ActButton, Empty, ProblemBox } from "./ui/basics";
import { Mark } from "./ui/mark";

const PAGES: [place: string, name: string, page: () => ComponentChild][] = [
  ["", "Cluster", () => <ClusterPage />],
  ["workers", "Workers", () => <WorkersPage />],
  ["models", "Models", () => <ModelsPage />],
  ["generations", "Generations", () => <GenerationsPage />],
  ["plots", "Plots", () => <PlotsPage />],
  ["plan", "Placement", () => <PlanPage />],
  ["keys", "Keys", () => <KeysPage />],
  ["chat", "Chat", () => <ChatPage />],
  ["audit", "Audit log", () => <AuditPage />],
  ["settings", "Settings", () => <SettingsPage />],
];

function shownPage(): ComponentChild {
  const [place = "", id] = path.value;
  if (place === "workers" && id !== undefined) return <WorkerPage key={id} id={id} />;
  const found = PAGES.find(([one]) => one === place);
  if (found) return found[2]();
  return <section class="card"><Empty title="There is no such page."><a href={link()}>Go to the cluster</a></Empty></section>;
}

function Connection() {
  const words = { connecting: "connecting…", live: "live", lost: "connection lost, trying again…" }[connection.value];
  return <span class={`connection connection-${connection.value}`} role="status">{words}</span>;
}

function Side({ isOpen, close }: { isOpen: boolean; close: () => void }) {
  const [place = ""] = path.value;
  return (
    <nav class={isOpen ? "side side-open" : "side"} id="pages" aria-label="Pages">
      <a class="brand" href={link()}><Mark /> Brigade</a>
      <ul>
        {PAGES.map(([one, name]) => (
          <li key={one}><a href={link(...(one ? [one] : []))} aria-current={one === place ? "page" : undefined} onClick={close}>{name}</a></li>
        ))}
      </ul>
      <div class="side-foot">
        <Connection />
        <button class="quiet" onClick={nextTheme} aria-label={`Colours: ${theme.value}; change`}>Colours: {theme.value}</button>
        <small class="muted">{session.value?.key_name}{cluster.value ? ` · ${cluster.value.version}` : ""}</small>
        <ActButton act={signOut}>Sign out</ActButton>
      </div>
    </nav>
  );
}

function SignedIn() {
  const [isOpen, setOpen] = useState(false);
  useEffect(() => {
    connect();
    return () => {
      disconnect();
      forget();
      key.value = "";
    };
  }, []);
  return (
    <div class="shell">
      <a class="skip" href="#content" onClick={(event) => { event.preventDefault(); document.getElementById("content")?.focus(); }}>To the content</a>
      <header class="top">
        <button class="icon" aria-label="Pages" aria-expanded={isOpen} aria-controls="pages" onClick={() => setOpen(!isOpen)}>☰</button>
        <span class="brand"><Mark /> Brigade</span>
        <Connection />
      </header>
      <Side isOpen={isOpen} close={() => setOpen(false)} />
      <main id="content" tabIndex={-1}>
        {connection.value === "lost" && (
          <div class="notice notice-warn" role="alert">The connection to the coordinator is lost. What you see is how it was; it goes on by itself once the coordinator answers.</div>
        )}
        {cluster.value === null ? <p class="muted">Loading…</p> : shownPage()}
      </main>
    </div>
  );
}

export function App() {
  const [problem, setProblem] = useState<Problem | null>(null);
  const look = () => {
    setProblem(null);
    findSession().catch((error) => setProblem(problemOf(error)));
  };
  useEffect(look, []);
  useSignalEffect(() => {
    const [place = ""] = path.value;
    document.title = `${PAGES.find(([one]) => one === place)?.[1] ?? "Cluster"} · Brigade`;
  });
  if (problem) return <main class="sign-in"><ProblemBox problem={problem} retry={look} /></main>;
  if (session.value === undefined) return null;
  return session.value === null ? <SignInPage /> : <SignedIn />;
}
