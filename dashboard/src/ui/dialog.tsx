// A question that must be answered before something is done: the browser's own dialog keeps the focus in it.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { problemOf, type Problem } from "../api";
import { ProblemBox } from "./basics";

export function Dialog({ title, close, children }: { title: string; close: () => void; children: ComponentChildren }) {
  const element = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    const shown = element.current;
    shown?.showModal();
    return () => shown?.close();
  }, []);
  return (
    <dialog ref={element} aria-label={title} onClose={close} onCancel={close}>
      <header class="dialog-head">
        <h2>{title}</h2>
        <button class="icon" aria-label="Close" onClick={close}>×</button>
      </header>
      {children}
    </dialog>
  );
}

/** `act` is done when the form is sent; the dialog stays open with the reason if it fails. */
export function FormDialog(
  { title, close, act, verb, isDanger, children }:
  {
    title: string; close: () => void; act: () => Promise<unknown>; verb: string;
    isDanger?: boolean; children: ComponentChildren;
  },
) {
  const [isBusy, setBusy] = useState(false);
  const [problem, setProblem] = useState<Problem | null>(null);
  const send = async (event: Event) => {
    event.preventDefault();
    setBusy(true);
    setProblem(null);
    try {
      await act();
      close();
    } catch (error) {
      setProblem(problemOf(error));
      setBusy(false);
    }
  };
  return (
    <Dialog title={title} close={close}>
      <form onSubmit={send}>
        {children}
        {problem && <ProblemBox problem={problem} />}
        <footer class="dialog-foot">
          <button type="button" class="quiet" onClick={close}>Cancel</button>
          <button class={isDanger ? "danger" : "primary"} disabled={isBusy} aria-busy={isBusy}>{verb}</button>
        </footer>
      </form>
    </Dialog>
  );
}
