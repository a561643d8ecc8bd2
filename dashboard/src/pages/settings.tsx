// What can be changed while the coordinator runs, what it is now, and where that comes from.
import { useState } from "preact/hooks";
import { ask, findSession, get } from "../api";
import { useLoaded } from "../state/loading";
import type { SettingInfo, SettingValue } from "../types";
import { ActButton, Card, Chip, Field, PageHead, ProblemBox } from "../ui/basics";
import { FormDialog } from "../ui/dialog";

const SETTINGS = "/admin/v1/settings";

function shown(value: SettingValue): string {
  if (typeof value === "boolean") return value ? "on" : "off";
  return value === "" ? "–" : String(value);
}

/** What was typed, as the kind of value that the setting has. */
function read(text: string, setting: SettingInfo): SettingValue {
  if (typeof setting.default === "boolean") return text === "on";
  return typeof setting.default === "number" ? Number(text) : text;
}

function Input({ setting, text, setText }: { setting: SettingInfo; text: string; setText: (text: string) => void }) {
  const choices = typeof setting.default === "boolean"
    ? ["on", "off"]
    : typeof setting.default === "string" && setting.allowed.includes(" or ") && !setting.allowed.includes("http")
      ? setting.allowed.split(" or ") : null;
  if (choices) {
    return <select value={text} onChange={(event) => setText(event.currentTarget.value)}>{choices.map((one) => <option key={one}>{one}</option>)}</select>;
  }
  const typed = (event: { currentTarget: HTMLInputElement }) => setText(event.currentTarget.value);
  return typeof setting.default === "number"
    ? <input required type="number" step="any" value={text} onInput={typed} />
    : <input required value={text} onInput={typed} />;
}

function Change({ setting, close, send }: { setting: SettingInfo; close: () => void; send: (value: SettingValue) => Promise<void> }) {
  const [text, setText] = useState(setting.value === "" ? "" : shown(setting.value));
  return (
    <FormDialog title={`Change ${setting.name}`} verb="Save" close={close} act={() => send(read(text, setting))}>
      <Field label={setting.meaning} hint={`It can be ${setting.allowed}.`}><Input setting={setting} text={text} setText={setText} /></Field>
    </FormDialog>
  );
}

function Row({ setting, reload }: { setting: SettingInfo; reload: () => void }) {
  const [isChanging, setChanging] = useState(false);
  const send = async (value: SettingValue | null) => {
    await ask("PATCH", SETTINGS, { settings: { [setting.name]: value } });
    if (setting.name === "gateway_url") {
      location.reload(); // the page's own policy names the gateway
      return;
    }
    await findSession();
    reload();
  };
  return (
    <li class="setting">
      <div>
        <b>{setting.name}</b> {setting.source !== "default" && <Chip state={setting.source} />}
        <p class="muted small">{setting.meaning}. {setting.source === "default" ? "" : setting.where}</p>
      </div>
      <span class="setting-value">{shown(setting.value)}</span>
      <span class="row-acts">
        {setting.source !== "given" && <button class="quiet" aria-label={`Change ${setting.name}`} onClick={() => setChanging(true)}>Change</button>}
        {setting.stored !== null && <ActButton label={`Reset ${setting.name}`} act={() => send(null)}>Reset</ActButton>}
      </span>
      {isChanging && <Change setting={setting} close={() => setChanging(false)} send={send} />}
    </li>
  );
}

export function SettingsPage() {
  const { answer, problem, reload } = useLoaded("settings", () => get<{ settings: SettingInfo[] }>(SETTINGS));
  return (
    <>
      <PageHead title="Settings" />
      {problem && <ProblemBox problem={problem} retry={reload} />}
      {answer && <Card label="Settings"><ul class="settings">{answer.settings.map((one) => <Row key={one.name} setting={one} reload={reload} />)}</ul></Card>}
    </>
  );
}
