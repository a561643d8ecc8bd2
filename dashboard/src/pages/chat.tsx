// Talk with a model, over the gateway: the coordinator is never on the tokens' path.
import { useEffect, useRef, useState } from "preact/hooks";
import { session } from "../api";
import { link } from "../router";
import { forget, isAnswering, key, pace, said, send, stop, system, trouble } from "../state/chat";
import { cluster, models } from "../state/live";
import { Card, Command, Empty, Field, Notice, PageHead } from "../ui/basics";
import { Markdown } from "../ui/markdown";

function NoGateway() {
  return (
    <Card label="No gateway">
      <Empty title="The page doesn't know a gateway yet.">
        <p>Start one where this browser can reach it:</p>
        <Command>{`client serve --allow-origin ${location.origin}`}</Command>
        <p>then tell the coordinator its address, here under <a href={link("settings")}>Settings</a> or with</p>
        <Command>coord settings set gateway_url https://HOST:PORT</Command>
      </Empty>
    </Card>
  );
}

function Conversation() {
  const end = useRef<HTMLDivElement>(null);
  const messages = said.value;
  useEffect(() => end.current?.scrollIntoView({ block: "nearest" }), [messages]);
  return (
    <div class="conversation" role="log" aria-label="Conversation" aria-busy={isAnswering.value} tabIndex={0}>
      {messages.length === 0 && <Empty title="Say something.">Neither this conversation nor your key is kept: they are gone when the page is left.</Empty>}
      {messages.map((message, index) => (
        <div key={index} class={`said said-${message.role}`}>
          {message.role === "assistant" ? <Markdown text={message.content} /> : <p>{message.content}</p>}
          {message.role === "assistant" && message.content === "" && <span class="thinking" aria-label="Waiting for the first token" />}
        </div>
      ))}
      <div ref={end} />
    </div>
  );
}

function Composer({ gateway, model }: { gateway: string; model: string }) {
  const [text, setText] = useState("");
  const isReady = text.trim() !== "" && key.value !== "" && model !== "" && !isAnswering.value;
  const submit = () => {
    if (!isReady) return;
    const sent = text.trim();
    setText("");
    void send({ url: gateway, key: key.value }, model, sent).then((isAnswered) => {
      if (!isAnswered) setText((typed) => typed || sent);
    });
  };
  return (
    <form class="composer" onSubmit={(event) => { event.preventDefault(); submit(); }}>
      <textarea rows={2} aria-label="Message" placeholder={key.value === "" ? "First enter an API key above" : "Message (Enter sends, Shift+Enter begins a line)"}
        value={text} onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
            event.preventDefault();
            submit();
          }
        }} />
      {/* keyed: a press meant for one mustn't reach the other */}
      {isAnswering.value
        ? <button key="stop" type="button" class="danger" onClick={stop}>Stop</button>
        : <button key="send" class="primary" disabled={!isReady}>Send</button>}
    </form>
  );
}

export function ChatPage() {
  const names = [...models.value.values()].filter((model) => model.is_chat || models.value.size === 1).map((model) => model.name);
  const [chosen, setChosen] = useState("");
  const model = names.includes(chosen) ? chosen : names[0] ?? "";
  const gateway = (session.value?.gateway_url || cluster.value?.settings.gateway_url || "").replace(/\/$/, "");
  useEffect(() => stop, []);
  if (gateway === "") return <><PageHead title="Chat" /><NoGateway /></>;
  const state = models.value.get(model)?.state;
  return (
    <>
      <PageHead title="Chat"><button class="quiet" onClick={forget} disabled={said.value.length === 0}>New conversation</button></PageHead>
      <Card label="Chat">
        <div class="field-grid chat-head">
          <Field label="Model">
            <select value={model} onChange={(event) => setChosen(event.currentTarget.value)}>
              {names.map((name) => <option key={name}>{name}</option>)}
            </select>
          </Field>
          <Field label="API key" hint="Stays in this page">
            <input type="password" autocomplete="off" spellcheck={false} value={key.value} onInput={(event) => { key.value = event.currentTarget.value.trim(); }} />
          </Field>
          <Field label="System prompt">
            <input value={system.value} onInput={(event) => { system.value = event.currentTarget.value; }} />
          </Field>
        </div>
        {names.length === 0 && <Notice tone="warn">No model here has a chat template.</Notice>}
        {state !== undefined && state !== "ready" && <Notice tone="warn">{models.value.get(model)?.reason}</Notice>}
        <Conversation />
        {trouble.value && <div class="notice notice-bad" role="alert">{trouble.value}</div>}
        <Composer gateway={gateway} model={model} />
        <p class="muted small" aria-live="off">{pace.value || "\u00a0"}</p>
      </Card>
    </>
  );
}
